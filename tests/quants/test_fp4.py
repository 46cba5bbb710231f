"""MXFP4 and NVFP4 are ggml's."""

import gguf
import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.quants import fp4
from ggufmerge.types import TensorType
from tests import ggml
from tests.quants.laws import CodecLaws, assert_same_bytes, check_idempotent, check_infinities

TYPES = [TensorType.MXFP4, TensorType.NVFP4]


@pytest.mark.parametrize("kind", TYPES)
class TestFP4(CodecLaws):
    """The laws of every codec."""


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TYPES)
def test_infinite_values(kind):
    """They end in ggml's bytes; nothing is read or written outside of the block."""
    check_infinities(kind)


def test_quantizing_to_mxfp4_again_changes_nothing():
    """Values on the grid of a block stay there."""
    check_idempotent(TensorType.MXFP4)


def test_the_values_are_those_of_e2m1():
    """The 4-bit values, doubled, by code: gguf-py's table."""
    assert fp4.VALUES.tolist() == list(gguf.quants.MXFP4.kvalues)


@pytest.mark.oracle
def test_mxfp4_scales_around_every_power_of_two():
    """The scale is floor(log2) in float32, where the logarithm of a number a little below 2**k rounds up to k."""
    below = 1 - 2.0**-24 * np.concatenate([np.arange(130), [200, 250, 2**23]])
    tops = np.ldexp(below, np.arange(-148, 128)[:, None])
    x = np.zeros((tops.size, 32), np.float32)
    x[:, 5] = tops.astype(np.float32).reshape(-1)
    expected = ggml.quantize(x, TensorType.MXFP4)
    assert_same_bytes(quants.quantize(x, "MXFP4"), expected, x, TensorType.MXFP4, "near powers of two")


@pytest.mark.oracle
def test_nvfp4_scales_of_every_size():
    """UE4M3 scales round half up, and saturate at 448."""
    tops = np.ldexp(np.linspace(1, 2, 97), np.arange(-24, 14)[:, None]).reshape(-1)
    x = np.zeros((-(-tops.size // 4), 4, 16), np.float32)
    x.reshape(-1, 16)[: tops.size, 3] = -6 * tops
    x = x.reshape(-1, 64)
    expected = ggml.quantize(x, TensorType.NVFP4)
    assert_same_bytes(quants.quantize(x, "NVFP4"), expected, x, TensorType.NVFP4, "scales")
