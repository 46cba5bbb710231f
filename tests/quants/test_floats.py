"""F16 and BF16 are ggml's, the plain number types are numpy's."""

import ctypes as C
import functools

import numpy as np
import pytest
from numba import njit

from ggufmerge import quants
from ggufmerge.quants import codec, half
from ggufmerge.types import TensorType
from tests import ggml
from tests.quants.laws import INTERPRETED, CodecLaws, check_idempotent, check_infinities

FLOATS = [TensorType.F16, TensorType.BF16]
PLAIN = {"F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


@pytest.mark.parametrize("kind", FLOATS)
class TestFloats(CodecLaws):
    """The laws of every codec."""


@pytest.mark.oracle
@pytest.mark.parametrize("kind", FLOATS)
def test_infinite_values(kind):
    """They end in ggml's bytes; nothing is read or written outside of the block."""
    check_infinities(kind)


@pytest.mark.parametrize("kind", [TensorType.F32, *FLOATS])
def test_quantizing_again_changes_nothing(kind):
    """Rounding a rounded value keeps it."""
    check_idempotent(kind)


def test_f32_is_copied_bit_for_bit():
    """NaN payloads and signs of zero included."""
    bits = np.random.default_rng(0).integers(0, 2**32, (4, 64), np.uint32)
    raw = bits.view(np.uint8)
    assert np.array_equal(quants.dequantize(raw, "F32", 64).view(np.uint32), bits)
    assert np.array_equal(quants.quantize(bits.view(np.float32), "F32"), raw)


@pytest.mark.parametrize(("name", "dtype"), PLAIN.items())
def test_plain_numbers_are_read_as_the_nearest_float32(name, dtype):
    """Numbers that are not weights can be read, not written."""
    values = np.array([[0, 1, -1, 100, -128, 127]]).astype(dtype)
    assert quants.dequantize(values.view(np.uint8), name, 6).tolist() == values.tolist()
    assert not codec(TensorType[name]).writable


def every_half():
    return np.arange(0, 2**16, 257 if INTERPRETED else 1).astype(np.uint16)


def floats_around_halves():
    """Every float32 at, next to and halfway between halves, of both signs, and the special values."""
    bits = np.arange(0, 2**16, 1023 if INTERPRETED else 1).astype(np.uint32)
    exact = half_to_float_by_numpy(bits.astype(np.uint16)).view(np.uint32)
    middle = exact + np.uint32(0x1000)
    tiny = np.arange(0, 2**14, 97, np.uint32) << np.uint32(14)
    cases = np.concatenate(
        [exact, exact + 1, exact - 1, middle, middle + 1, middle - 1, tiny, tiny + np.uint32(1 << 31)]
    )
    return cases.astype(np.uint32).view(np.float32)


def half_to_float_by_numpy(bits):
    return bits.view(np.float16).astype(np.float32)


def ggml_halves(x):
    """float32 [n] to uint16 [n] by ggml."""
    out = np.empty(x.size, np.uint16)
    ggml.lib().ggml_fp32_to_fp16_row(C.c_void_p(x.ctypes.data), C.c_void_p(out.ctypes.data), C.c_int64(x.size))
    return out


def apply(function, x, dtype):
    """An inlined scalar function over an array, compiled as in a kernel."""
    out = np.empty(x.size, dtype)
    loop_over(function)(x, out)
    return out


@functools.cache
def loop_over(function):
    @njit(error_model="numpy")
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return loop


COMPILED = half.inlined(half._float_to_half_portable), half.inlined(half._half_to_float_portable)
CONVERSIONS = {
    "in use": (half.float_to_half, half.half_to_float),
    **({} if INTERPRETED else {"portable": COMPILED}),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONVERSIONS)
def test_float_to_half_is_that_of_ggml(name):
    """Rounding to nearest even, subnormals, overflow to infinity, NaN."""
    x = floats_around_halves()
    assert np.array_equal(apply(CONVERSIONS[name][0], x, np.uint16), ggml_halves(x))


@pytest.mark.parametrize("name", CONVERSIONS)
def test_half_to_float_is_exact(name):
    """Every half is a float32; a NaN stays a NaN."""
    halves = every_half()
    expected = half_to_float_by_numpy(halves)
    assert np.array_equal(apply(CONVERSIONS[name][1], halves, np.float32), expected, equal_nan=True)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", CONVERSIONS)
def test_float_to_half_of_every_float(name):
    """All 2**32 bit patterns."""
    for start in range(0, 2**32, 2**26):
        x = np.arange(start, start + 2**26, dtype=np.uint32).view(np.float32)
        assert np.array_equal(apply(CONVERSIONS[name][0], x, np.uint16), ggml_halves(x)), hex(start)
