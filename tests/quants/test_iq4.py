"""IQ4_NL and IQ4_XS are ggml's."""

import numpy as np
import pytest

from ggufmerge.quants.iq4 import LEVELS, MIDDLES
from ggufmerge.types import TensorType
from tests.quants.laws import CodecLaws

TYPES = [TensorType.IQ4_NL, TensorType.IQ4_XS]


@pytest.mark.parametrize("kind", TYPES)
class TestIQ4(CodecLaws):
    """The laws of every codec."""


@pytest.mark.parametrize("k", range(15))
def test_middles_part_the_levels_as_ggml_does(k):
    """ggml compares the distances to two levels in float32: below a middle the lower one is nearer, from it on not."""
    lower, middle, upper = LEVELS[k], MIDDLES[k], LEVELS[k + 1]
    below = middle
    for _ in range(100):
        assert not middle - lower < upper - middle
        below = np.nextafter(below, np.float32(-200))
        assert below - lower < upper - below
