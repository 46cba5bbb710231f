"""What rounding will leave of a tensor's change, found out on a sample of its rows before they are written.

A merge changes the weights of a model: of its base, or where the method has none, of the model that the result is
closest to. Written on the grid on which that model's weights lie already, a change of less than half a step is lost.
So where a recipe leaves the rounding open, the sample is rounded to the nearest, and if clearly less than 90 % of its
change is left, the tensor is rounded stochastically (`engine.rounding`). `docs/lora.md` has the measurements behind
this rule.

The sample is a few runs of neighbouring rows, the same for every chunk size and number of threads. They are encoded as
the whole tensor will be, so the figures are those of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggufmerge.engine.encode import TensorEncoder, squares
from ggufmerge.engine.plan import PlannedTensor, Rounding
from ggufmerge.engine.survival import Survival
from ggufmerge.quants import codec
from ggufmerge.types import TensorType

_RUN = 2048  # values of a run, as whole rows
_VALUES_PER_RUN = 1 << 19
_MAX_RUNS = 8  # of a matrix
_GROUP = 32  # values of a block, for the statistics
_LOST = 0.9  # share of the change; where the nearest leaves clearly less, chance is better
_GOOD = 0.95, 0.8  # share and noise; where neither is worse, no other type is tried
WIDER = ("Q6_K", "Q8_0")  # file types to propose

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """A run of rows as the merge makes them, float32 [k, n].

    start: the number of the first in the tensor.
    references: the same rows, without adapters, of the inputs that `rows` may be a change of, by the input's number.
    stored: as in `TensorEncoder.encode`.
    """

    start: int
    rows: Floats
    references: Mapping[int, Floats]
    stored: Sequence[tuple[Floats, NDArray[np.uint8]]] = ()

    def copy(self) -> Sample:
        """The same in arrays of its own instead of a thread's scratch."""
        bases = {i: base.copy() for i, base in self.references.items()}
        return Sample(self.start, self.rows.copy(), bases, [(values.copy(), raw) for values, raw in self.stored])


@dataclass(frozen=True)
class Finding:
    """What a survey says of a tensor, or of one expert.

    rounding: how it is to be rounded.  reference: the number of the input whose change it is.
    survival: of the change, scaled up to the whole.  wider: the same in other file types, where a wider one would help.
    """

    rounding: Rounding
    reference: int
    survival: Survival
    wider: Mapping[str, Survival] = field(default_factory=dict)


def sample_runs(rows: int, n: int, matrix: int) -> list[tuple[int, int]]:
    """Rows [start, stop) of each run of the sample; none crosses the end of a matrix, which has `matrix` rows."""
    count = min(_MAX_RUNS, max(1, rows * n // _VALUES_PER_RUN))
    length = min(matrix, -(-_RUN // max(1, n)))
    starts = []
    for k in range(count):
        row = (2 * k + 1) * rows // (2 * count)
        first = row - row % matrix
        starts.append(min(max(first, row - length // 2), first + matrix - length))
    return [(start, start + length) for start in dict.fromkeys(starts)] if rows and length else []


def survey(
    tensor: PlannedTensor,
    encoder: TensorEncoder,
    samples: Sequence[Sample],
    stored_types: Mapping[int, TensorType],
    wider: Callable[[], Mapping[str, TensorType]],
) -> Finding:
    """Round a sample of a tensor and decide how the whole is rounded.

    stored_types: of the inputs that are references.  wider: the tensor's type in wider file types, by their names.
    """
    reference = _closest(samples)
    trial = _Trial(tensor, encoder, samples, reference, stored_types[reference])
    keeps_type = trial.own == tensor.type
    rounding: Rounding = tensor.rounding if tensor.rounding != "auto" and keeps_type else "nearest"
    survival, loses = trial.of(tensor.type, rounding)
    if survival.energy == 0:
        return Finding(rounding, reference, survival)
    if tensor.rounding == "auto" and keeps_type and loses:
        rounding = "stochastic"
        survival, _ = trial.of(tensor.type, rounding)
    tried = {}
    if survival.share < _GOOD[0] or survival.noise > _GOOD[1]:
        known = {tensor.type: survival}
        for name, kind in wider().items():
            if kind not in known:
                known[kind], _ = trial.of(kind, "nearest")
            tried[name] = known[kind]
    return Finding(rounding, reference, survival, tried)


def _closest(samples: Sequence[Sample]) -> int:
    """The number of the reference that the rows differ least from."""
    candidates = samples[0].references
    if len(candidates) == 1:
        return next(iter(candidates))
    return min(candidates, key=lambda i: sum(squares(s.rows, s.references[i])[0] for s in samples))


class _Trial:
    """Writes a sample in types. own: the type in which the reference is stored."""

    def __init__(
        self, tensor: PlannedTensor, encoder: TensorEncoder, samples: Sequence[Sample], reference: int, own: TensorType
    ) -> None:
        self.tensor, self.encoder, self.samples, self.reference, self.own = tensor, encoder, samples, reference, own

    def of(self, kind: TensorType, rounding: Rounding) -> tuple[Survival, bool]:
        """What is left of the change, scaled up to the whole, and whether that is clearly too little.

        The latter is judged in units of the blocks' own size, so that a few blocks of large weights do not decide.
        """
        parts = [self._blocks(s, kind, rounding) for s in self.samples]
        kept, energy, error, plain, size = np.concatenate(parts, axis=1)
        values = sum(s.rows.size for s in self.samples)
        scale = self.tensor.rows // self.tensor.experts * self.tensor.n / values
        k, e, r, p = (float(x.sum()) * scale for x in (kept, energy, error, plain))
        share, _ = _ratio(kept, energy)
        survival = Survival(k, e, r, p, scale * scale * float(np.square(kept - share * energy).sum()))
        size[size == 0] = 1
        even, doubt = _ratio(kept / size, energy / size)
        return survival, even + 2 * doubt < _LOST

    def _blocks(self, s: Sample, kind: TensorType, rounding: Rounding) -> NDArray[np.float64]:
        """float64 [5, blocks]: sums over blocks of (written - base) * change, change^2, (written - wanted)^2, the same
        of the base written alone, and base^2."""
        base = s.references[self.reference]
        back = self._written(s, s.rows, kind, rounding)
        wanted, old = s.rows.astype(np.float64), base.astype(np.float64)
        change = wanted - old
        plain = np.zeros_like(old) if kind == self.own else self._written(s, base, kind, "nearest") - old
        terms = np.stack([(back - old) * change, change * change, (back - wanted) ** 2, plain * plain, old * old])
        group = _GROUP if base.shape[1] % _GROUP == 0 else base.shape[1]
        sums: NDArray[np.float64] = terms.reshape(5, -1, group).sum(2)
        return sums

    def _written(self, s: Sample, rows: Floats, kind: TensorType, rounding: Rounding) -> Floats:
        """Rows as they are read back from the tensor's own type, or from another one without an importance matrix."""
        tensor = self.tensor
        if kind == tensor.type:
            base = s.references[self.reference]
            return self.encoder.read_back(s.start, rows, base=base, stored=s.stored, rounding=rounding)
        scaled = rows + np.float32(tensor.offset) if tensor.offset else rows
        raw = np.empty((len(rows), kind.row_bytes(tensor.n)), np.uint8)
        back = np.empty_like(rows)
        codec(kind).encode(scaled, raw, None)
        codec(kind).dequantize(raw, back)
        return back - np.float32(tensor.offset) if tensor.offset else back


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> tuple[float, float]:
    """The ratio of two sums over blocks, and its standard error; 1 and 0 for sums of nothing."""
    total = float(bottom.sum())
    if not total:
        return 1.0, 0.0
    ratio = float(top.sum()) / total
    return ratio, float(np.sqrt(np.square(top - ratio * bottom).sum())) / total
