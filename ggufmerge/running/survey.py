"""What rounding will leave of a tensor's change, found out on a sample of its rows before they are written.

A merge changes the weights of a model: of its base, or where the method has none, of the model that the result is
closest to. Written on the grid on which that model's weights lie already, a change of less than half a step is lost.
So where a recipe leaves the rounding open, the sample is rounded to the nearest, and if less than 85 % of its
change is left, the tensor is rounded stochastically (`quants.encoders`). `docs/lora.md` has the measurements behind
this rule.

The sample is a few runs of neighbouring rows, the same for every chunk size and number of threads. They are encoded as
the whole tensor will be, so the figures are those of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan, PlannedTensor, Rounding
from ggufmerge.planning.survival import Survival
from ggufmerge.planning.tensor_types import types_in
from ggufmerge.quants import codec
from ggufmerge.quants.encoders import encoder as encoding
from ggufmerge.quants.encoders import encoder_names
from ggufmerge.quants.figures import block_sums, squares
from ggufmerge.running.encode import TensorEncoder
from ggufmerge.types import TensorType

_RUN = 2048  # values of a run, as whole rows
_VALUES_PER_RUN = 1 << 19  # of the tensor, where the first of them are clear
_MAX_RUNS = 8
_GROUP = 32  # values of a block, for the statistics
_LOST = 0.85  # share of the change; where the nearest leaves less, chance is better
_GOOD = 0.95, 0.8  # share and noise; where neither is worse, no other type is tried
WIDER = ("Q6_K", "Q8_0")  # file types to propose

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """A run of rows as the merge makes them, float32 [k, n].

    start: the number of the first in the tensor.
    references: the same rows, without adapters, of the inputs that `rows` may be a change of, by the input's number.
    blocks: the bytes of those that are stored in the tensor's type, uint8 [k, row bytes].
    stored: as in `TensorEncoder.encode`.
    """

    start: int
    rows: Floats
    references: Mapping[int, Floats]
    blocks: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)
    stored: Sequence[tuple[Floats, NDArray[np.uint8]]] = ()

    def copy(self) -> Sample:
        """The same in arrays of its own instead of a thread's scratch."""
        bases = {i: base.copy() for i, base in self.references.items()}
        return Sample(
            self.start, self.rows.copy(), bases, self.blocks, [(values.copy(), raw) for values, raw in self.stored]
        )


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

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """What `dataclasses.asdict` made of one; anything else is one of the usual errors of wrong types."""

        def survival(sums: Mapping[str, Any]) -> Survival:
            return Survival(**{name: float(value) for name, value in sums.items()})

        wider = {name: survival(sums) for name, sums in data["wider"].items()}
        rounding = str(data["rounding"])
        if rounding not in encoder_names():
            raise ValueError(f"{rounding} is no encoder")
        return cls(rounding, int(data["reference"]), survival(data["survival"]), wider)


def is_surveyed(tensor: PlannedTensor, *, adapted: bool) -> bool:
    """Whether a sample of a tensor is written before the whole is. adapted: whether adapters change its inputs."""
    return tensor.type.is_quantized and (tensor.action == "merge" or (tensor.action == "convert" and adapted))


def wider_types(plan: Plan, opened: Opened) -> dict[str, dict[str, TensorType]]:
    """The types of all tensors, by name, in the file types that may be proposed."""
    donor = opened.sources[0].metadata
    return {file_type: types_in(file_type, plan.tensors, plan.metadata, donor) for file_type in WIDER}


@lru_cache(1024)
def sample_runs(rows: int, n: int, matrix: int) -> tuple[tuple[int, int], ...]:
    """Rows [start, stop) of the runs of the largest sample, those to begin with first.

    None crosses the end of a matrix, which has `matrix` rows; the runs are spread evenly, and so are the first of them.
    """
    length = min(matrix, -(-_RUN // max(1, n)))
    if not rows or not length:
        return ()
    starts = []
    for k in (4, 1, 6, 2, 0, 7, 5, 3):  # of _MAX_RUNS parts
        row = (2 * k + 1) * rows // (2 * _MAX_RUNS)
        first = row - row % matrix
        starts.append(min(max(first, row - length // 2), first + matrix - length))
    return tuple((start, start + length) for start in dict.fromkeys(starts))


def survey(
    tensor: PlannedTensor,
    encoder: TensorEncoder,
    values: int,
    samples: Iterable[Sample],
    stored_types: Mapping[int, TensorType],
    wider: Callable[[], Mapping[str, TensorType]],
) -> Finding:
    """Round a sample of a tensor and decide how the whole, of `values` values, is rounded.

    samples: runs of rows, of which only as many are made as the decision needs; at least one.
    stored_types: of the inputs that are references.  wider: the tensor's type in wider file types, by their names.
    """
    enough = max(1, min(_MAX_RUNS, values // _VALUES_PER_RUN))
    trial = _Trial(tensor, encoder, stored_types)
    rounding: Rounding = "nearest"
    sums = _Sums()
    for sample in samples:
        trial.add(sample)
        if len(trial.samples) >= enough:
            if tensor.rounding != "auto" and (trial.keeps_type or not encoding(tensor.rounding).needs_grid):
                rounding = tensor.rounding
            sums = trial.of(tensor.type, rounding)
            if tensor.rounding != "auto" or not trial.keeps_type or sums.is_clear:
                break
    survival = sums.survival(values)
    if tensor.rounding == "auto" and trial.keeps_type and sums.even < _LOST and survival.energy:
        rounding = "stochastic"
        survival = trial.of(tensor.type, rounding).survival(values)
    tried = {}
    if survival.share + 2 * survival.uncertainty < _GOOD[0] or survival.noise > _GOOD[1]:
        known = {tensor.type: survival}
        for name, kind in wider().items():
            if kind not in known:
                known[kind] = trial.of(kind, "nearest", enough).survival(values)
            tried[name] = known[kind]
    return Finding(rounding, trial.reference, survival, tried)


class _Sums:
    """What writing a sample did, block by block: float64 [6, blocks] as `block_sums` makes them."""

    def __init__(self, blocks: NDArray[np.float64] | None = None) -> None:
        self._blocks = np.zeros((6, 0)) if blocks is None else blocks
        kept, energy, size = self._blocks[[0, 1, 4]]
        # in units of the blocks' own size, so that a few blocks of large weights do not decide
        scale = np.where(size == 0, 1, size)
        self.even, self._doubt = _ratio(kept / scale, energy / scale)

    @property
    def is_clear(self) -> bool:
        """Whether more of the sample would hardly tell another story."""
        return abs(self.even - _LOST) > 2 * self._doubt

    def survival(self, values: int) -> Survival:
        """Scaled up to so many values."""
        kept, energy, error, plain, _, count = self._blocks
        if not count.size:
            return Survival(0.0, 0.0)
        scale = values / float(count.sum())
        share, _ = _ratio(kept, energy)
        k, e, r, p = (float(x.sum()) * scale for x in (kept, energy, error, plain))
        with np.errstate(over="ignore", invalid="ignore"):  # as in _ratio
            return Survival(k, e, r, p, scale * scale * float(np.square(kept - share * energy).sum()))


class _Trial:
    """Writes a growing sample in types.

    reference: the number of the input that the first rows differ least from.
    keeps_type: whether the tensor has the type in which that is stored.
    """

    def __init__(self, tensor: PlannedTensor, encoder: TensorEncoder, stored_types: Mapping[int, TensorType]) -> None:
        self._tensor, self._encoder, self._types = tensor, encoder, stored_types
        self.samples: list[Sample] = []
        self._parts: dict[tuple[TensorType, Rounding], list[NDArray[np.float64]]] = {}
        self.reference, self.keeps_type = 0, False

    def add(self, sample: Sample) -> None:
        """The next run of rows."""
        if not self.samples:
            self.reference = _closest(sample)
            self.keeps_type = self._types[self.reference] == self._tensor.type
        self.samples.append(sample)

    def of(self, kind: TensorType, rounding: Rounding, limit: int | None = None) -> _Sums:
        """What is left of the change when the sample, or its first `limit` runs, are written in a type."""
        parts = self._parts.setdefault((kind, rounding), [])
        parts += [self._blocks(s, kind, rounding) for s in self.samples[len(parts) : limit]]
        return _Sums(np.concatenate(parts, axis=1))

    def _blocks(self, s: Sample, kind: TensorType, rounding: Rounding) -> NDArray[np.float64]:
        base = s.references[self.reference]
        back = self._written(s, s.rows, kind, rounding)
        plain = base if kind == self._types[self.reference] else self._written(s, base, kind, "nearest")
        group = _GROUP if base.shape[1] % _GROUP == 0 else base.shape[1]
        sums: NDArray[np.float64] = block_sums(*(x.reshape(-1, group) for x in (base, s.rows, back, plain)))
        return sums

    def _written(self, s: Sample, rows: Floats, kind: TensorType, rounding: Rounding) -> Floats:
        """Rows as they are read back from the tensor's own type, or from another one without an importance matrix."""
        tensor = self._tensor
        if kind == tensor.type:
            base, blocks = s.references[self.reference], s.blocks.get(self.reference)
            raw, _ = self._encoder.encode(s.start, rows, base=base, blocks=blocks, stored=s.stored, rounding=rounding)
            return self._encoder.values(s.start, raw, np.empty_like(rows))
        scaled = rows + np.float32(tensor.offset) if tensor.offset else rows
        raw = np.empty((len(rows), kind.row_bytes(tensor.n)), np.uint8)
        back = np.empty_like(rows)
        codec(kind).encode(scaled, raw, None)
        codec(kind).dequantize(raw, back)
        return back - np.float32(tensor.offset) if tensor.offset else back


def _closest(sample: Sample) -> int:
    """The number of the reference that the rows differ least from."""
    candidates = sample.references
    if len(candidates) == 1:
        return next(iter(candidates))
    return min(candidates, key=lambda i: squares(sample.rows, candidates[i])[0])


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> tuple[float, float]:
    """The ratio of two sums over blocks, and its standard error; 1 and 0 for sums of nothing."""
    total = float(bottom.sum())
    if not total:
        return 1.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # weights that the type cannot hold, which are refused later
        ratio = float(top.sum()) / total
        return ratio, float(np.sqrt(np.square(top - ratio * bottom).sum())) / total
