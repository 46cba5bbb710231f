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
from ggufmerge.noise.change import BINS, CLASSES, Estimate, add_pairs
from ggufmerge.noise.steps import groups_of, squared_steps
from ggufmerge.sources import TensorReader
from ggufmerge.sources.model import SourceTensor
from ggufmerge.sources.rounding import Gathering, is_exact
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
    inputs: Sequence[TensorReader], matrices: Sequence[str | None], runs: Sequence[tuple[int, int]]
) -> Shares:
    """float64 [models]: what share of the square of each model's difference from the base is a change of weights.

    inputs: of a tensor, the base first.  matrices: as in `Gathering`.  runs: the rows that are looked at.
    1 where nothing differs, where the difference is exact, and where it is nearly so.
    """
    readers = [reader for reader in inputs if isinstance(reader, SourceTensor)]
    assert len(readers) == len(inputs), "rows that are moved are not planned so"
    shares = np.ones(len(inputs) - 1)
    looked_at = [i for i, r in enumerate(readers) if i and not is_exact(readers[0].tensor, r.tensor)]
    if not looked_at:
        return shares
    used = [0, *looked_at]
    pairs = [(0, place) for place in range(1, len(used))]
    gathering = Gathering([readers[i] for i in used], [matrices[i] for i in used], pairs)
    for start, stop in runs:
        x = np.zeros((len(used), stop - start, readers[0].n), np.float32)
        for place, i in enumerate(used):
            readers[i].read(start, x[place])
        gathering.fold(gathering.partial(start, x))
    for i, found in zip(looked_at, gathering.found().estimates, strict=True):
        shares[i - 1] = _share(found)
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
