"""How much of a change of weights is left after it was rounded to a type, and how large the rounding noise is.

written - base = share * change + what has nothing to do with the change. A type whose steps are larger than the change
either loses it (rounded to the nearest) or adds noise that is larger than it (rounded stochastically).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ggufmerge.planning.plan import PlannedRounding, PlannedSource, PlannedTensor
from ggufmerge.quants import grid_of
from ggufmerge.text import counted, size
from ggufmerge.types import TensorType

LOW_SURVIVAL = 0.8  # share of a change; below it the result is worth a warning
_UNSURE = 0.03  # standard error of a share, above which it is told
HIGH_NOISE = 1.0  # relative to the change; above it the result is worth a warning
_ORDINARY = 0.01  # RMS of an ordinary adapter's or tune's change, relative to that of the weights
_STOCHASTIC_NOISE = (
    0.8  # E|x| of a standard normal: the variance, in steps, that rounding adds to a change far below one
)


@dataclass(frozen=True)
class Survival:
    """What is left of a change of weights, delta = wanted - base: sums over values that can be added up.

    kept: of (written - base) * delta.  energy: of delta^2. Their ratio is the coefficient of the projection of what
    happened onto what was wanted: 1 when nothing was lost, 0 when rounding has put every weight back to its old value.
    error: of (written - wanted)^2.  plain: the same error of writing the base, without any change; 0 where it keeps
    its bytes.
    spread: the variance of `kept - share * energy`, as the sums are scaled up from a sample; 0 if all values were seen.
    """

    kept: float
    energy: float
    error: float = 0.0
    plain: float = 0.0
    spread: float = 0.0

    @property
    def share(self) -> float:
        """kept / energy; 1 for a change of nothing."""
        return self.kept / self.energy if self.energy else 1.0

    @property
    def noise(self) -> float:
        """RMS of the error that writing the change adds to that of the base alone, relative to the change.

        Where the type changes both errors are of one size, and of their difference only what is clearly there counts.
        """
        added = self.error - self.plain
        return math.sqrt(added / self.energy) if self.energy and added > 0.1 * self.plain else 0.0

    @property
    def uncertainty(self) -> float:
        """Standard error of `share` as a figure from a sample; 0 where all values were looked at."""
        return math.sqrt(self.spread) / self.energy if self.energy else 0.0

    @property
    def is_poor(self) -> bool:
        """Whether so little of the change is left, or so much noise is beside it, that the user should know."""
        return self.is_lost or self.noise > HIGH_NOISE

    @property
    def is_lost(self) -> bool:
        """Whether so little of the change is left, beyond doubt, that the user should know."""
        return self.share + 2 * self.uncertainty < LOW_SURVIVAL

    def __add__(self, other: Survival) -> Survival:
        return Survival(
            self.kept + other.kept,
            self.energy + other.energy,
            self.error + other.error,
            self.plain + other.plain,
            self.spread + other.spread,
        )


@dataclass(frozen=True)
class TypeSurvival:
    """The changes of all tensors of one type together.

    tensors: how many were looked at, of which `stochastic` were rounded stochastically.
    survival: of their changes.  wider: file types in which more would be left, and what.
    sizes: bytes of the whole file in these, about.
    """

    type: str
    tensors: int
    stochastic: int
    survival: Survival
    wider: Mapping[str, Survival] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """In words: what survived, and what the change stands beside."""
        some = f", {self.stochastic} of them" if self.stochastic < self.tensors else ","
        how = f"{some} rounded stochastically" if self.stochastic else ""
        return f"{self.type}: {self.left('survived')} ({counted(self.tensors, 'tensor')}{how})"

    def left(self, verb: str) -> str:
        """How much of the change "survived" or "would survive", and the noise beside it."""
        noise = self.survival.noise
        beside = f", with noise {as_large(noise)}" if noise >= 0.05 else ""
        within = f" (± {100 * self.survival.uncertainty:.0f})" if self.survival.uncertainty > _UNSURE else ""
        return f"{_percent(self.survival.share)}{within} of the change {verb}{beside}"

    def advice(self) -> str:
        """What a poor result could be instead, as a warning; recipes have the same options as keys."""
        better = [f"--type {name} keeps {_figures(s)}{self._sized(name)}" for name, s in self.wider.items()]
        ways = better or ["an adapter that is applied at run time keeps all of it"]
        if self.survival.is_lost and not self.stochastic:
            ways.insert(0, "--rounding stochastic keeps it where models keep their type")
        noise = self.survival.noise
        poor = [f"{_percent(1 - self.survival.share)} of the change is lost"] * self.survival.is_lost
        poor += [f"the noise of rounding is {as_large(noise)} as the change"] * (noise > HIGH_NOISE)
        return f"{self.type}: {' and '.join(poor)}: {'; '.join(ways)}"

    def _sized(self, name: str) -> str:
        """The size of the file in one of the wider types, in words."""
        return f" (a file of about {size(self.sizes[name])})" if name in self.sizes else ""


def by_type(
    tensors: Iterable[PlannedTensor],
    survival: Mapping[str, Survival],
    stochastic: Collection[str],
    wider: Mapping[str, Mapping[str, Survival]],
    sizes: Mapping[str, int],
) -> list[TypeSurvival]:
    """The figures of quantized tensors, by type in the order of the file; tensors without a change are left out.

    survival, wider: by tensor.  stochastic: the tensors that were rounded so.  sizes: bytes of a file in wider types.
    """
    groups: dict[str, list[str]] = {}
    for t in tensors:
        if t.name in survival and survival[t.name].energy and t.type.is_quantized:
            groups.setdefault(str(t.type), []).append(t.name)
    found = []
    for kind, names in groups.items():
        file_types = dict.fromkeys(ft for name in names for ft in wider.get(name, ()))
        found.append(
            TypeSurvival(
                kind,
                len(names),
                sum(name in stochastic for name in names),
                total(survival[name] for name in names),
                # a tensor that needs no wider type would have no less in it
                {ft: total(wider.get(name, {}).get(ft, survival[name]) for name in names) for ft in file_types},
                {ft: sizes[ft] for ft in file_types if ft in sizes},
            )
        )
    return found


def advice(kept: Iterable[TypeSurvival]) -> list[str]:
    """Warnings of poor results, and what they could be instead."""
    return [found.advice() for found in kept if found.survival.is_poor]


def total(parts: Iterable[Survival]) -> Survival:
    """Of all of them together."""
    return sum(parts, Survival(0.0, 0.0))


def expectations(
    tensors: Iterable[PlannedTensor], sources: Sequence[PlannedSource], adapted: Callable[[PlannedTensor], bool]
) -> list[str]:
    """Warnings of what rounding will do to the changes of a merge, as far as headers tell: a line for each type.

    Where all inputs of a tensor are one file's, with different adapters, the change is an adapter's and lies on top of
    weights that are on the type's grid. An ordinary one is 1 % of the weights, and their size is known from the steps.
    adapted: whether an adapter changes an input of a tensor.
    """
    groups: dict[tuple[TensorType, PlannedRounding], int] = {}
    for t in tensors:
        if _has_change(t) and grid_of(t.type) and _is_on_grid(t, sources) and adapted(t):
            groups[t.type, t.rounding] = groups.get((t.type, t.rounding), 0) + 1
    lines = []
    for (kind, rounding), count in groups.items():
        grid = grid_of(kind)
        assert grid is not None, "as asked above"
        change = _ORDINARY / grid.typical_step
        share, noise = _kept_by_nearest(change), math.sqrt(_STOCHASTIC_NOISE / change)
        where = f"{kind} ({counted(count, 'tensor')})"
        if rounding == "nearest" and share < LOW_SURVIVAL:
            lines.append(
                f"{where}: rounded to the nearest, a change of 1 % of the weights, as of an ordinary adapter, keeps "
                f"about {_percent(share)} of itself; rounding: stochastic keeps all of it, out_type: Q8_0 nearly all "
                "(an estimate)"
            )
        elif rounding != "nearest" and share < LOW_SURVIVAL and noise > HIGH_NOISE:
            lines.append(
                f"{where}: a change of 1 % of the weights, as of an ordinary adapter, is less than a step; rounded "
                f"stochastically it survives, with noise about {noise:.1g} times as large; out_type: Q8_0 has less "
                "(an estimate)"
            )
    return lines


def unknown(tensors: Iterable[PlannedTensor], sources: Sequence[PlannedSource]) -> str:
    """The types of which headers do not tell what will be left of the changes, in a line; empty when there are none."""
    kinds = dict.fromkeys(
        str(t.type) for t in tensors if _has_change(t) and t.type.is_quantized and not _is_on_grid(t, sources)
    )
    if not kinds:
        return ""
    return f"how much of the changes survives in {', '.join(kinds)} depends on the weights; the build measures it"


def _has_change(tensor: PlannedTensor) -> bool:
    return tensor.action != "copy"


def _is_on_grid(tensor: PlannedTensor, sources: Sequence[PlannedSource]) -> bool:
    """Whether the weights are those of one file, which keep their type, changed by adapters only."""
    inputs = {(sources[i.source].path, i.tensor) for i in tensor.inputs}
    adapted = any(sources[i.source].adapters for i in tensor.inputs)
    return adapted and len(inputs) == 1 and tensor.keeps_type


def _kept_by_nearest(change: float) -> float:
    """Share of a normally distributed change that is left when weights on a grid are rounded to its nearest point.

    change: its RMS, in steps of the grid. The sum of E[d; |d| > k + 1/2] / change^2 over the whole steps k.
    """
    peaks = (math.exp(-0.5 * ((k + 0.5) / change) ** 2) for k in range(20))
    return min(1.0, 2 / change * sum(peaks) / math.sqrt(2 * math.pi))


def _figures(s: Survival) -> str:
    return f"{_percent(s.share)}" + (f" with noise {as_large(s.noise)}" if s.noise >= 0.05 else "")


def as_large(ratio: float) -> str:
    """A ratio of sizes in words.

    >>> [as_large(ratio) for ratio in (0.24, 1.02, 12.3)]
    ['0.24 times as large', 'as large', '12 times as large']
    """
    times = f"{ratio:.2g}"
    return "as large" if times == "1" else f"{times} times as large"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
