"""Weights with known values to quantize: other seeds and layers than scripts/calibrate_noise.py takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggufmerge.files.reader import open_gguf
from ggufmerge.noise.steps import groups_of, squared_steps
from ggufmerge.quants import dequantize, quantize
from ggufmerge.quants.units import units
from ggufmerge.types import TensorType
from tests.models import smollm2

Floats = NDArray[np.float32]
Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]

SYNTHETIC: dict[str, Draw] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "laplace": lambda rng, size: rng.laplace(size=size),
    "t5": lambda rng, size: rng.standard_t(5, size),
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "rows of many sizes": lambda rng, size: rng.standard_normal(size) * np.exp(rng.normal(0, 0.4, (size[0], 1))),
}
LAYERS = ("blk.6.ffn_down.weight", "blk.25.ffn_down.weight", "blk.13.attn_q.weight")


def synthetic(kind: str, rows: int, n: int, seed: int = 7) -> Floats:
    x = SYNTHETIC[kind](np.random.default_rng(seed), (rows, n))
    return (x * (0.031 / np.sqrt(np.mean(x * x)))).astype(np.float32)


def layer(name: str, values: int) -> Floats:
    """Rows of 512 of a layer of SmolLM2, anywhere between the points of the grid on which its file has them."""
    with open_gguf(smollm2()) as file:
        tensor = file.tensors[name]
        raw = tensor.raw_rows(0, values // tensor.n)
        step = np.repeat(np.abs(units(raw, tensor.type)), tensor.type.block_size, axis=1)
        x = dequantize(raw, tensor.type, tensor.n)
    x += step * np.random.default_rng(11).uniform(-0.5, 0.5, x.shape).astype(np.float32)
    return np.ascontiguousarray(x.reshape(-1)[: x.size // 512 * 512].reshape(-1, 512))


def stored(x: Floats, kind: TensorType, matrix: Floats | None = None) -> tuple[Floats, Floats]:
    """What is read back of weights, and the squares of the steps of their groups."""
    raw = quantize(x, kind, matrix)
    values = dequantize(raw, kind, x.shape[1])
    squares = np.empty((len(x), groups_of(x.shape[1])), np.float32)
    squared_steps(raw, values, kind, squares)
    return values, squares
