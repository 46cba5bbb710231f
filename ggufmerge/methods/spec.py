"""What a merge method is: a declarative description, and pure functions on float32 chunks.

A method sees a stack of inputs `x`, float32 [inputs, rows, n] in C order, cut from the same rows of every model: the
base first when the method uses one (`Base.REQUIRED`, or `Base.OPTIONAL` and given), then the other models in recipe
order. It never sees files, types or threads. All methods work per tensor (mergekit's rule); a mixture-of-experts stack
comes as one problem per expert.

Numbers that need the whole tensor (norms, k-th magnitudes, counts) are gathered in passes before the merge. A pass
maps chunks to partial results, in any thread, and folds them in chunk order, so a fold may depend on the order of the
rows but never on how they were cut into chunks: float sums are kept per row and added row by row; integer counts
may be added in any way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Stack = NDArray[np.float32]  # [inputs, rows, n]
Value = float | bool | int | str | None


class Base(Enum):
    """What a method does with `base_model` (mergekit 0.1.5's contracts)."""

    REQUIRED = "required"  # differences are taken from it; it stands first in the stack
    OPTIONAL = "optional"
    MODEL = "model"  # "ignored" in mergekit: when given, it is one more ordinary input


REQUIRED: Any = object()  # a parameter without a default


@dataclass(frozen=True)
class Parameter:
    """A number or switch that a recipe may set.

    scope: "shared" has one value per output tensor; "model" has one per model that is not the base (per input for
    methods with `Base.MODEL`).
    low, high: inclusive bounds, None when unbounded.  usual: the range that makes sense where no bound is.
    together: of a per-model parameter: its default holds only where no model has a value; one that is left out while
    others have theirs was forgotten.
    example: a value for messages.
    """

    name: str
    scope: Literal["shared", "model"]
    type: type[float] | type[bool] | type[int] | type[str]
    doc: str
    default: Value = REQUIRED
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    usual: tuple[float, float] | None = None
    together: bool = False
    example: str = "1"


class ClashError(ValueError):
    """Parameter values that cannot be used together. about: the parameter to blame, "" for the number of models."""

    def __init__(self, what: str, about: str = "") -> None:
        super().__init__(what)
        self.about = about


@dataclass(frozen=True)
class Problem:
    """One tensor (or one expert of a stack) to merge: the parameters that hold for it, without any weights.

    shape: (rows, n) of the tensor; a 1-D tensor is a single row.
    has_base: whether x[0] is the base.
    shared: shared parameter -> value.  models: per-model parameter -> float64 array, one value for each input that is
    not the base, in stack order.
    keys: one uint64 per input that is not the base, the key of its random stream: a hash of seed, tensor name and
    model, so a mask depends on nothing else.
    """

    shape: tuple[int, int]
    inputs: int
    has_base: bool
    shared: Mapping[str, Value]
    models: Mapping[str, NDArray[np.float64]]
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def others(self) -> int:
        """Number of inputs that are not the base."""
        return self.inputs - self.has_base

    def number(self, name: str) -> float:
        """The value of a shared parameter that is a number."""
        value = self.shared[name]
        assert isinstance(value, (int, float))
        return float(value)


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in its tensor: rows [row, row + rows); `start` is the element index of its first value.

    index: the chunk's number, the same in every pass of one run (another chunk size gives other numbers, so it may
    be used to look up what an earlier pass gathered, never to influence the result).
    """

    index: int
    row: int
    rows: int
    start: int

    @property
    def end(self) -> int:
        """The row behind the last one."""
        return self.row + self.rows


@dataclass(frozen=True)
class Pass:
    """One reading of the whole tensor. map(x, chunk) runs in a worker; fold(so_far, partial) in chunk order.

    `fold` starts from `initial`, and may change what it is given and return it.
    """

    map: Callable[[Stack, Chunk], Any]
    fold: Callable[[Any, Any], Any]
    initial: Any = None


Passes = Generator[Pass, Any, Any]


class Method(ABC):
    """A merge method. Subclasses set the class attributes and override the functions they need."""

    name: str
    summary: str  # one line
    reference: str = ""  # paper or origin
    advice: str = ""  # when to use it, a sentence or two for people
    example: tuple[tuple[str, Value], ...] = ()  # parameters of a first recipe, beside those that are required
    example_models: int = 2  # models of a first recipe that are not the base
    base: Base = Base.REQUIRED
    min_models: int = 1  # models that are not the base (for Base.MODEL: all inputs)
    max_models: int | None = None
    pair: bool = False  # the base is one of the two models that are merged, not what they were tuned from
    parameters: tuple[Parameter, ...] = ()

    def check(self, p: Problem) -> None:  # noqa: B027 - most methods have nothing to refuse
        """Raise ClashError when these parameter values cannot be used together; called while planning."""

    def untouched(self, p: Problem) -> int | None:
        """Position in the stack of the input that the result equals exactly, whatever the weights; None if merged.

        Such a tensor is copied byte for byte when its type stays, so no rounding happens (t = 0, weight 1, lambda 0).
        """
        return None

    def passes(self, p: Problem) -> Passes:
        """Yield the passes needed before `combine`; each yield gives back that pass's folded result.

        Other processes replay them from these results (`methods.drive`): they are data that pickles and is not changed
        any more, and nothing else is carried from one pass to the next.
        """
        return None
        yield

    @abstractmethod
    def combine(self, x: Stack, p: Problem, statistics: Any, chunk: Chunk, out: NDArray[np.float32]) -> None:
        """Write the merged chunk, float32 [rows, n], to `out`. `statistics` is what `passes` returned."""

    def notes(self, p: Problem, statistics: Any) -> list[str]:
        """Decisions taken by numbers that only a run knows (slerp fell back to lerp), for the report."""
        return []

    def parameter(self, name: str) -> Parameter | None:
        return next((q for q in self.parameters if q.name == name), None)
