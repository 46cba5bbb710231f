"""Stochastic rounding: on the grid of the blocks, on average where the weights are, the same however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufmerge.methods.random import words
from ggufmerge.quants import codec, dequantize, encoders, grid_of, quantize
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
UNIFORM = {kind: grid.group for kind in TensorType if (grid := grid_of(kind))}


def round_on_grid(base: Floats, rows: Floats, kind: TensorType, key: int, start: int) -> Floats:
    """With the words of a stream from one place on."""
    luck = words(np.uint64(key), start, rows.size).reshape(rows.shape)
    return encoders.round_on_grid(codec(kind), base, rows, luck)


def stored(kind: TensorType, rows: int = 8, n: int = 256) -> Floats:
    """Weights as a file of this type has them."""
    x = np.random.default_rng(0).standard_normal((rows, n)).astype(np.float32)
    return dequantize(quantize(x, kind), kind, n)


def coarsest_step(values: Floats) -> float:
    """Of the grids through the smallest and the largest value, the coarsest that has all the others on it, too."""
    x = values.astype(np.float64) - values.min()
    return next(x.max() / k for k in range(1, 257) if np.allclose(x * k / x.max(), np.rint(x * k / x.max()), atol=1e-3))


@pytest.mark.parametrize("kind", UNIFORM)
def test_results_lie_on_the_grid_of_each_group(kind: TensorType) -> None:
    """The distance to the base is a whole number of steps, one more or one less than the change."""
    base = stored(kind)
    change = np.random.default_rng(1).normal(0, 0.02, base.shape).astype(np.float32)
    got = round_on_grid(base, base + change, kind, 7, 0)
    for old, new, wanted in zip(*(x.reshape(-1, UNIFORM[kind]) for x in (base, got, change)), strict=True):
        step = coarsest_step(old)
        moves = (new.astype(np.float64) - old) / step
        np.testing.assert_allclose(moves, np.rint(moves), atol=1e-3)
        assert (np.abs(moves - wanted / step) < 1.01).all()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K"])
def test_on_average_results_are_where_the_weights_are(kind: str) -> None:
    """Over many streams, to the error of the mean."""
    base = stored(TensorType[kind], rows=1)
    change = np.random.default_rng(1).normal(0, 0.02, base.shape).astype(np.float32)
    tries = np.stack([round_on_grid(base, base + change, TensorType[kind], key, 0) - base for key in range(400)])
    error = ((tries.mean(0) - change) ** 2).sum()
    assert error < 1.5 * tries.var(0).sum() / 400
    assert (tries * change).sum() / (400 * (change * change).sum()) == pytest.approx(1, abs=0.1)


def test_weights_on_the_grid_stay() -> None:
    """A change of nothing, and one of a whole step."""
    base = np.arange(32, dtype=np.float32).reshape(1, 32)
    np.testing.assert_array_equal(round_on_grid(base, base, TensorType.Q4_0, 1, 0), base)
    np.testing.assert_array_equal(round_on_grid(base, base + 3, TensorType.Q4_0, 1, 0), base + 3)


def test_groups_of_equal_values_have_no_grid() -> None:
    """Zeros above all: what is added to them is quantized as it is."""
    base = np.zeros((1, 32), np.float32)
    rows = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 32)
    np.testing.assert_array_equal(round_on_grid(base, rows, TensorType.Q4_0, 1, 0), rows)


def test_rows_may_be_cut_anywhere() -> None:
    """Each value has its own number in the stream."""
    base = stored(TensorType.Q4_0)
    rows = base + np.float32(0.01)
    whole = round_on_grid(base, rows, TensorType.Q4_0, 3, 0)
    parts = [round_on_grid(base[i : i + 3], rows[i : i + 3], TensorType.Q4_0, 3, i * 256) for i in range(0, 8, 3)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
