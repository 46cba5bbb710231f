"""Q1_0 and Q2_0 are ggml's."""

import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.types import TensorType
from tests.quants.laws import CodecLaws, check_idempotent, check_infinities

TYPES = [TensorType.Q1_0, TensorType.Q2_0]


@pytest.mark.parametrize("kind", TYPES)
class TestTiny(CodecLaws):
    """The laws of every codec."""


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_infinite_values(kind):
    """They end in ggml's bytes; nothing is read or written outside of the block."""
    check_infinities(kind)


@pytest.mark.parametrize("kind", TYPES)
def test_quantizing_again_changes_nothing(kind):
    """Values on the grid of a block stay there."""
    check_idempotent(kind)


def test_q1_0_keeps_signs_and_the_mean_magnitude():
    """Zero of either sign counts as positive."""
    x = np.tile(np.array([3, -1, 0, -0.0], np.float32), (1, 32))
    assert np.array_equal(quants.dequantize(quants.quantize(x, "Q1_0"), "Q1_0", 128), np.where(x < 0, -1, 1))
