"""TQ1_0 and TQ2_0 are ggml's."""

import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.types import TensorType
from tests.quants.laws import CodecLaws, check_idempotent, check_infinities

TYPES = [TensorType.TQ1_0, TensorType.TQ2_0]


@pytest.mark.parametrize("kind", TYPES)
class TestTernary(CodecLaws):
    """The laws of every codec."""


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_infinite_values(kind):
    """They end in ggml's bytes; nothing is read or written outside of the block."""
    check_infinities(kind)


@pytest.mark.parametrize("kind", TYPES)
def test_quantizing_again_changes_nothing(kind):
    """Values of -d, 0 and d stay what they are."""
    check_idempotent(kind)


@pytest.mark.parametrize("kind", TYPES)
def test_ternary_weights_are_kept_exactly(kind):
    """The weights of a BitNet layer, -1, 0 and 1 times a scale that a half holds, come back unchanged."""
    x = np.random.default_rng(0).integers(-1, 2, (2, 512)).astype(np.float32) * np.float32(0.625)
    assert np.array_equal(quants.dequantize(quants.quantize(x, kind), kind, 512), x)
