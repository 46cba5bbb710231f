"""MXFP4 and NVFP4: 4-bit floats (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign) under a shared scale.

MXFP4 (OCP Microscaling, v1.0) has a power of two (E8M0) for 32 values; NVFP4 an unsigned 8-bit float (UE4M3) for each
16 of its 64. As in ggml, the 4-bit values are doubled to be integers and the scales halved.

Source: `ggml-common.h` (layouts), `ggml-quants.c` and `ggml-impl.h` (scale conversions) of llama.cpp v0.5.0.
"""

from __future__ import annotations

import numpy as np

from ggufmerge.kernels import kernel
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.half import inlined
from ggufmerge.quants.nearest import nearest_level
from ggufmerge.quants.simd import absolute, convert, largest, load, select, store
from ggufmerge.types import TensorType

F = np.float32
# The doubled values by code; the sign is the highest bit, and code 8 is never the nearest: 0 comes first.
VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _e8m0_scales() -> np.ndarray:
    """Half the scale of each E8M0 byte: 2**(byte - 128). Byte 255, NaN in the standard, is a number to ggml."""
    return np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


def _ue4m3_scales() -> np.ndarray:
    """Half the scale of each UE4M3 byte, 0 for NaN (127). ggml ignores the highest bit, where a sign would be."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    normal = np.ldexp((1 + mantissa / 8), exponent - 7)
    scales = np.where(exponent > 0, normal, np.ldexp(mantissa.astype(float), -9)) / 2
    return np.where(byte == 127, 0, scales).astype(np.float32)


def _rounding_up() -> np.ndarray:
    """For each exponent of a float32 from -149: the 23-bit mantissa from which log2 rounds up to the next integer.

    ggml takes floor(log2f(x)) for the exponent, and in float32 log2 of a number just below a power of two is whole.
    """
    exponents = np.arange(-149, 128)
    distance = np.arange(1, 257)  # in units of 2**-24, from the next power of two downwards
    log = np.log2(1 - distance * 2.0**-24) + (exponents + 1.0)[:, None]
    rounds_up = log.astype(np.float32) >= (exponents + 1)[:, None]
    return 2**23 - rounds_up.sum(axis=1)


E8M0, UE4M3, ROUNDING_UP = _e8m0_scales(), _ue4m3_scales(), _rounding_up()


@kernel
def dequantize_mxfp4(raw, out):
    """Block of 32: scale byte, 16 bytes of codes; byte j has value j low and j + 16 high."""
    raw, y = raw.ravel(), out.ravel()
    for b in range(y.size // 32):
        d = E8M0[raw[17 * b]]
        codes = load(raw, 17 * b + 1, 16)
        store(y, 32 * b, _values(codes & 15) * d)
        store(y, 32 * b + 16, _values(codes >> 4) * d)


@kernel
def recode_mxfp4(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for b in range(x.size // 32):
        d, codes = E8M0[raw[17 * b]], convert(load(raw, 17 * b + 1, 16), np.int32)
        low = nearest_level(load(x, 32 * b, 16), codes & 15, VALUES, d, -12, 12)
        high = nearest_level(load(x, 32 * b + 16, 16), codes >> 4, VALUES, d, -12, 12)
        store(out, 17 * b + 1, convert(low | high << 4, np.uint8))


@kernel
def quantize_mxfp4(x, out):
    x, raw = x.ravel(), out.ravel()
    for b in range(x.size // 32):
        top = largest(absolute(load(x, 32 * b, 32)))
        # ggml keeps the low byte of a negative exponent, so blocks below 2**-125 get a huge scale and codes 0
        scale = np.uint8((_floor_log2(top) + 125) & 255) if 0 < top < np.inf else np.uint8(0)
        raw[17 * b] = scale
        low = _nearest(load(x, 32 * b, 16), E8M0[scale])
        high = _nearest(load(x, 32 * b + 16, 16), E8M0[scale])
        store(raw, 17 * b + 1, convert(low | high << 4, np.uint8))


@kernel
def dequantize_nvfp4(raw, out):
    """Block of 64: four scale bytes, four times 8 bytes of codes; byte j has value j low and j + 8 high."""
    raw, y = raw.ravel(), out.ravel()
    for s in range(y.size // 16):
        block, part = s // 4, s % 4
        d = UE4M3[raw[36 * block + part]]
        codes = load(raw, 36 * block + 4 + 8 * part, 8)
        store(y, 16 * s, _values(codes & 15) * d)
        store(y, 16 * s + 8, _values(codes >> 4) * d)


@kernel
def recode_nvfp4(raw, x, out):
    raw, x, out = raw.ravel(), x.ravel(), out.ravel()
    out[:] = raw
    for s in range(x.size // 16):
        block, part = s // 4, s % 4
        d, at = UE4M3[raw[36 * block + part]], 36 * block + 4 + 8 * part
        codes = convert(load(raw, at, 8), np.int32)
        low = nearest_level(load(x, 16 * s, 8), codes & 15, VALUES, d, -12, 12)
        high = nearest_level(load(x, 16 * s + 8, 8), codes >> 4, VALUES, d, -12, 12)
        store(out, at, convert(low | high << 4, np.uint8))


@kernel
def quantize_nvfp4(x, out):
    x, raw = x.ravel(), out.ravel()
    for s in range(x.size // 16):
        block, part = s // 4, s % 4
        scale = _to_ue4m3(largest(absolute(load(x, 16 * s, 16))) / F(6))
        raw[36 * block + part] = scale
        low = _nearest(load(x, 16 * s, 8), UE4M3[scale])
        high = _nearest(load(x, 16 * s + 8, 8), UE4M3[scale])
        store(raw, 36 * block + 4 + 8 * part, convert(low | high << 4, np.uint8))


@inlined
def _values(codes):
    """Doubled values of 4-bit codes as float32."""
    code = convert(codes & 7, np.int32)
    magnitude = select(code < 2, code, (code & 1 | 2) << ((code >> 1) - 1))
    return convert(select(codes > 7, 0 - magnitude, magnitude), F)


@inlined
def _nearest(x, d):
    """Codes (int32) of the values times d nearest to x; the first of equals, in the order of VALUES."""
    error = absolute(F(0) * d - x)
    code = convert(error * 0, np.int32)
    for candidate in range(1, 16):
        other = absolute(VALUES[candidate] * d - x)
        nearer = other < error
        error = select(nearer, other, error)
        code = select(nearer, np.int32(candidate), code)
    return code


@inlined
def _floor_log2(x):
    """floor(log2f(x)) of a positive float32."""
    bits = np.float64(x).view(np.int64)  # float64 has no subnormals here
    exponent = (bits >> 52) - 1023
    return exponent + (1 if (bits >> 29) & 0x7FFFFF >= ROUNDING_UP[exponent + 149] else 0)


@inlined
def _to_ue4m3(x):
    """UE4M3 byte of a float32: nearest, half away from zero; 448 (126) for whatever rounds to 256 or more."""
    if not x > 0:
        return np.uint8(0)
    bits = np.int64(np.float32(x).view(np.uint32))
    exponent = (bits >> 23) - 120
    if exponent <= 0:
        code = np.int64(x * F(512) + F(0.5))
        return np.uint8(code if code < 7 else 7)
    # A mantissa that rounds up to 8 carries into the exponent by itself. ggml has one scale of the largest exponent.
    code = (bits >> 20) - (120 << 3) + (bits >> 19 & 1)
    return np.uint8(code if code < 120 else 126)


@kernel
def _find_damage_mxfp4(raw):
    """Number of the first block whose scale is NaN (byte 255), or so large that a value is infinite; -1 without one."""
    for block in range(raw.size // 17):
        scale = raw[17 * block]
        if scale > 252:
            codes = load(raw, 17 * block + 1, 16)
            low, high = absolute(_values(codes & 15) * E8M0[scale]), absolute(_values(codes >> 4) * E8M0[scale])
            if scale == 255 or largest(select(low > high, low, high)) == np.inf:
                return block
    return -1


@kernel
def _find_damage_nvfp4(raw):
    """Number of the first block with a scale that is NaN (127, whatever the sign), though ggml reads it as 0; or -1."""
    for block in range(raw.size // 36):
        for part in range(4):
            if (raw[36 * block + part] & 127) == 127:
                return block
    return -1


_LEVELS = tuple(map(int, np.unique(VALUES)))
CODECS = {
    TensorType.MXFP4: Codec(
        TensorType.MXFP4,
        dequantize_mxfp4,
        quantize_mxfp4,
        limit=12 * 2.0**124,
        find_damage=_find_damage_mxfp4,
        grid=Grid(0.38, spacing=1.7, levels=_LEVELS),
        recode=recode_mxfp4,
    ),
    TensorType.NVFP4: Codec(
        TensorType.NVFP4,
        dequantize_nvfp4,
        quantize_nvfp4,
        limit=12 * 224.0,
        find_damage=_find_damage_nvfp4,
        grid=Grid(0.36, 1.05, spacing=1.7, levels=_LEVELS),
        recode=recode_nvfp4,
    ),
}
