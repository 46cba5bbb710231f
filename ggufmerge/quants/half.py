"""IEEE binary16 inside kernels: `half_to_float` and `float_to_half`, equal to ggml's GGML_FP16_TO_FP32 and
GGML_FP32_TO_FP16 for every bit pattern (round to nearest even, subnormals, infinities; a NaN becomes ±0x7E00).

Numba has no float16 on CPUs. Where the processor converts halves itself (x86-64 with F16C, ARM64) the functions are
LLVM's `fpext` and `fptrunc`, one instruction that vectorizes. Elsewhere LLVM would call a library function that numba
does not link, so the same bits come from float32 and integer arithmetic that any compiler vectorizes.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.extending import intrinsic

from ggufmerge.quants.simd import INTERPRETED, Vector, splat

inlined: Any = njit(forceinline=True, nogil=True, error_model="numpy")


@inlined
def float_bits(x):
    """uint32 bit pattern of a float32."""
    return np.float32(x).view(np.uint32)


@inlined
def bits_float(bits):
    """float32 that has this uint32 bit pattern."""
    return np.uint32(bits).view(np.float32)


def _extend(context, half):
    def emit(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


def _truncate(context, x):
    def emit(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), emit


def _extend_vector(context, halves):
    floats = Vector(types.float32, halves.length)

    def emit(context, builder, signature, args):
        value = builder.bitcast(args[0], ir.VectorType(ir.HalfType(), halves.length))
        return builder.fpext(value, ir.VectorType(ir.FloatType(), halves.length))

    return floats(halves), emit


_extend_half: Any = intrinsic(_extend)
_extend_halves: Any = intrinsic(_extend_vector)
_truncate_float: Any = intrinsic(_truncate)  # keeps a part of a NaN's payload, which ggml does not


def _half_to_float_native(half):
    return _extend_half(half)


def _float_to_half_native(x):
    quiet_nan = np.uint16(((float_bits(x) >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7E00))
    return _truncate_float(x) if x == x else quiet_nan


def _half_to_float_portable(half):
    magnitude = np.uint32(half & np.uint16(0x7FFF))
    sign = np.uint32(np.uint32(half & np.uint16(0x8000)) << np.uint32(16))
    shifted = np.uint32(magnitude << np.uint32(13))
    # In float32's place the exponent is 112 too small: multiplying mends that and also normalizes subnormals.
    # Infinity and NaN have the largest exponent of all and must keep it.
    finite = float_bits(bits_float(shifted) * np.float32(2.0**112))
    special = np.uint32(shifted | (np.uint32(0x7FC00000) if magnitude > np.uint32(0x7C00) else np.uint32(0x7F800000)))
    return bits_float((finite if magnitude < np.uint32(0x7C00) else special) | sign)


def _float_to_half_portable(x):
    bits = float_bits(x)
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    # Normal halves: rebias the exponent by -112 (0xC8000000 is -112 << 23), then round half to even at bit 13.
    odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32(np.uint32(magnitude + np.uint32(0xC8000FFF) + odd) >> np.uint32(13))
    # Subnormal halves: adding 1/2 makes the addition itself round at 2**-24, the place of their last bit.
    subnormal = np.uint32(float_bits(bits_float(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000))
    half = subnormal if magnitude < np.uint32(0x38800000) else normal
    half = half if magnitude < np.uint32(0x47800000) else np.uint32(0x7C00)
    half = half if magnitude <= np.uint32(0x7F800000) else np.uint32(0x7E00)
    return np.uint16(half | sign)


def _half_to_float_interpreted(half):
    return np.float32(np.uint16(half).view(np.float16))


def _float_to_half_interpreted(x):
    with np.errstate(over="ignore"):
        half = np.float32(x).astype(np.float16).view(np.uint16)
    return half if x == x else np.uint16((half & 0x8000) | 0x7E00)


def _processor_converts() -> bool:
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        demanded = config.CPU_FEATURES  # type: ignore[attr-defined]
        if demanded is not None:  # NUMBA_CPU_FEATURES overrides what the processor has
            return "+f16c" in demanded.split(",")
        return bool(binding.get_host_cpu_features().get("f16c", False))
    return machine in ("arm64", "aarch64")


def _splat_half_native(half):
    return _extend_halves(splat(np.uint16(half), 16))


def _splat_half_portable(half):
    return splat(half_to_float(half), 16)


# `splat_half(half)` is a vector of 16 equal floats. Converting a vector spares x86-64 a dependency: a lone half enters
# a register beside what the register held before, and so would wait for the previous block.
if INTERPRETED:
    half_to_float, float_to_half = _half_to_float_interpreted, _float_to_half_interpreted
    splat_half = _splat_half_portable
elif _processor_converts():
    half_to_float, float_to_half = inlined(_half_to_float_native), inlined(_float_to_half_native)
    splat_half = inlined(_splat_half_native)
else:
    half_to_float, float_to_half = inlined(_half_to_float_portable), inlined(_float_to_half_portable)
    splat_half = inlined(_splat_half_portable)
