"""What rounding will leave of a tensor's change, found out on a sample of its rows before they are written.

A merge changes the weights of a model: of its base, or where the method has none, of the model that the result is
closest to. Written on the grid on which that model's weights lie already, a change of less than half a step is lost.
So where a recipe leaves the rounding open, the sample is rounded to the nearest, and if less than 80 % of its change is
left, the tensor is rounded stochastically (`engine.rounding`). `docs/lora.md` has the measurements behind this rule.

The sample is a few runs of neighbouring rows, the same for every chunk size and number of threads. They are encoded as
the whole tensor will be, so the figures are those of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggufmerge.engine.encode import Figures, TensorEncoder
from ggufmerge.engine.plan import PlannedTensor, Rounding
from ggufmerge.engine.survival import LOW_SURVIVAL, Survival
from ggufmerge.quants import codec
from ggufmerge.types import TensorType

_RUN = 2048  # values of a run, as whole rows
_VALUES_PER_RUN = 1 << 18
_MAX_RUNS = 8  # of a matrix
WIDER = ("Q6_K", "Q8_0")  # file types to propose
_ENOUGH = 0.95  # share of a change; where that is left, no other type is tried

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
    wider: Mapping[str, TensorType],
) -> Finding:
    """Round a sample of a tensor and decide how the whole is rounded.

    stored_types: of the inputs that are references.  wider: the tensor's type in wider file types, by their names.
    """
    reference = min(samples[0].references, key=lambda i: sum(_distance(s.rows, s.references[i]) for s in samples))
    values = sum(s.rows.size for s in samples)
    scale = tensor.rows // tensor.experts * tensor.n / values

    def total(rounding: Rounding, kind: TensorType) -> Survival:
        sums, plain = Figures(), 0.0
        for s in samples:
            base = s.references[reference]
            if kind == tensor.type:
                sums.add(encoder.figures(s.start, s.rows, base, stored=s.stored, rounding=rounding))
            else:
                sums.add(_in_type(kind, s.rows, base, tensor.offset))
            if kind != own and kind == tensor.type:
                plain += encoder.figures(s.start, base, None).error
            elif kind != own:
                plain += _in_type(kind, base, base, tensor.offset).error
        return Survival(sums.kept * scale, sums.change * scale, sums.error * scale, plain * scale, values)

    own = stored_types[reference]
    rounding: Rounding = tensor.rounding if tensor.rounding != "auto" and own == tensor.type else "nearest"
    survival = total(rounding, tensor.type)
    if survival.energy == 0:
        return Finding(rounding, reference, survival)
    if tensor.rounding == "auto" and own == tensor.type and survival.share < LOW_SURVIVAL:
        rounding = "stochastic"
        survival = total(rounding, tensor.type)
    tried = {}
    if survival.share < _ENOUGH or survival.noise > _ENOUGH:
        known = {tensor.type: survival}
        for name, kind in wider.items():
            if kind not in known:
                known[kind] = total("nearest", kind)
            tried[name] = known[kind]
    return Finding(rounding, reference, survival, tried)


def _distance(rows: Floats, base: Floats) -> float:
    return float(np.square(rows.astype(np.float64) - base).sum())


def _in_type(kind: TensorType, rows: Floats, base: Floats, offset: float) -> Figures:
    """The figures of writing rows in another type, to the nearest and without an importance matrix."""
    scaled = rows + np.float32(offset) if offset else rows
    raw = np.empty((len(rows), kind.row_bytes(rows.shape[1])), np.uint8)
    back = np.empty_like(rows)
    codec(kind).encode(scaled, raw, None)
    codec(kind).dequantize(raw, back)
    if offset:
        back -= np.float32(offset)
    wanted = rows.astype(np.float64)
    change = wanted - base
    return Figures(
        float(np.square(wanted - back).sum()),
        float(np.square(wanted).sum()),
        float((change * (back.astype(np.float64) - base)).sum()),
        float(np.square(change).sum()),
    )
