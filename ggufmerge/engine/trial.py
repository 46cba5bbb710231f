"""What would be left of the changes of a plan, tried out on a few of its tensors before anything is written.

Headers tell the size of an ordinary change and of the steps of a type, not the size of this change, so an estimate from
them may be far off. Samples of two tensors of each type are near to what the build will find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggufmerge.architectures.stacks import layer_of
from ggufmerge.errors import GgufmergeError
from ggufmerge.kernels import is_prepared
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan, PlannedTensor
from ggufmerge.planning.survival import TypeSurvival
from ggufmerge.running.effort import is_one_tensor, kernels_of, rank_of, work_of
from ggufmerge.running.rates import Rates
from ggufmerge.running.run import foresee
from ggufmerge.running.survey import is_surveyed

TRIED = 2  # tensors of each type
_SECONDS = 2.0  # of work that somebody who asks for a plan is made to wait for


@dataclass(frozen=True)
class Trial:
    """What would be left, by type as in `BuildReport.kept`. changing: how many tensors of each type change."""

    kept: tuple[TypeSurvival, ...]
    changing: dict[str, int]

    def lines(self) -> list[str]:
        """In words, a line for each type."""
        return [
            f"{found.type}: about {found.left('would survive')} "
            f"({found.tensors} of {self.changing[found.type]} tensors tried)"
            for found in self.kept
        ]


def to_try(plan: Plan, opened: Opened) -> list[PlannedTensor]:
    """A few tensors of each quantized type that change, out of the middle of the model."""
    found: list[PlannedTensor] = []
    for kind in plan.types():
        changing = [t for t in _changing(plan, opened) if t.type == kind and layer_of(t.name) is not None]
        found += changing[len(changing) // 2 :][:TRIED]
    return found


def try_out(plan: Plan, opened: Opened, rates: Rates, *, chunk: int, seconds: float | None = None) -> Trial | None:
    """What writing a plan would leave of its changes; None when finding out takes more than `seconds` of work, by
    default two, needs kernels that were never compiled here, or fails, which the build will tell.

    chunk: as in `run`.
    """
    changing = dict(Counter(str(t.type) for t in _changing(plan, opened)))
    tried = to_try(plan, opened)
    if not tried:
        return None if changing else Trial((), {})
    part = replace(plan, tensors=tuple(tried))
    kernels = kernels_of(part, opened.sources, opened.imatrix)
    most = _SECONDS if seconds is None else seconds
    if not all(map(is_prepared, kernels)) or _takes(part, opened, rates, kernels, chunk) > most:
        return None
    try:
        return Trial(tuple(foresee(plan, opened, tried)), changing)
    except GgufmergeError:
        return None


def _changing(plan: Plan, opened: Opened) -> list[PlannedTensor]:
    surveyed = [t for t in plan.tensors if is_surveyed(t, adapted=rank_of(t, opened.sources) > 0)]
    return [t for t in surveyed if not is_one_tensor(t, opened)]


def _takes(part: Plan, opened: Opened, rates: Rates, kernels: Sequence[str], chunk: int) -> float:
    """Seconds of one thread: the kernels are loaded, and a method's passes read all of a tensor before its sample."""
    work = work_of(part, opened, rates, chunk=chunk)
    sampled = sum(t.surveyed + t.passes * t.pass_ for t in work.tensors.values())
    return sampled + sum(rates.of(f"load {kind}") for kind in kernels)
