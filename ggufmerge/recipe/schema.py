"""The recipe language as a typed schema: mergekit's keys, and a few of our own.

The models here accept exactly what a recipe may say; `load.py` turns their complaints into messages with line numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, PrivateAttr
from pydantic_core import PydanticCustomError

from ggufmerge.chat.templates import TEMPLATES
from ggufmerge.errors import GgufmergeError, nearest
from ggufmerge.recipe import settings
from ggufmerge.recipe.document import Document, Location, shown
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.settings import Setting
from ggufmerge.types import FileType, TensorType


def _dtype(value: Any) -> Any:
    if isinstance(value, str):
        value = value.removeprefix("torch.")
        return {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}.get(value, value)
    return value


def _layers(value: Any) -> tuple[int, int]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError(f"layer_range is [first layer, layer after the last one], such as [0, 16], not {shown(value)}")
    return numbers[0], numbers[1]


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
        raise ValueError(f"{shown(value)} is no chat template: write auto, {', '.join(TEMPLATES)} or a Jinja template")
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


Reference = Annotated[ModelReference, BeforeValidator(ModelReference.parse)]
Parameters = Annotated[
    dict[str, Annotated[Setting, BeforeValidator(settings.parse)]],
    BeforeValidator(lambda value: {} if value is None else value),  # "parameters:" with nothing but comments below it
]
DType = Annotated[Literal["float32", "float16", "bfloat16"], BeforeValidator(_dtype)]
LayerRange = Annotated[tuple[int, int], BeforeValidator(_layers)]
TokenizerSource = Annotated[Literal["base", "union"] | ModelReference | None, BeforeValidator(_tokens_of)]
FileTypeName = Annotated[str, BeforeValidator(_named(FileType.parse))]
TensorTypeName = Annotated[str, BeforeValidator(_named(TensorType.parse))]


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

    source: Annotated[ModelReference | TokenOfModel | Literal["zero"] | None, PlainValidator(_token_row)] = None
    force: Annotated[bool, Field(strict=True)] = False


class Tokenizer(_Node):
    """mergekit's newer way to write `tokenizer_source`."""

    source: TokenizerSource = "union"
    tokens: dict[str, TokenEmbedding] = {}
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=1 << 20, strict=True)] | None = None


def _rounding(value: Any) -> Any:
    """The name of an encoder."""
    from ggufmerge.quants.encoders import encoder_names  # of compiled kernels, which most recipes need later or never

    names = encoder_names()
    if value not in names:
        listed = " or ".join(filter(None, (", ".join(map(repr, names[:-1])), repr(names[-1]))))
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": listed})
    return value


Rounding = Annotated[str, BeforeValidator(_rounding)]


class Recipe(_Node):
    """A whole recipe. Exactly one of `models` and `slices` is given."""

    merge_method: Annotated[Setting, BeforeValidator(_methods)]
    base_model: Reference | None = None
    models: Annotated[list[Model], Field(min_length=1)] | None = None
    slices: Annotated[list[OutputSlice], Field(min_length=1)] | None = None
    parameters: Parameters = {}
    dtype: DType | None = None
    out_dtype: DType | None = None
    tokenizer_source: TokenizerSource = None
    tokenizer: Tokenizer | None = None
    chat_template: Annotated[str | None, BeforeValidator(_template)] = None
    name: str | None = None

    # Not in mergekit
    out_type: FileTypeName | None = None
    tensor_types: dict[str, TensorTypeName] = {}
    like: str | None = None
    imatrix: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    rounding: Rounding | None = None
    exclude: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    graft: tuple[Graft, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=2**64, strict=True)] = 0
    metadata: dict[str, Annotated[str | bool | int | float | list[str], BeforeValidator(_storable)]] = {}

    _source: tuple[str, str, str] = PrivateAttr(default=("", "recipe", "."))  # text, name, folder
    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _document: Document | None = PrivateAttr(default=None)
    _stages: tuple[Recipe, ...] = PrivateAttr(default=())
    _files: dict[str, str] = PrivateAttr(default_factory=dict)
    _changed: ClassVar[Callable[[Recipe, Mapping[str, Any]], Recipe]]  # given by `load`, which checks recipes

    @property
    def text(self) -> str:
        """The recipe as it was written."""
        return self._source[0]

    @property
    def origin(self) -> str:
        """The file name the recipe came from, for messages."""
        return self._source[1]

    @property
    def folder(self) -> str:
        """The folder that relative model paths start from."""
        return self._source[2]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was read but has no effect, one line each."""
        return self._warnings

    @property
    def stages(self) -> tuple[Recipe, ...]:
        """The other documents of the recipe's file, each behind those that it is made from; all have names."""
        return self._stages

    def with_changes(self, **changes: Any) -> Recipe:
        """A checked recipe in which these keys have other values; None leaves a key out.

            recipe.with_changes(out_type="Q6_K", parameters={"weight": 0.3})

        A value takes the place of all that stood under its key, and is written as in `load_recipe` of a mapping. The
        recipe keeps its folder, its name, and the documents that it is made from. RecipeError says what does not fit.
        """
        return self._changed(changes)

    def __repr__(self) -> str:
        models = [str(reference) for reference in self.references() if reference != self.base_model]
        base = f", base {self.base_model}" if self.base_model is not None else ""
        kind = f", {self.out_type}" if self.out_type else ""
        shown_models = ", ".join(models[:4]) + (f" and {len(models) - 4} more" if len(models) > 4 else "")
        return f"<Recipe {' + '.join(self.methods)}: {shown_models}{base}{kind}>"

    def __str__(self) -> str:
        return repr(self)

    def with_files(self, files: Mapping[str, str]) -> Recipe:
        """The same recipe, with GGUF files in the place of the stages of these names."""
        copy = self.model_copy()
        copy._files = dict(files)
        return copy

    def in_folder(self, folder: str) -> Recipe:
        """The same recipe, with relative model paths that start from another folder."""
        copy = self.model_copy()
        copy._source = (self.text, self.origin, folder)
        return copy

    def locate(self, reference: ModelReference) -> ModelReference:
        """A reference with the file of the stage that it names; any other stays as it is."""
        return replace(reference, path=self._files.get(reference.path, reference.path))

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

    def method_for(self, tensor: str) -> str:
        """The merge method of a tensor of the result (a GGUF name)."""
        rule = self.merge_method.rule_for(tensor)
        assert rule is not None, "the last rule of merge_method has no filter"
        return str(rule.value)

    def where(self, location: Location) -> str:
        """A place of the recipe as `file:line:column`; "" in one that a command made of its arguments."""
        return self._document.where(location) if self._document else self.origin

    def complaint(self, location: Location, what: str) -> str:
        """A complaint about the recipe, with its place in front of it."""
        where = self.where(location)
        return f"{where}: {what}" if where else what

    @contextmanager
    def blamed(self, location: Location) -> Iterator[None]:
        """While the block runs, errors get this place of the recipe in front of their complaints."""
        try:
            yield
        except GgufmergeError as error:
            raise error.at(self.where(location))  # noqa: B904 - it is the same error

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


# what pydantic would show has the validators of all fields in it
Recipe.__signature__ = Signature(
    [
        Parameter(name, Parameter.KEYWORD_ONLY, default=Parameter.empty if field.is_required() else field.get_default())
        for name, field in Recipe.model_fields.items()
    ]
)
