"""How far two models are from each other, tensor by tensor; with a base, how their changes of it relate."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.engine.changes import Pairs, Signal
from ggufmerge.errors import PlanError
from ggufmerge.files.metadata import KeyValues
from ggufmerge.files.shards import model_name
from ggufmerge.kernels import kernel
from ggufmerge.methods.chunks import chunks_of
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import check_found
from ggufmerge.planning import checks
from ggufmerge.recipe import ModelReference
from ggufmerge.running.scheduler import Job, Step, drive
from ggufmerge.sources import Source
from ggufmerge.sources.layouts import to_one_layout
from ggufmerge.sources.rounding import Found, Gathering, matrix_of

_CHUNK = 1 << 18  # values
_SUMS = 12  # numbers that the figures of a tensor are made of: those of `_measure`, and how many values it has
_Part = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # of a `Gathering`
_LAYER = re.compile(r"blk\.(\d{1,5})\.", re.ASCII)


@dataclass(frozen=True)
class TensorDifference:
    """Two tensors of one name and shape, dequantized.

    relative: RMS of the difference over the RMS of the first, infinite when the first is zero.
    largest: the largest absolute difference.
    equal: share of the values that are the same.
    cosine: of the two tensors, or of their differences from a base if there is one; NaN when one of them is zero.
    same_sign: share of the values that both changed which they changed in the same direction; NaN without a base.
    signal: the same beside the rounding of the files.
    base_type: of the base's tensor; None without a base.
    """

    name: str
    shape: tuple[int, ...]
    types: tuple[str, str]
    relative: float
    largest: float
    equal: float
    cosine: float
    same_sign: float
    signal: Signal
    base_type: str | None = None

    @property
    def identical(self) -> bool:
        """Whether all values are the same."""
        return self.equal == 1 or 0 in self.shape


# the figures of a tensor and what they are made of
_Found = dict[str, tuple[TensorDifference, NDArray[np.float64], Found]]


@dataclass(frozen=True)
class Change:
    """How far a model is from another over many weights.

    relative: RMS of the difference over the RMS of the other, infinite when that is zero. changed: share of the weights
    that are not the same.
    """

    relative: float
    changed: float


@dataclass(frozen=True)
class Totals:
    """Of all common tensors, or of those of a layer, together.

    values: how many weights.  difference: from the first model to the second.
    first, second: from the base to each of the models; None without one.
    cosine, same_sign, signal: as of a tensor.
    """

    values: int
    difference: Change
    first: Change | None
    second: Change | None
    largest: float
    cosine: float
    same_sign: float
    signal: Signal


@dataclass(frozen=True)
class Comparison:
    """Every common tensor in the order of the first model, and the names that only one of the two has.

    first, second, base: the files.  total: of all common tensors.  layers: of the common tensors of each layer that has
    some, by its number.  metadata: the keys that only one of the two has, or with another value.
    others: further models, whose changes of the base are in each `signal` behind those of the two.
    left_out: tensors of both that the base or one of the others lacks.
    rounded: whether any of the weights are stored in a quantized type.
    """

    tensors: tuple[TensorDifference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    first: str
    second: str
    base: str | None
    total: Totals
    layers: dict[int, Totals]
    metadata: tuple[str, ...]
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    rounded: bool = False

    @property
    def identical(self) -> bool:
        """Whether the two have the same tensors with the same values; types and metadata may differ."""
        return not self.only_first and not self.only_second and all(t.identical for t in self.tensors)

    def __repr__(self) -> str:
        what = "identical" if self.identical else f"{100 * self.total.difference.relative:.2g} % apart"
        return (
            f"<Comparison {model_name(self.first)} with {model_name(self.second)}: {len(self.tensors)} tensors, {what}>"
        )


def compare(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *others: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Comparison:
    """Compare two models (paths, or references such as base.gguf+adapter.gguf), streaming.

    others: further models that were tuned from the base, to see how all their changes relate.

    PlanError when they have different architectures, or tensors of one name and different shapes, or there are more
    than two and no base; DamageError when one holds NaN or infinity, which have no distance.
    """
    if others and base is None:
        raise PlanError("more than two models are compared by how they change a base: name it with --base")
    paths = [first, second, *([base] if base is not None else []), *others]
    check_found(("", path) for reference in paths for path in ModelReference.from_argument(reference).paths)
    with ExitStack() as opened:
        sources = []
        for path in paths:
            sources.append(open_source(ModelReference.from_argument(path)))
            opened.callback(sources[-1].close)
        return _compared(sources, base is not None, threads)


def _compared(sources: Sequence[Source], with_base: bool, threads: int | None) -> Comparison:
    """A comparison of models that are open: two, the base if there is one, further ones. See `compare`."""
    to_one_layout(sources)
    checks.check_architectures(sources)
    a, b = sources[:2]
    common = [name for name in a.tensors if all(name in s.tensors for s in sources)]
    for name in common:
        shapes = {s.tensors[name].shape for s in sources}
        if len(shapes) > 1:
            listed = ", ".join(f"{s.label} {list(s.tensors[name].shape)}" for s in sources)
            raise PlanError(f"{name}: the shapes differ ({listed}); only models of one shape can be compared")
    found: _Found = {}
    models = [i for i in range(len(sources)) if not (with_base and i == 2)]
    pairs = Pairs(models, 2 if with_base else None)
    drive(_jobs(sources, common, pairs, found), threads or os.cpu_count() or 1)
    layers: dict[int, list[str]] = {}
    for name in common:
        if match := _LAYER.match(name):
            layers.setdefault(int(match[1]), []).append(name)

    def totals(names: Sequence[str]) -> Totals:
        largest = max((found[name][0].largest for name in names), default=0.0)
        sums = sum((found[name][1] for name in names), np.zeros(_SUMS))
        changes = sum((found[name][2] for name in names), Found.nothing(len(pairs.pairs), max(3, len(sources))))
        return _totals(sums, largest, with_base, pairs.signal(changes))

    return Comparison(
        tensors=tuple(found[name][0] for name in common),
        only_first=tuple(name for name in a.tensors if name not in b.tensors),
        only_second=tuple(name for name in b.tensors if name not in a.tensors),
        first=a.reference,
        second=b.reference,
        base=sources[2].reference if with_base else None,
        total=totals(common),
        layers={number: totals(layers[number]) for number in sorted(layers)},
        metadata=tuple(sorted(_differing(a.metadata, b.metadata))),
        others=tuple(source.reference for source in sources[3:]),
        left_out=tuple(name for name in a.tensors if name in b.tensors and name not in found),
        rounded=any(source.tensors[name].type.is_quantized for name in common for source in sources),
    )


def _differing(a: KeyValues, b: KeyValues) -> Iterator[str]:
    """Keys that only one of the two has, or with another value."""
    return (key for key in {*a, *b} if key not in a or key not in b or a.raw(key) != b.raw(key))


def _totals(sums: NDArray[np.float64], largest: float, with_base: bool, signal: Signal) -> Totals:
    error, energy, equal, dot, first, second, agreeing, both, base, moved_first, moved_second, values = sums
    return Totals(
        values=int(values),
        difference=_change(error, energy, values - equal, values),
        first=_change(first, base, moved_first, values) if with_base else None,
        second=_change(second, base, moved_second, values) if with_base else None,
        largest=largest,
        cosine=_ratio(dot, math.sqrt(first * second)),
        same_sign=_ratio(agreeing, both) if with_base else math.nan,
        signal=signal,
    )


def _change(error: float, energy: float, moved: float, values: float) -> Change:
    return Change(math.sqrt(error / energy) if energy else (0.0 if not error else math.inf), moved / max(values, 1.0))


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _jobs(sources: Sequence[Source], names: Sequence[str], pairs: Pairs, found: _Found) -> Iterator[Job]:
    for name in names:
        yield _job(sources, name, pairs, found)


def _job(sources: Sequence[Source], name: str, pairs: Pairs, found: _Found) -> Job:
    inputs = [source.open_stored(name) for source in sources]
    n, rows = inputs[0].n, inputs[0].rows
    chunks = chunks_of(rows, n, _CHUNK)
    sums = np.zeros(_SUMS)
    largest = 0.0
    count = max(3, len(inputs))  # without a base, a row of zeros is one
    gathering = Gathering(
        [*inputs, *([None] * (count - len(inputs)))],
        [*(matrix_of(source.metadata) for source in sources), *([None] * (count - len(inputs)))],
        pairs.pairs,
    )

    def task(i: int) -> tuple[NDArray[np.float64], float, _Part]:
        x = np.zeros((count, chunks[i].rows, n), np.float32)
        for k, source in enumerate(inputs):
            source.read(chunks[i].row, x[k])
        totals = np.zeros(_SUMS)
        return totals, _measure(x, totals, pairs.base is not None), gathering.partial(chunks[i].row, x)

    def fold(partial: tuple[NDArray[np.float64], float, _Part]) -> None:
        nonlocal sums, largest
        sums = sums + partial[0]
        largest = max(largest, partial[1])
        gathering.fold(partial[2])

    yield Step(len(chunks), task, fold)
    sums[-1] = rows * n
    error, energy, equal, dot, first, second, agreeing, both, *_ = sums
    tensors = [source.tensors[name] for source in sources]
    changes = gathering.found()
    difference = TensorDifference(
        name,
        tensors[0].shape,
        (str(tensors[0].type), str(tensors[1].type)),
        math.sqrt(error / energy) if energy else (0.0 if not error else math.inf),
        largest,
        equal / max(rows * n, 1),
        dot / math.sqrt(first * second) if first and second else math.nan,
        agreeing / both if pairs.base is not None and both else math.nan,
        pairs.signal(changes),
        str(tensors[2].type) if pairs.base is not None else None,
    )
    found[name] = difference, sums, changes


@kernel
def _measure(x, sums, with_base):  # type: ignore[no-untyped-def]
    """Add to `sums` what the figures of a tensor are made of, and give the largest absolute difference.

    x: float32 [3 or more, rows, n], the two models, the base (zeros without one), and others that play no part here.
    """
    largest = 0.0
    for i in range(x.shape[1]):
        first, second, zero = x[0, i], x[1, i], x[2, i]
        # counting and adding up apart: a compiler makes vectors of the first only
        equal = agreeing = both = moved_first = moved_second = 0
        for j in range(x.shape[2]):
            a, b, base = first[j], second[j], zero[j]
            equal += a == b
            if with_base:
                agreeing += ((a > base) & (b > base)) | ((a < base) & (b < base))
                both += (a != base) & (b != base)
                moved_first += a != base
                moved_second += b != base
        error = energy = dot = squares_first = squares_second = squares_base = 0.0
        for j in range(x.shape[2]):
            wide_a, wide_b = np.float64(first[j]), np.float64(second[j])
            error += (wide_a - wide_b) * (wide_a - wide_b)
            energy += wide_a * wide_a
            wide_base = np.float64(zero[j])
            p, q = wide_a - wide_base, wide_b - wide_base
            dot += p * q
            squares_first += p * p
            squares_second += q * q
            squares_base += wide_base * wide_base
            largest = max(largest, abs(wide_a - wide_b))
        sums[0] += error
        sums[1] += energy
        sums[2] += equal
        sums[3] += dot
        sums[4] += squares_first
        sums[5] += squares_second
        sums[6] += agreeing
        sums[7] += both
        sums[8] += squares_base
        sums[9] += moved_first
        sums[10] += moved_second
    return largest
