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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import nearest
from ggufmerge.methods.parameters import (
    LEFT_OUT,
    REQUIRED,
    BindError,
    ClashError,
    Complaint,
    Parameter,
    ScopeError,
    Value,
)
from ggufmerge.text import shown

Stack = NDArray[np.float32]  # [inputs, rows, n]
Partial = TypeVar("Partial")  # what a pass makes of a chunk
Folded = TypeVar("Folded")  # what a pass makes of the tensor
Statistics = TypeVar("Statistics")  # what a method knows of a tensor when it merges


class Base(Enum):
    """What a method does with `base_model` (mergekit 0.1.5's contracts)."""

    REQUIRED = "required"  # differences are taken from it; it stands first in the stack
    OPTIONAL = "optional"
    MODEL = "model"  # "ignored" in mergekit: when given, it is one more ordinary input


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

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        inputs: int,
        has_base: bool,
        shared: Mapping[str, Value],
        models: Mapping[str, Sequence[Value]],
        keys: Sequence[int] | NDArray[np.uint64] = (),
    ) -> Problem:
        """A problem of values that are known to be right. A model's None becomes NaN."""
        arrays = {name: np.array(values, np.float64) for name, values in models.items()}
        return cls(shape, inputs, has_base, shared, arrays, np.asarray(keys, np.uint64))

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
class Pass(Generic[Partial, Folded]):
    """One reading of the whole tensor. map(x, chunk) runs in a worker; fold(so_far, partial) in chunk order.

    `fold` starts from `initial`, and may change what it is given and return it.
    """

    map: Callable[[Stack, Chunk], Partial]
    fold: Callable[[Folded, Partial], Folded]
    initial: Folded

    def read(self) -> Generator[Pass[Any, Any], Any, Folded]:
        """The folded result, within the passes of a method: `total = yield from Pass(...).read()`."""
        result: Folded = yield self
        return result


Passes = Generator[Pass[Any, Any], Any, Statistics]


class Method(ABC, Generic[Statistics]):
    """A merge method. Subclasses set the class attributes and override the functions they need."""

    name: str
    summary: str = ""  # one line
    reference: str = ""  # paper or origin
    advice: str = ""  # when to use it, a sentence or two for people
    example: tuple[tuple[str, Value], ...] = ()  # parameters of a first recipe, beside those that are required
    example_models: int = 2  # models of a first recipe that are not the base
    base: Base = Base.REQUIRED
    min_models: int = 1  # models that are not the base (for Base.MODEL: all inputs)
    max_models: int | None = None
    pair: bool = False  # the base is one of the two models that are merged, not what they were tuned from
    parameters: tuple[Parameter, ...] = ()

    def check(self, p: Problem) -> None:
        """Raise ClashError when these parameter values cannot be used together; called while planning."""

    def untouched(self, p: Problem) -> int | None:
        """Position in the stack of the input that the result equals exactly, whatever the weights; None if merged.

        Such a tensor is copied byte for byte when its type stays, so no rounding happens (t = 0, weight 1, lambda 0).
        """
        return None

    def heeded(self, p: Problem) -> str:
        """What `with_signal` may make of this problem, in words for the plan; empty when it leaves it alone."""
        return ""

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        """The problem to solve where differences from the base hold rounding errors: with other values of `p.models`.

        shares: of the square of each model's difference from the base what share is a change of its weights, float64
        [models]; the rest is the rounding of the two files.  With shares of 1 the problem stays what it is.
        """
        return p

    def passes(self, p: Problem) -> Passes[Statistics]:
        """Yield the passes needed before `combine`; each yield gives back that pass's folded result.

        Other processes replay them from these results (`methods.drive`): they are data that pickles and is not changed
        any more, and nothing else is carried from one pass to the next. A method that needs no pass overrides
        `statistics` instead.
        """
        yield from ()
        return self.statistics(p)

    def statistics(self, p: Problem) -> Statistics:
        """What `combine` takes besides the weights, of a method that need not read them first."""
        nothing: Any = None  # of a method without statistics
        return nothing

    @abstractmethod
    def combine(self, x: Stack, p: Problem, statistics: Statistics, chunk: Chunk, out: NDArray[np.float32]) -> None:
        """Write the merged chunk, float32 [rows, n], to `out`. `statistics` is what `passes` returned."""

    def notes(self, p: Problem, statistics: Statistics) -> list[str]:
        """Decisions taken by numbers that only a run knows (slerp fell back to lerp), for the report."""
        return []

    def parameter(self, name: str) -> Parameter | None:
        return next((q for q in self.parameters if q.name == name), None)

    def named(self, name: str, per_model: bool = False) -> Parameter:
        """The parameter of this name; ValueError suggests the nearest name.

        per_model: each model is to have its own value; ScopeError where all share one.
        """
        found = self.parameter(name)
        if found is None:
            names = [q.name for q in self.parameters]
            hint = nearest(name, names) if names else f"{self.name} has no parameters"
            raise ValueError(f"{self.name} has no parameter {shown(name)}: {hint}")
        if per_model and found.scope == "shared":
            raise ScopeError(f'"{name}" of {self.name} is one value for all models')
        return found

    def check_base(self, has_base: bool) -> None:
        """ValueError when there is no base, and the method needs one."""
        if self.base is Base.REQUIRED and not has_base:
            to_one = "goes from a base to one model"
            raise ValueError(f"{self.name} {to_one if self.pair else 'takes differences from a base'}")

    def check_models(self, count: int, besides: str | None = None) -> None:
        """ValueError when the method does not merge so many models that are not the base.

        besides: what is said behind the number of models instead of "besides the base".
        """
        if besides is None:
            besides = "" if self.base is Base.MODEL else " besides the base"
        if self.pair and count > 1 and self.max_models is not None:
            raise ValueError(f"{self.name} goes from a base to one model, not to {count}")
        if count < self.min_models:
            raise ValueError(f"{self.name} needs at least {_of(self.min_models, 'model')}{besides}, not {count}")
        if self.max_models is not None and count > self.max_models:
            raise ValueError(f"{self.name} takes at most {_of(self.max_models, 'model')}{besides}, not {count}")

    def bind(
        self,
        shape: tuple[int, int],
        inputs: int,
        has_base: bool,
        values: Mapping[str, Any],
        keys: Sequence[int] | NDArray[np.uint64] = (),
    ) -> Problem:
        """The problem of merging this many inputs of one shape with these values, and with the defaults of the others.

        values: parameter -> its value; of a per-model one also a list with a value for each model that is not the
        base, LEFT_OUT for one that has none.  shape, keys: see `Problem`.
        BindError says what is wrong with the values: unknown names, wrong types, values out of bounds, missing ones,
        the number of the models, and what does not go together.
        """
        complaints: list[Complaint] = []
        count = inputs - has_base
        with _noted(complaints):
            self.check_base(has_base)
        with _noted(complaints):
            self.check_models(count)
        for name, given in values.items():
            with _noted(complaints, name):
                self.named(name, per_model=_is_list(given))
        shared: dict[str, Value] = {}
        models: dict[str, list[Value]] = {}
        for q in self.parameters:
            given = values.get(q.name, LEFT_OUT)
            if q.scope == "model":
                models[q.name] = self._own_values(q, given, count, complaints)
            elif given is not LEFT_OUT and not _is_list(given):
                with _noted(complaints, q.name):
                    shared[q.name] = q.parse(given)
            elif given is LEFT_OUT and q.default is REQUIRED:
                what = f"no {q.name} is given, which {self.name} needs"
                complaints.append(Complaint(what, q.name, missing=True))
            else:
                shared[q.name] = q.default
        if complaints:
            raise BindError(*complaints)
        p = Problem.of(shape, inputs, has_base, shared, models, keys)
        with _noted(complaints):
            self.check(p)
        if complaints:
            raise BindError(*complaints)
        return p

    def _own_values(self, q: Parameter, given: Any, count: int, complaints: list[Complaint]) -> list[Value]:
        """The value of each of `count` models; what is wrong with them goes to `complaints`."""
        if given is not LEFT_OUT and not _is_list(given):
            with _noted(complaints, q.name):
                return [q.parse(given)] * count
            return []
        values = [LEFT_OUT] * count if given is LEFT_OUT else list(given)
        if len(values) != count:
            complaints.append(
                Complaint(f'"{q.name}" has {_of(len(values), "value")} for {_of(count, "model")}', q.name)
            )
            return []
        found: list[Value] = []
        needed = q.default is REQUIRED
        for i, value in enumerate(values):
            if value is not LEFT_OUT:
                with _noted(complaints, q.name, i):
                    found.append(q.parse(value))
            elif needed or (q.together and any(other is not LEFT_OUT for other in values)):
                why = f"which {self.name} needs" if needed else "though another model has one"
                complaints.append(Complaint(f"has no {q.name}, {why}", q.name, i, missing=True))
            else:
                found.append(q.default)
        return found


@contextmanager
def _noted(complaints: list[Complaint], about: str = "", model: int | None = None) -> Iterator[None]:
    """What a block complains of is added to `complaints`, with the parameter to blame."""
    try:
        yield
    except ValueError as error:
        blamed = error.about if isinstance(error, ClashError) else about
        complaints.append(Complaint(str(error), blamed, model))


def _is_list(value: Any) -> bool:
    """Whether a value is one for each model."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _of(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
