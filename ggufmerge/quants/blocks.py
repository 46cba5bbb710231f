"""What the kernels of simple blocks share: the float16 scale at a byte offset, and the division by a scale."""

from __future__ import annotations

import numpy as np

from ggufmerge.quants.half import float_to_half, half_to_float, inlined, splat_half
from ggufmerge.quants.simd import absolute, select

F = np.float32


@inlined
def load_half(raw, offset):
    """The little-endian float16 at a byte offset, as float32."""
    return half_to_float(np.uint16(raw[offset]) | (np.uint16(raw[offset + 1]) << np.uint16(8)))


@inlined
def load_scale(raw, offset):
    """The same as a vector of 16 equal floats, for multiplying vectors by."""
    return splat_half(np.uint16(raw[offset]) | (np.uint16(raw[offset + 1]) << np.uint16(8)))


@inlined
def store_half(raw, offset, value):
    """Write a float32 as the little-endian float16 at a byte offset."""
    half = float_to_half(value)
    raw[offset] = np.uint8(half & np.uint16(255))
    raw[offset + 1] = np.uint8(half >> np.uint16(8))


@inlined
def load_word(raw, offset):
    """The little-endian uint32 at a byte offset."""
    word = np.uint32(raw[offset]) | np.uint32(raw[offset + 1]) << np.uint32(8)
    return np.uint32(word | np.uint32(raw[offset + 2]) << np.uint32(16) | np.uint32(raw[offset + 3]) << np.uint32(24))


@inlined
def store_word(raw, offset, word):
    """Write a uint32 as the little-endian one at a byte offset."""
    for i in range(4):
        raw[offset + i] = np.uint8(word >> np.uint32(8 * i) & np.uint32(255))


@inlined
def inverse(d):
    """1 / d, or 0 for the zero scale of a block of zeros."""
    return F(1) / d if d != 0 else F(0)


@inlined
def in_range(values, limit):
    """`values` with zero in place of what is not below `limit`, ready to be converted to integers.

    Only infinities and NaN are meant: the inverse scale of a block of subnormals is infinite, and the conversion that
    ggml's bytes show, x86-64's, ends in code 0 there, while other processors saturate.
    """
    return select(absolute(values) < F(limit), values, F(0))
