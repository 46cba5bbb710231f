"""The recipe language as a typed schema: mergekit's keys, and a few of our own.

The models here accept exactly what a recipe may say; `load.py` turns their complaints into messages with line numbers,
and `recipe.py` adds where the keys come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from ggufmerge.chat.templates import TEMPLATES
from ggufmerge.errors import GgufmergeError, nearest
from ggufmerge.recipe import settings
from ggufmerge.recipe.budget import parse_bits, parse_bytes
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.settings import Setting
from ggufmerge.text import shown
from ggufmerge.types import FileType, TensorType

_FLOATS = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


def _dtype(value: Any) -> Any:
    if isinstance(value, str):
        value = value.removeprefix("torch.")
        return _FLOATS.get(value, value)
    return value


def _layers(value: Any) -> tuple[int, int]:
    numbers = [_whole(number) for number in value] if isinstance(value, list) else []
    if len(numbers) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError(f"layer_range is [first layer, layer after the last one], such as [0, 16], not {shown(value)}")
    return numbers[0], numbers[1]


def _whole(number: Any) -> Any:
    """16 for 16.0 and "16", as for mergekit; anything else as it is."""
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return int(number) if isinstance(number, str) and number.isascii() and number.isdecimal() else number


def _tokens_of(value: Any) -> Any:
    return value if value in (None, "base", "union") else ModelReference.parse(value)


@dataclass(frozen=True)
class TokenOfModel:
    """One row of one model, by its token's text or id."""

    model: ModelReference
    token: str | None = None
    token_id: int | None = None


def _token_row(value: Any) -> ModelReference | TokenOfModel | Literal["zero"] | None:
    """Where the row of a token comes from: a model, which has the token; zeros; or any token of a model."""
    if value is None or not isinstance(value, dict) or "kind" not in value:
        return None if value is None else ModelReference.parse(value)
    kind = value["kind"]
    known = {"zero": ["kind"], "model_token": ["kind", "model", "token", "token_id"]}
    if kind not in ("zero", "model_token"):
        raise ValueError(f"the kind of a token's source is zero or model_token, not {shown(kind)}")
    if unknown := sorted(set(map(str, value)) - set(known[kind])):
        raise ValueError(f"unknown key {shown(unknown[0])} of a token's source: {nearest(unknown[0], known[kind])}")
    if kind == "zero":
        return "zero"
    token, token_id = value.get("token"), value.get("token_id")
    if "model" not in value or (token is None) == (token_id is None):
        raise ValueError('a source of kind model_token has a "model" and either a "token" or a "token_id"')
    if token is not None and not isinstance(token, str):
        raise ValueError(f"a token is a text, not {shown(token)}; write it in quotes")
    if token_id is not None and (type(token_id) is not int or token_id < 0):
        raise ValueError(f"a token_id is a whole number, not {shown(token_id)}")
    return TokenOfModel(ModelReference.parse(value["model"]), token, token_id)


def _template(value: Any) -> Any:
    if isinstance(value, str) and value != "auto" and value not in TEMPLATES and "{" not in value:
        raise ValueError(f"{shown(value)} is not a template: write auto, {', '.join(TEMPLATES)} or a Jinja template")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _named(parse: Any) -> Any:
    """A validator of names that `parse` knows; the name itself stays."""

    def validate(value: Any) -> Any:
        if isinstance(value, str):
            try:
                parse(value)
            except GgufmergeError as error:
                raise ValueError(str(error)) from None
        return value

    return validate


def _storable(value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(f"{shown(value)} does not fit in 64 bits; write it in quotes")
    if not isinstance(value, (str, bool, int, float)) and not (
        isinstance(value, list) and all(isinstance(v, str) for v in value)
    ):
        raise ValueError(f"metadata is a text, a number, true, false or a list of texts, not {shown(value)}")
    return value


def _methods(value: Any) -> Setting:
    setting = settings.parse(value)
    for rule in setting.rules:
        if not isinstance(rule.value, str):
            raise ValueError(f"merge_method is a word, or a list of mappings with filter and value, not {shown(value)}")
    if setting.rules[-1].filter is not None:
        raise ValueError("merge_method needs a last value without a filter, for the tensors that no filter matches")
    return setting


def _rounding(value: Any) -> Any:
    """The name of an encoder; None for "auto", which is what a recipe without the key has."""
    from ggufmerge.quants.encoders import encoder_names  # of compiled kernels, which most recipes need later or never

    if value is None or value == AUTO:
        return None
    names = (AUTO, *encoder_names())
    if value not in names:
        listed = " or ".join(filter(None, (", ".join(map(repr, names[:-1])), repr(names[-1]))))
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": listed})
    return value


def _noise_aware(value: Any) -> Any:
    return "off" if value is False else value  # as YAML reads the word off


def _budget(check: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A number or a text that `check` takes, as text."""

    def read(value: Any) -> Any:
        if value is None or isinstance(value, bool | list | dict):
            return value
        try:
            check(str(value))
        except GgufmergeError as error:
            raise ValueError(str(error)) from None
        return str(value)

    return read


def _says(text: str) -> Any:
    """What the JSON schema says of a key."""
    return Field(description=text)


def _defined(name: str) -> WithJsonSchema:
    """What stands for a form that `json_schema.py` defines under this name."""
    return WithJsonSchema({DEFINED: name})


AUTO = "auto"  # the rounding that the weights decide
DEFINED = "x-defined"
_TEXT = {"type": "string"}
_FLOAT_NAMES = [*dict.fromkeys(_FLOATS.values()), *_FLOATS]

Reference = Annotated[ModelReference, BeforeValidator(ModelReference.parse), _defined("model")]
Parameters = Annotated[
    dict[str, Annotated[Setting, BeforeValidator(settings.parse)]],
    BeforeValidator(lambda value: {} if value is None else value),  # "parameters:" with nothing but comments below it
    _defined("parameters"),
]
Rounding = Annotated[str | None, BeforeValidator(_rounding), _defined("rounding")]
DType = Annotated[
    Literal["float32", "float16", "bfloat16"],
    BeforeValidator(_dtype),
    WithJsonSchema({"enum": [*_FLOAT_NAMES, *(f"torch.{name}" for name in _FLOAT_NAMES)]}),
]
LayerRange = Annotated[
    tuple[int, int],
    BeforeValidator(_layers),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2}),
    _says("First layer, and the layer after the last one."),
]
TokenizerSource = Annotated[
    Literal["base", "union"] | ModelReference | None, BeforeValidator(_tokens_of), _defined("tokenizer_source")
]
FileTypeName = Annotated[
    str, BeforeValidator(_named(FileType.parse)), WithJsonSchema({**_TEXT, "examples": [str(t) for t in FileType]})
]
TensorTypeName = Annotated[
    str, BeforeValidator(_named(TensorType.parse)), WithJsonSchema({**_TEXT, "examples": [str(t) for t in TensorType]})
]
Template = Annotated[
    str,
    BeforeValidator(_template),
    WithJsonSchema({"anyOf": [{"enum": ["auto", *TEMPLATES]}, {**_TEXT, "pattern": r"\{"}]}),
]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class Model(_Node):
    """One entry of `models:`."""

    model: Reference
    parameters: Parameters = {}


class SliceSource(_Node):
    """One model's share of an output slice: layers [start, end) of it."""

    model: Reference
    layer_range: LayerRange
    parameters: Parameters = {}


class OutputSlice(_Node):
    """Consecutive layers of the result, merged from the same number of layers of each source."""

    sources: Annotated[list[SliceSource], Field(min_length=1)]
    base_model: Reference | None = None
    parameters: Parameters = {}


class Graft(_Node):
    """Tensors that are taken from a model as they are. Not in mergekit."""

    model: Reference
    tensors: Annotated[list[str], Field(min_length=1)]


class TokenEmbedding(_Node):
    """Where the row of one token comes from; `force`: also in the models that have one."""

    source: Annotated[
        ModelReference | TokenOfModel | Literal["zero"] | None, PlainValidator(_token_row), _defined("token_row")
    ] = None
    force: Annotated[bool, Field(strict=True)] = False


class Tokenizer(_Node):
    """mergekit's newer way to write `tokenizer_source`."""

    source: TokenizerSource = "union"
    tokens: dict[str, TokenEmbedding] = {}
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=1 << 20, strict=True)] | None = None


class RecipeKeys(_Node):
    """What one document of a recipe says. Exactly one of `models` and `slices` is given."""

    merge_method: Annotated[
        Setting,
        BeforeValidator(_methods),
        _defined("merge_method"),
        _says("How the models are combined; with filters, not in mergekit, one method for each part."),
    ]
    base_model: Annotated[Reference | None, _says("The model that the others were tuned from.")] = None
    models: Annotated[list[Model], Field(min_length=1)] | None = None
    slices: Annotated[list[OutputSlice], Field(min_length=1)] | None = None
    parameters: Parameters = {}
    dtype: Annotated[DType | None, _says("Float type of the result.")] = None
    out_dtype: Annotated[DType | None, _says("Float type of the result.")] = None
    tokenizer_source: Annotated[TokenizerSource, _says("Whose vocabulary the result has.")] = None
    tokenizer: Annotated[Tokenizer | None, _says("Whose vocabulary the result has, token by token.")] = None
    chat_template: Annotated[Template | None, _says("auto, the name of a known template, or Jinja text.")] = None
    name: Annotated[str | None, _says("general.name of the result.")] = None

    # Not in mergekit
    out_type: Annotated[
        FileTypeName | None, _says("File type of the result, as llama-quantize names it. Not in mergekit.")
    ] = None
    tensor_types: Annotated[
        dict[str, TensorTypeName], _says("Regular expression on tensor names to tensor type. Not in mergekit.")
    ] = {}
    max_size: Annotated[
        str | None,
        BeforeValidator(_budget(parse_bytes)),
        WithJsonSchema({"type": ["string", "integer", "null"]}),
        _says("The most that the tensors may take, such as 3.5G: types are chosen for it. Not in mergekit."),
    ] = None
    max_bpw: Annotated[
        str | None,
        BeforeValidator(_budget(parse_bits)),
        WithJsonSchema({"type": ["number", "string", "null"]}),
        _says("The same in bits per weight. Not in mergekit."),
    ] = None
    like: Annotated[str | None, _says("A GGUF file whose types are taken over. Not in mergekit.")] = None
    imatrix: Annotated[Texts, _says("Importance matrices to quantize with; several add up. Not in mergekit.")] = ()
    calibration: Annotated[
        Texts, _says("Statistics of ggufmerge calibrate to round with; several add up. Not in mergekit.")
    ] = ()
    encoder: Annotated[
        Literal["ggml", "calibrated"] | None,
        _says("How types are written: as ggml does, or with the correlations of inputs. Not in mergekit."),
    ] = None
    rounding: Annotated[
        Rounding,
        _says("How changes are rounded to a type that a tensor has already. Not in mergekit."),
    ] = None
    noise_aware: Annotated[
        Literal["auto", "off"],
        BeforeValidator(_noise_aware),
        WithJsonSchema({"enum": ["auto", "off", False]}),
        _says("Whether methods heed the rounding errors of quantized models. Not in mergekit."),
    ] = "auto"
    exclude: Annotated[
        Texts, _says("Filters of tensors that are not merged but taken from the base. Not in mergekit.")
    ] = ()
    graft: Annotated[tuple[Graft, ...], _says("Tensors taken from a model as they are. Not in mergekit.")] = ()
    seed: Annotated[
        int, Field(ge=0, lt=2**64, strict=True), _says("Seed of masks and stochastic rounding. Not in mergekit.")
    ] = 0
    metadata: Annotated[
        dict[str, Annotated[str | bool | int | float | list[str], BeforeValidator(_storable)]],
        _says("Keys of the result's metadata. Not in mergekit."),
    ] = {}

    @property
    def statistics(self) -> tuple[str, ...]:
        """The importance matrices to quantize with, of which those for calibrated rounding are a kind."""
        return self.calibration or self.imatrix

    @property
    def is_calibrated(self) -> bool:
        """Whether what is written is rounded with the correlations of inputs."""
        return self.encoder == "calibrated" or (bool(self.calibration) and self.encoder is None)

    def references(self) -> list[ModelReference]:
        """Every model of the recipe once: the base first, then in the order of mention."""
        found: dict[ModelReference, None] = {}
        if self.base_model is not None:
            found[self.base_model] = None
        for entries, base, _ in self.output_slices():
            found.update((entry.model, None) for entry in entries)
            if base is not None:
                found.setdefault(base, None)
        found.update((graft.model, None) for graft in self.graft)
        return list(found)

    @property
    def methods(self) -> tuple[str, ...]:
        """The merge methods that the recipe names; more than one only with filters."""
        return tuple(dict.fromkeys(str(rule.value) for rule in self.merge_method.rules))

    def method_for(self, tensor: str, architecture: str) -> str:
        """The merge method of a tensor of the result (a GGUF name)."""
        rule = self.merge_method.rule_for(tensor, architecture)
        assert rule is not None, "the last rule of merge_method has no filter"
        return str(rule.value)

    def place_of(self, reference: ModelReference) -> Location:
        """Where the recipe names a model."""
        if reference == self.base_model:
            return ("base_model",)
        for i, entry in enumerate(self.models or ()):
            if entry.model == reference:
                return ("models", i, "model")
        for i, piece in enumerate(self.slices or ()):
            for j, source in enumerate(piece.sources):
                if source.model == reference:
                    return ("slices", i, "sources", j, "model")
            if piece.base_model == reference:
                return ("slices", i, "base_model")
        return next((("graft", i, "model") for i, graft in enumerate(self.graft) if graft.model == reference), ())

    def output_slices(self) -> list[tuple[list[Model | SliceSource], ModelReference | None, Parameters]]:
        """The recipe as output slices: (sources, base, parameters). `models` is one slice of all layers."""
        if self.slices is None:
            return [(list(self.models or ()), self.base_model, {})]
        return [(list(s.sources), s.base_model or self.base_model, s.parameters) for s in self.slices]
