"""How far two models are from each other, tensor by tensor; with a base, how their changes of it relate."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.engine import checks
from ggufmerge.engine.scheduler import Job, Stage, drive
from ggufmerge.errors import PlanError
from ggufmerge.kernels import kernel
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source, open_source
from ggufmerge.sources.references import check_found

_CHUNK = 1 << 18  # values


@dataclass(frozen=True)
class TensorDifference:
    """Two tensors of one name and shape, dequantized.

    relative: RMS of the difference over the RMS of the first, infinite when the first is zero.
    largest: the largest absolute difference.
    equal: share of the values that are the same.
    cosine: of the two tensors, or of their differences from a base if there is one; NaN when one of them is zero.
    same_sign: share of the values that both changed which they changed in the same direction; NaN without a base.
    """

    name: str
    shape: tuple[int, ...]
    types: tuple[str, str]
    relative: float
    largest: float
    equal: float
    cosine: float
    same_sign: float


@dataclass(frozen=True)
class Comparison:
    """Every common tensor in the order of the first model, and the names that only one of the two has."""

    tensors: tuple[TensorDifference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Comparison:
    """Compare two models (paths, or references such as base.gguf+adapter.gguf), streaming.

    PlanError when they have different architectures, or tensors of one name and different shapes; DamageError when
    one holds NaN or infinity, which have no distance.
    """
    paths = [first, second] if base is None else [first, second, base]
    check_found(("", path) for reference in paths for path in ModelReference.from_argument(reference).paths)
    with ExitStack() as opened:
        sources = []
        for path in paths:
            sources.append(open_source(ModelReference.from_argument(path)))
            opened.callback(sources[-1].close)
        return _compared(sources, threads)


def _compared(sources: Sequence[Source], threads: int | None) -> Comparison:
    """A comparison of models that are open; see `compare`."""
    checks.check_architectures(sources)
    a, b = sources[:2]
    common = [name for name in a.tensors if all(name in s.tensors for s in sources)]
    for name in common:
        shapes = {s.tensors[name].shape for s in sources}
        if len(shapes) > 1:
            listed = ", ".join(f"{s.label} {list(s.tensors[name].shape)}" for s in sources)
            raise PlanError(f"{name}: the shapes differ ({listed}); only models of one shape can be compared")
    found: dict[str, TensorDifference] = {}
    drive(_jobs(sources, common, found), threads or os.cpu_count() or 1)
    return Comparison(
        tuple(found[name] for name in common),
        tuple(name for name in a.tensors if name not in b.tensors),
        tuple(name for name in b.tensors if name not in a.tensors),
    )


def _jobs(sources: Sequence[Source], names: Sequence[str], found: dict[str, TensorDifference]) -> Iterator[Job]:
    for name in names:
        yield _job(sources, name, found)


def _job(sources: Sequence[Source], name: str, found: dict[str, TensorDifference]) -> Job:
    inputs = [source.open_tensor(name) for source in sources]
    n, rows = inputs[0].n, inputs[0].rows
    step = max(1, _CHUNK // max(n, 1))
    starts = range(0, rows, step)
    sums = np.zeros(8)
    largest = 0.0

    def task(i: int) -> tuple[NDArray[np.float64], float]:
        count = min(step, rows - starts[i])
        x = np.zeros((3, count, n), np.float32)  # without a base, its row of zeros is one
        for k, source in enumerate(inputs):
            source.read(starts[i], x[k])
        totals = np.zeros(8)
        return totals, _measure(x, totals)

    def fold(partial: tuple[NDArray[np.float64], float]) -> None:
        nonlocal sums, largest
        sums = sums + partial[0]
        largest = max(largest, partial[1])

    yield Stage(len(starts), task, fold)
    error, energy, equal, dot, first, second, agreeing, both = sums
    tensors = [source.tensors[name] for source in sources]
    found[name] = TensorDifference(
        name,
        tensors[0].shape,
        (str(tensors[0].type), str(tensors[1].type)),
        math.sqrt(error / energy) if energy else (0.0 if not error else math.inf),
        largest,
        equal / max(rows * n, 1),
        dot / math.sqrt(first * second) if first and second else math.nan,
        agreeing / both if len(sources) == 3 and both else math.nan,
    )


@kernel
def _measure(x, sums):  # type: ignore[no-untyped-def]
    """Add to `sums` what the figures of a tensor are made of, and give the largest absolute difference.

    x: float32 [3, rows, n], the two models and the base.
    """
    largest = 0.0
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            a, b, base = np.float64(x[0, i, j]), np.float64(x[1, i, j]), np.float64(x[2, i, j])
            p, q = a - base, b - base
            sums[0] += (a - b) * (a - b)
            sums[1] += a * a
            sums[2] += a == b
            sums[3] += p * q
            sums[4] += p * p
            sums[5] += q * q
            sums[6] += (p * q) > 0
            sums[7] += (p != 0) & (q != 0)
            largest = max(largest, abs(a - b))
    return largest
