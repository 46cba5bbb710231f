"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are ggml's."""

import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.quants.lanes import LANES
from ggufmerge.types import TensorType
from tests import ggml
from tests.quants.laws import CodecLaws, assert_same_bytes, check_idempotent, check_infinities

TYPES = [TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0]


@pytest.mark.parametrize("kind", TYPES)
class TestLegacy(CodecLaws):
    """The laws of every codec."""


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_infinite_values(kind):
    """They end in ggml's bytes; nothing is read or written outside of the block."""
    check_infinities(kind)


@pytest.mark.parametrize("kind", TYPES)
def test_quantizing_again_changes_nothing(kind):
    """Values on the grid of a block stay there, so a merge may requantize an unchanged tensor without loss."""
    check_idempotent(kind)


def test_q8_0_by_hand():
    """The scale is a 127th of the largest magnitude, as a half, then come rounded multiples."""
    x = np.zeros((1, 32), np.float32)
    x[0, :4] = 127, -127, 2.5, -2.5  # halves are rounded away from zero
    raw = quants.quantize(x, "Q8_0")
    assert raw[0, :2].view("<f2") == 1.0
    assert raw[0, 2:].view(np.int8).tolist() == [127, -127, 3, -3] + [0] * 28


def test_scales_overflow_to_infinity():
    """A scale beyond the range of halves is written as infinity; ggml does the same, without a message."""
    raw = quants.quantize(np.full((1, 32), 1e9, np.float32), "Q8_0")
    assert np.isinf(raw[0, :2].view("<f2"))[0]


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(1, 32), (1, 32 * LANES), (3, 160), (LANES + 1, 96)])
@pytest.mark.parametrize("kind", TYPES)
def test_blocks_take_the_mean_of_their_row_and_their_columns_of_the_imatrix(kind, shape):
    """Whatever group of lanes they fall into: rows differ in size, and a group may span several."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal(shape) * 10.0 ** (np.arange(shape[0])[:, None] % 5)).astype(np.float32)
    imatrix = rng.random(shape[1], np.float32)
    assert_same_bytes(quants.quantize(x, kind, imatrix), ggml.quantize(x, kind, imatrix), x, kind, f"{shape}")
