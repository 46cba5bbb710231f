"""F32, F16 and BF16, and reading of the plain number types F64, I8, I16, I32 and I64.

ggml converts F16 and BF16 by rounding to nearest even (`ggml_fp32_to_fp16_row`, `ggml_fp32_to_bf16_row_ref` in
`ggml.c`, v0.5.0) and copies F32. It has no conversion for the other types, which hold counters and indices in files,
not weights: they can be read as float32 (nearest value) and pass through a merge only as bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ggufmerge.kernels import kernel
from ggufmerge.quants.codec import Codec, DequantizeKernel
from ggufmerge.quants.half import bits_float, float_bits, float_to_half, half_to_float
from ggufmerge.types import TensorType

HALF = np.dtype("<u2")


def _read_as(dtype: DTypeLike) -> DequantizeKernel:
    number = np.dtype(dtype)

    def dequantize(raw, out):
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


@kernel
def _widen_halves(halves, out):
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[r, i] = half_to_float(halves[r, i])


@kernel
def _round_to_halves(x, halves):
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            halves[r, i] = float_to_half(x[r, i])


@kernel
def _widen_brain_floats(halves, out):
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[r, i] = bits_float(np.uint32(np.uint32(halves[r, i]) << np.uint32(16)))


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
    TensorType.F32: Codec(TensorType.F32, _read_as("<f4"), _copy),
    TensorType.F16: Codec(TensorType.F16, _dequantize_f16, _quantize_f16),
    TensorType.BF16: Codec(TensorType.BF16, _dequantize_bf16, _quantize_bf16),
    TensorType.F64: Codec(TensorType.F64, _read_as("<f8")),
    TensorType.I8: Codec(TensorType.I8, _read_as("<i1")),
    TensorType.I16: Codec(TensorType.I16, _read_as("<i2")),
    TensorType.I32: Codec(TensorType.I32, _read_as("<i4")),
    TensorType.I64: Codec(TensorType.I64, _read_as("<i8")),
}
