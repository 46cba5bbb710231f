"""How much of the difference between the base and each model is a change of weights, and how much is rounding.

Looked at in a sample of a matrix before a method merges it, for methods that heed it (`Method.with_signal`): a few runs
of neighbouring rows, the same for every chunk size and number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.methods.spec import Problem
from ggufmerge.noise.change import BINS, CLASSES, Estimate, Rounding, Stored, add_pairs, estimate
from ggufmerge.noise.steps import GROUP, groups_of, squared_steps
from ggufmerge.sources import TensorReader
from ggufmerge.sources.model import SourceTensor
from ggufmerge.sources.rounding import fill_steps, is_exact
from ggufmerge.types import TensorType

_RUNS = 16
_VALUES = 1 << 17  # of the whole sample
_CLEAN = 0.9  # share of change; with more than that the rounding errors are left out of account

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Heeded:
    """What a method made of the rounding errors in one model's difference from the base.

    model: its name for people.  change: the share of the square of the difference that is a change of weights.
    asked, used: parameters of the model that are not what the recipe says, as it says them, and as they were used.
    All numbers are means over the matrices of a stack.
    """

    model: str
    change: float
    asked: dict[str, float]
    used: dict[str, float]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Heeded:
        """What `dataclasses.asdict` made of one; anything else is one of the usual errors of wrong types."""
        asked, used = ({str(name): float(value) for name, value in data[key].items()} for key in ("asked", "used"))
        return cls(str(data["model"]), float(data["change"]), asked, used)

    @property
    def note(self) -> str:
        """In words."""
        used = " and ".join(f"{name} {self.asked[name]:.3g} became {value:.3g}" for name, value in self.used.items())
        return f"{self.model}: {used}: {self.change:.2g} of what differs from the base is change, the rest rounding"


def heeded_values(problem: Problem, used: Problem, labels: Sequence[str], shares: Shares) -> list[Heeded]:
    """What a method made of `problem`, for each model of which it uses other values; one for each name of a model."""
    found: dict[str, Heeded] = {}
    for i, label in enumerate(labels):
        asked, taken = _numbers(problem, i), _numbers(used, i)
        names = [name for name, value in asked.items() if value == value != taken[name]]
        if names:
            changed = ({name: values[name] for name in names} for values in (asked, taken))
            found.setdefault(label, Heeded(label, float(shares[i]), *changed))
    return list(found.values())


def _numbers(p: Problem, model: int) -> dict[str, float]:
    """The parameters of one model that are numbers, those that all share among them."""
    shared = {name: value for name, value in p.shared.items() if isinstance(value, float)}
    return shared | {name: float(values[model]) for name, values in p.models.items()}


def together(matrices: Sequence[Sequence[Heeded]]) -> list[Heeded]:
    """Of a tensor, model by model, what was made of each of its matrices."""
    found: dict[str, list[Heeded]] = {}
    for one in (heeded for matrix in matrices for heeded in matrix):
        found.setdefault(one.model, []).append(one)
    return [
        Heeded(model, fmean(h.change for h in own), _means([h.asked for h in own]), _means([h.used for h in own]))
        for model, own in found.items()
    ]


def _means(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {
        name: fmean(one[name] for one in values if name in one) for name in dict.fromkeys(n for v in values for n in v)
    }


def signal_runs(first: int, rows: int, n: int) -> list[tuple[int, int]]:
    """Rows [start, stop) of the runs in a matrix of so many rows of n values, which begins at row `first`."""
    count = min(_RUNS, rows)
    length = min(rows // count, max(1, _VALUES // (count * n))) if count else 0
    starts = [first + (2 * k + 1) * rows // (2 * count) - length // 2 for k in range(count)]
    return [(start, start + length) for start in starts]


def shares_of_change(
    inputs: Sequence[TensorReader], roundings: Sequence[Rounding], runs: Sequence[tuple[int, int]]
) -> Shares:
    """float64 [models]: what share of the square of each model's difference from the base is a change of weights.

    inputs: of a tensor, the base first.  roundings: of each.  runs: the rows that are looked at.
    1 where nothing differs, where the difference is exact, and where it is nearly so.
    """
    count = len(inputs)
    exact = [is_exact(inputs[0], model) for model in inputs[1:]]
    shares = np.ones(count - 1)
    looked_at = [i for i in range(1, count) if not exact[i - 1]]
    if not looked_at:
        return shares
    n = inputs[0].n
    pairs = np.array([(0, i) for i in looked_at], np.int64)
    blocks = np.array([_block(roundings[0], roundings[i], n) for i in looked_at], np.int64)
    sums, same = np.zeros((len(pairs), CLASSES, BINS, 4)), np.zeros((len(pairs), 2))
    squares = np.zeros((count, 2))
    for start, stop in runs:
        x = np.zeros((count, stop - start, n), np.float32)
        steps = np.zeros((count, stop - start, groups_of(n)), np.float32)
        for i in [0, *looked_at]:
            reader = inputs[i]
            assert isinstance(reader, SourceTensor), "others are exact"
            reader.read(start, x[i])
            fill_steps(reader, start, x[i], steps[i])
            squares[i] += float(np.vdot(x[i], x[i])), n // steps.shape[2] * float(steps[i].sum(dtype=np.float64))
        add_pairs(x, steps, pairs, blocks, sums, same)
    stored = [Stored(rounding, *sizes) for rounding, sizes in zip(roundings, squares.tolist(), strict=True)]
    for i, of_pair in zip(looked_at, sums, strict=True):
        shares[i - 1] = _share(estimate(of_pair, stored[0], stored[i]))
    return shares


def warm_up(rows: NDArray[np.float32]) -> None:
    """Compile what a look at a sample needs, on a row of whole blocks, float32 [1, n]."""
    x, n = np.stack([rows, rows]), rows.shape[1]
    steps = np.ones((2, 1, groups_of(n)), np.float32)
    kind = TensorType.IQ4_NL  # whose steps take a kernel of their own
    squared_steps(np.zeros((1, kind.row_bytes(n)), np.uint8), rows, kind, steps[0])
    sums = np.zeros((1, CLASSES, BINS, 4))
    add_pairs(x, steps, np.array([(0, 1)], np.int64), np.ones(1, np.int64), sums, np.zeros((1, 2)))


def _share(found: Estimate) -> float:
    share = min(max(found.change / found.seen, 0.0), 1.0) if found.seen else 1.0
    return float(f"{share:.3g}") if share < _CLEAN else 1.0  # so that the last bits of logarithms play no part


def _block(base: Rounding, model: Rounding, n: int) -> int:
    """How many groups a block of both has."""
    fits = base.kind == model.kind and n % GROUP == 0
    return max(base.kind.block_size // GROUP, 1) if fits else 1
