"""Compiles the kernels that a plan needs before its threads start."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import is_prepared, note_prepared
from ggufmerge.methods import method as find_method
from ggufmerge.methods.api import run as merge_stack
from ggufmerge.methods.random import words
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan, PlannedTensor
from ggufmerge.planning.resolve import problem_of
from ggufmerge.quants import codec, encoders
from ggufmerge.quants.calibrated.moments import moments_of
from ggufmerge.quants.correlations import Correlation
from ggufmerge.quants.encoders import CALIBRATED, Piece, encoder
from ggufmerge.quants.figures import block_sums, kept_change, squares
from ggufmerge.quants.magnitude import magnitude
from ggufmerge.running import signal
from ggufmerge.running.effort import kernels_of, merge_kind
from ggufmerge.running.progress import Progress
from ggufmerge.running.rates import Meter, Rates
from ggufmerge.types import TensorType


def warm_up(plan: Plan, opened: Opened, meter: Meter, rates: Rates, progress: Progress) -> None:
    """Compile (or load from numba's cache) the kernels that a plan needs, on a row of 256 values, in one thread.

    Without it all threads would start by waiting for the same compiler.
    """
    n = 256
    rows = np.sin(np.arange(n, dtype=np.float32)).reshape(1, n)
    merged: dict[str, list[PlannedTensor]] = {merge_kind(t): [] for t in plan.tensors if t.action == "merge"}
    for tensor in {
        (t.method, len(t.inputs), tuple(t.shared.items())): t for t in plan.tensors if t.action == "merge"
    }.values():
        merged[merge_kind(tensor)].append(tensor)

    def prepare(kind: str) -> None:
        word, _, rest = kind.partition(" ")
        name, _, how = rest.partition(" ")
        if word == "read":
            stored = TensorType.parse(name)
            codec(stored).dequantize(np.zeros((1, stored.row_bytes(n)), np.uint8), np.empty_like(rows))
        elif word == "write":
            _write_once(TensorType.parse(name), how, rows)
        elif word == "survey":
            squares(rows, rows)
            block_sums(rows, rows, rows, rows)
        elif word == "signal":
            signal.warm_up(rows)
        elif word == "merge":
            for tensor in merged[kind]:
                _merge_once(tensor, rows)

    kernels = kernels_of(plan, opened.sources, opened.imatrix)
    new = [kind for kind in kernels if not is_prepared(kind)]
    if new:
        progress.compiling(new, sum(rates.of(f"compile {kind}") for kind in new))
    else:
        progress.phase("loading kernels")
    for kind in kernels:
        began = time.process_time()
        prepare(kind)
        meter.note(f"{'compile' if kind in new else 'load'} {kind}", 1, time.process_time() - began)
    note_prepared(new)


def _write_once(kind: TensorType, how: str, rows: NDArray[np.float32]) -> None:
    """Write a row of 256 values in a type, with an importance matrix ("weighted") and correlations ("calibrated") or
    not, and compare.
    """
    magnitude(rows)
    ones = np.ones(rows.shape[1], np.float32)
    encoders.warm_up(codec(kind), rows, ones if how else None)
    if CALIBRATED in how:
        moments = moments_of(ones, Correlation(loadings=0.5 * rows))
        raw = np.empty((1, kind.row_bytes(rows.shape[1])), np.uint8)
        encoder("nearest").encode(codec(kind), Piece(rows, weights=ones, moments=moments), raw)
    squares(rows, rows)
    kept_change(rows, rows, rows)
    if codec(kind).grid is not None:
        words(np.uint64(0), 0, rows.size)


def _merge_once(tensor: PlannedTensor, rows: NDArray[np.float32]) -> None:
    """Merge a row of 256 values as a tensor is merged."""
    keys = range(len(tensor.inputs) - tensor.has_base)
    problem = replace(problem_of(replace(tensor, shape=(rows.size,), experts=1), list(keys)), shape=(1, rows.size))
    stack = np.stack([np.roll(rows, i) for i in range(len(tensor.inputs))])
    merge_stack(find_method(tensor.method), problem, stack)
