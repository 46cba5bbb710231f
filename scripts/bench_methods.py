"""Measure the merge methods: nanoseconds per weight on one thread, of two models (and a base), in float32.

    python scripts/bench_methods.py                 this project's kernels, all passes and the merge
    python scripts/bench_methods.py --mergekit      mergekit's, in the environment of make_method_goldens.py

Weights come in chunks of 2^18 that are in memory, as a build hands them to a method after dequantizing; each figure is
the best of several runs. A reading is a pass over the dequantized weights, the merge included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROWS, N, CHUNKS = 64, 4096, 16

WEIGHTS = {"weight": [0.3, 0.6]}
PRUNED = {**WEIGHTS, "density": 0.5}
# method -> number of models, whether there is a base, parameters
CASES: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "linear": (2, False, WEIGHTS),
    "slerp": (1, True, {"t": 0.3}),
    "nuslerp": (2, False, WEIGHTS),
    "multislerp": (2, False, WEIGHTS),
    "karcher": (2, False, {}),
    "model_stock": (2, True, {}),
    "task_arithmetic": (2, True, WEIGHTS),
    "ties": (2, True, PRUNED),
    "dare_linear": (2, True, PRUNED),
    "dare_ties": (2, True, PRUNED),
    "della": (2, True, PRUNED),
    "della_linear": (2, True, PRUNED),
    "breadcrumbs": (2, True, PRUNED),
    "breadcrumbs_ties": (2, True, PRUNED),
    "sce": (2, True, {"select_topk": 0.5}),
    "ram": (2, True, {}),
    "ramplus_tl": (2, True, {}),
    "nearswap": (1, True, {"t": 0.01}),
    "arcee_fusion": (1, True, {}),
    "passthrough": (1, False, {"scale": [0.5]}),
}


def tensors() -> np.ndarray:
    """A base and two models that differ from it by 1 %, float32 [3, CHUNKS * ROWS, N]."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, CHUNKS * ROWS, N), np.float32)
    x[1:] = x[0] + np.float32(0.01) * x[1:]
    return x


def best(run: Callable[[], object], seconds: float) -> float:
    """Nanoseconds per weight of the fastest run."""
    run()
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken) / (CHUNKS * ROWS * N) * 1e9


def ours(name: str, x: np.ndarray) -> tuple[Callable[[], object], int]:
    """A run of the method over all chunks, and how often it reads them."""
    from ggufmerge.methods import method
    from ggufmerge.methods.api import problem
    from ggufmerge.methods.spec import Chunk

    models, has_base, parameters = CASES[name]
    chosen = method(name)
    inputs = x[: models + 1] if has_base else x[1 : models + 1]
    p = problem(chosen, inputs.shape, has_base, parameters)
    chunks = [Chunk(i, i * ROWS, ROWS, i * ROWS * N) for i in range(CHUNKS)]
    parts = [np.ascontiguousarray(inputs[:, c.row : c.row + ROWS]) for c in chunks]
    out = np.empty((ROWS, N), np.float32)
    readings = 0

    def run() -> None:
        nonlocal readings
        readings, passes, statistics = 1, chosen.passes(p), None
        try:
            reading = next(passes)
            while True:
                readings += 1
                result = reading.initial
                for part, chunk in zip(parts, chunks, strict=True):
                    result = reading.fold(result, reading.map(part, chunk))
                reading = passes.send(result)
        except StopIteration as end:
            statistics = end.value
        for part, chunk in zip(parts, chunks, strict=True):
            chosen.combine(part, p, statistics, chunk, out)

    run()
    return run, readings


def theirs(name: str, x: np.ndarray) -> Callable[[], object]:
    """A run of mergekit's method."""
    import torch
    from mergekit.merge_methods import merge_tensors

    torch.set_num_threads(1)
    models, has_base, parameters = CASES[name]
    inputs = [torch.from_numpy(t) for t in (x[: models + 1] if has_base else x[1 : models + 1])]
    base = 0 if has_base else None
    return lambda: merge_tensors(inputs, name, parameters=parameters, base_index=base, dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Nanoseconds per weight of each merge method, on one thread.")
    parser.add_argument("--mergekit", action="store_true", help="measure mergekit's kernels")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each method")
    parser.add_argument("methods", nargs="*", help="all of them unless named")
    arguments = parser.parse_args()
    x = tensors()
    for name in arguments.methods or CASES:
        if arguments.mergekit:
            print(f"| {name} | {best(theirs(name, x), arguments.seconds):.1f} |", flush=True)
        else:
            run, readings = ours(name, x)
            print(f"| {name} | {best(run, arguments.seconds):.1f} | {readings} |", flush=True)


if __name__ == "__main__":
    main()
