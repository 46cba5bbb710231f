"""Steps are read from the scales of blocks as the values are."""

from __future__ import annotations

import numpy as np
import pytest

from ggufmerge.noise.steps import groups_of, squared_steps
from ggufmerge.quants import codec, dequantize, grid_of, quantize
from ggufmerge.quants.iq4 import LEVELS
from ggufmerge.quants.units import TYPES, units
from ggufmerge.types import TensorType
from tests.noise import naive
from tests.noise.weights import stored, synthetic

AFFINE = (TensorType.Q4_1, TensorType.Q5_1, TensorType.Q2_K, TensorType.Q4_K, TensorType.Q5_K)


def blocks(kind: TensorType, rows: int = 3, n: int = 512) -> np.ndarray:
    x = synthetic("normal", rows, n) * 50
    return quantize(x, kind, np.ones(n, np.float32) if codec(kind).needs_imatrix else None)


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_whole_multiples_of_their_unit(kind: TensorType) -> None:
    """Of an eighth of it where values are shifted (IQ1); differences of values where a block has a minimum."""
    values = dequantize(blocks(kind), kind, 512).astype(np.float64)
    found = units(blocks(kind), kind).astype(np.float64)
    assert np.all(np.isfinite(found))
    values = values.reshape(*found.shape, -1)
    if kind in AFFINE:
        values = values - values[..., :1]
    used = found != 0
    assert used.any()
    multiples = values[used] / found[used][:, None] * (8 if kind.startswith("IQ1") else 1)
    assert np.abs(multiples - np.rint(multiples)).max() < 2e-3
    grid = grid_of(kind)
    assert grid is not None
    if not grid.levels and not grid.book:
        together = [np.gcd.reduce(np.rint(row).astype(int)) for row in multiples]
        assert np.median(together) == 1  # and of no larger one


@pytest.mark.parametrize("kind", [TensorType.IQ4_NL, TensorType.IQ4_XS])
def test_unequal_steps_are_those_of_the_cells_in_use(kind: TensorType) -> None:
    """As if an even grid made the same error."""
    values, squares = stored(synthetic("laplace", 2, 256), kind)
    unit = np.repeat(units(quantize(synthetic("laplace", 2, 256), kind), kind), 2, axis=1)
    for i in range(2):
        for g in range(16):
            here = values[i, 16 * g : 16 * g + 16]
            assert squares[i, g] == pytest.approx(naive.squared_step(LEVELS, here, unit[i, g]), rel=1e-4)


@pytest.mark.parametrize(("kind", "bits"), [(TensorType.F16, 10), (TensorType.BF16, 7)])
def test_floats_have_steps_of_their_own(kind: TensorType, bits: int) -> None:
    """A weight in [1, 2) has the step 2^-bits."""
    x = np.random.default_rng(3).uniform(1, 2, (4, 4096)).astype(np.float32)
    _, squares = stored(x, kind)
    assert np.sqrt(squares.mean()) == pytest.approx(2.0**-bits, rel=0.02)


def test_what_is_not_rounded_has_no_step() -> None:
    """F32; a row of a length that no group fits is one group."""
    assert (groups_of(48), groups_of(50)) == (3, 1)
    _, squares = stored(synthetic("normal", 2, 50), TensorType.F32)
    assert squares.tolist() == [[0], [0]]


def test_zeros_have_no_step() -> None:
    """A block of zeros has the scale 0, and no noise."""
    zeros = np.zeros((1, 256), np.float32)
    for kind in (TensorType.Q4_0, TensorType.Q6_K, TensorType.IQ4_NL):
        raw = quantize(zeros, kind)
        out = np.empty((1, 16), np.float32)
        squared_steps(raw, zeros, kind, out)
        assert not out.any()
