"""F32, F16 and BF16, and reading of the plain number types F64, I8, I16, I32 and I64.

ggml converts F16 and BF16 by rounding to nearest even (`ggml_fp32_to_fp16_row`, `ggml_fp32_to_bf16_row_ref` in
`ggml.c`, v0.5.0) and copies F32. It has no conversion for the other types, which hold counters and indices in files,
not weights: they can be read as float32 (nearest value) and pass through a merge only as bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ggufmerge.kernels import kernel
from ggufmerge.quants.codec import HALF_MAX, CheckedKernel, Codec, DamageKernel, DequantizeKernel, Rows
from ggufmerge.quants.half import bits_float, float_bits, float_to_half, half_to_float
from ggufmerge.types import TensorType

HALF = np.dtype("<u2")


def _read_as(dtype: DTypeLike) -> DequantizeKernel:
    number = np.dtype(dtype)

    def dequantize(raw, out):
        with np.errstate(over="ignore"):  # of float64, which readers look for
            out[...] = raw.view(number)

    return dequantize


def _copy(x, out):
    out[...] = x.view(np.uint8)


def _dequantize_f16(raw, out):
    _widen_halves(raw.view(HALF), out)


def _quantize_f16(x, out):
    _round_to_halves(x, out.view(HALF))


def _dequantize_bf16(raw, out):
    _widen_brain_floats(raw.view(HALF), out)


def _quantize_bf16(x, out):
    _round_to_brain_floats(x, out.view(HALF))


def _finder(dtype: DTypeLike, exponent: int) -> DamageKernel:
    """`find_damage` of floats that have these bits set in NaN and infinity."""
    number = np.dtype(dtype)
    mask = number.type(exponent)

    def find_damage(raw):
        return _find_exponent(raw.view(number), mask)

    return find_damage


def _read_checked(bits: DTypeLike, exponent: int, read: Callable[[NDArray, Rows], int]) -> CheckedKernel:
    """`decode` of floats of 32 or 16 bits: the look for NaN and infinity costs no second reading of the memory."""
    number = np.dtype(bits)
    find = _finder(bits, exponent)

    def decode(raw, out):
        top = read(raw.view(number), out)
        return -1 if top < np.uint32(0x7F800000) else find(raw.reshape(-1))

    return decode


@kernel
def _copy_floats(bits, out):
    top = np.uint32(0)
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[r, i] = bits_float(bits[r, i])
            top = max(top, bits[r, i] & np.uint32(0x7FFFFFFF))
    return top


@kernel
def _find_exponent(bits, exponent):
    """Index of the first element whose `exponent` bits are all set; -1 when there is none."""
    top = exponent ^ exponent  # a zero of the same type
    for i in range(bits.size):
        top = max(top, bits[i] & exponent)
    if top == exponent:
        for i in range(bits.size):
            if bits[i] & exponent == exponent:
                return i
    return -1


@kernel
def _widen_halves(halves, out):
    """Returns the largest bit pattern of the results, without signs."""
    top = np.uint32(0)
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            x = half_to_float(halves[r, i])
            out[r, i] = x
            top = max(top, float_bits(x) & np.uint32(0x7FFFFFFF))
    return top


@kernel
def _round_to_halves(x, halves):
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            halves[r, i] = float_to_half(x[r, i])


@kernel
def _widen_brain_floats(halves, out):
    """Returns the largest bit pattern of the results, without signs."""
    top = np.uint32(0)
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            bits = np.uint32(np.uint32(halves[r, i]) << np.uint32(16))
            out[r, i] = bits_float(bits)
            top = max(top, bits & np.uint32(0x7FFFFFFF))
    return top


@kernel
def _round_to_brain_floats(x, halves):
    """The upper half of each float32, rounded to nearest even; a NaN becomes quiet."""
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            bits = float_bits(x[r, i])
            upper = np.uint32(bits >> np.uint32(16))
            rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + np.uint32(upper & np.uint32(1))) >> np.uint32(16))
            halves[r, i] = np.uint16(rounded if x[r, i] == x[r, i] else upper | np.uint32(64))


CODECS = {
    TensorType.F32: Codec(
        TensorType.F32,
        _read_as("<f4"),
        _copy,
        limit=2.0**128 - 2.0**104,
        find_damage=_finder("<u4", 0x7F800000),
        checked=_read_checked("<u4", 0x7F800000, _copy_floats),
    ),
    TensorType.F16: Codec(
        TensorType.F16,
        _dequantize_f16,
        _quantize_f16,
        limit=HALF_MAX,
        find_damage=_finder("<u2", 0x7C00),
        checked=_read_checked("<u2", 0x7C00, _widen_halves),
    ),
    TensorType.BF16: Codec(
        TensorType.BF16,
        _dequantize_bf16,
        _quantize_bf16,
        limit=2.0**128 - 2.0**120,
        find_damage=_finder("<u2", 0x7F80),
        checked=_read_checked("<u2", 0x7F80, _widen_brain_floats),
    ),
    TensorType.F64: Codec(TensorType.F64, _read_as("<f8"), find_damage=_finder("<u8", 0x7FF0 << 48)),
    TensorType.I8: Codec(TensorType.I8, _read_as("<i1")),
    TensorType.I16: Codec(TensorType.I16, _read_as("<i2")),
    TensorType.I32: Codec(TensorType.I32, _read_as("<i4")),
    TensorType.I64: Codec(TensorType.I64, _read_as("<i8")),
}
