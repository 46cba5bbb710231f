"""The recipe language as a typed schema: mergekit's keys, and a few of our own.

The models here accept exactly what a recipe may say; `load.py` turns their complaints into messages with line numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from ggufmerge.recipe import settings
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.settings import Setting

Reference = Annotated[ModelReference, BeforeValidator(ModelReference.parse)]
Parameters = dict[str, Annotated[Setting, BeforeValidator(settings.parse)]]


def _dtype(value: Any) -> Any:
    if isinstance(value, str):
        value = value.removeprefix("torch.")
        return {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}.get(value, value)
    return value


DType = Annotated[Literal["float32", "float16", "bfloat16"], BeforeValidator(_dtype)]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class Model(_Node):
    """One entry of `models:`."""

    model: Reference
    parameters: Parameters = {}


class SliceSource(_Node):
    """One model's share of an output slice: layers [start, end) of it."""

    model: Reference
    layer_range: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    parameters: Parameters = {}


class OutputSlice(_Node):
    """Consecutive layers of the result, merged from the same number of layers of each source."""

    sources: Annotated[list[SliceSource], Field(min_length=1)]
    base_model: Reference | None = None
    parameters: Parameters = {}


class Recipe(_Node):
    """A whole recipe. Exactly one of `models` and `slices` is given."""

    merge_method: str
    base_model: Reference | None = None
    models: Annotated[list[Model], Field(min_length=1)] | None = None
    slices: Annotated[list[OutputSlice], Field(min_length=1)] | None = None
    parameters: Parameters = {}
    dtype: DType | None = None
    out_dtype: DType | None = None
    tokenizer_source: Literal["base", "union"] | Reference | None = None
    chat_template: str | None = None
    name: str | None = None

    # Not in mergekit
    out_type: str | None = None
    tensor_types: dict[str, str] = {}
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    metadata: dict[str, str | bool | int | float | list[str]] = {}

    _source: tuple[str, str, str] = PrivateAttr(default=("", "recipe", "."))  # text, name, folder
    _warnings: tuple[str, ...] = PrivateAttr(default=())

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

    def output_slices(self) -> list[tuple[list[Model | SliceSource], ModelReference | None, Parameters]]:
        """The recipe as output slices: (sources, base, parameters). `models` is one slice of all layers."""
        if self.slices is None:
            return [(list(self.models or ()), self.base_model, {})]
        return [(list(s.sources), s.base_model or self.base_model, s.parameters) for s in self.slices]
