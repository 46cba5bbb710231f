"""The scale of every group of stored weights, read from their blocks: what one unit of their codes is worth.

Scales are a few percent of a file and are read with NumPy.

Source: the layouts of `ggml-common.h` of llama.cpp v0.5.0, as in the modules of the formats.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggufmerge.quants.fp4 import E8M0, UE4M3
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]  # [blocks, bytes of a block]
Numbers = NDArray[np.int32]  # [blocks, groups of a block]
Steps = NDArray[np.float32]  # [blocks, groups of a block]


def units(raw: NDArray[np.uint8], kind: TensorType) -> Floats:
    """float32 [rows, groups of the type]: the scale of each group, which may be negative. uint8 [rows, row bytes]."""
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale; whoever reads values refuses it
        found = np.asarray(_FORMATS[kind](raw.reshape(-1, kind.block_bytes)), np.float32)
    return found.reshape(len(raw), -1)


def half_at(blocks: Blocks, at: int) -> NDArray[np.float32]:
    """float32 [blocks, 1]: the float16 at a byte of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _scale_at(at: int) -> Callable[[Blocks], Steps]:
    return lambda blocks: half_at(blocks, at)


def _nibbles(bytes_: Blocks) -> NDArray[np.uint8]:
    """uint8 [blocks, 2 * bytes]: the low and the high half of each byte in turn."""
    return np.stack([bytes_ & 15, bytes_ >> 4], axis=2).reshape(len(bytes_), -1)


def _words(blocks: Blocks, first: int, count: int, stride: int) -> NDArray[np.uint32]:
    """uint32 [blocks, count]: little-endian words, `stride` bytes from one to the next."""
    parts = [np.ascontiguousarray(blocks[:, first + stride * i : first + stride * i + 4]) for i in range(count)]
    return np.concatenate([part.view("<u4") for part in parts], axis=1)


def _q2_k(blocks: Blocks) -> Steps:
    return half_at(blocks, 80) * (blocks[:, :16] & 15)


def q3_k_numbers(blocks: Blocks) -> Numbers:
    """The scales of the groups of Q3_K blocks in units of the block's, -32 to 31."""
    packed = blocks[:, 96:108].astype(np.int32)
    s = np.arange(16)
    low, high = packed[:, s % 8] >> 4 * (s // 8) & 15, packed[:, 8 + s % 4] >> 2 * (s // 4) & 3
    return (low | high << 4) - 32


def q4_k_numbers(blocks: Blocks) -> tuple[Numbers, Numbers]:
    """The scales and minima of the groups of Q4_K and Q5_K blocks in units of the block's two, 0 to 63."""
    packed = blocks[:, 4:16].astype(np.int32)
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1)
    return scales, np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1)


def q6_k_numbers(blocks: Blocks) -> Numbers:
    """The scales of the groups of Q6_K blocks in units of the block's, -128 to 127."""
    return np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.int32)


def iq4_xs_numbers(blocks: Blocks) -> Numbers:
    """The scales of the groups of IQ4_XS blocks in units of the block's, -32 to 31."""
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2").astype(np.int32) >> 2 * np.arange(8) & 3
    return (_nibbles(blocks[:, 4:8]) | high << 4) - 32


def _in_units(at: int, numbers: Callable[[Blocks], Numbers]) -> Callable[[Blocks], Steps]:
    """Whole numbers times the float16 at a byte of the block."""
    return lambda blocks: half_at(blocks, at) * numbers(blocks).astype(np.float32)


def _iq3_xxs(blocks: Blocks) -> Steps:
    return half_at(blocks, 0) * ((_words(blocks, 66, 8, 4) >> 28) + np.float32(0.5)) * np.float32(0.5)


def _iq3_s(blocks: Blocks) -> Steps:
    return half_at(blocks, 0) * (1 + 2 * _nibbles(blocks[:, 106:110]))


def _iq2_xxs(blocks: Blocks) -> Steps:
    return half_at(blocks, 0) * ((_words(blocks, 6, 8, 8) >> 28) + np.float32(0.5)) * np.float32(0.25)


def _iq2(first: int) -> Callable[[Blocks], Steps]:
    """IQ2_XS and IQ2_S, which have 8 bytes of scales at `first`."""
    return lambda b: half_at(b, 0) * (_nibbles(b[:, first : first + 8]) + np.float32(0.5)) * np.float32(0.25)


def _iq1_s(blocks: Blocks) -> Steps:
    return half_at(blocks, 0) * (2 * (np.ascontiguousarray(blocks[:, 34:50]).view("<u2") >> 12 & 7) + 1)


def _iq1_m(blocks: Blocks) -> Steps:
    words = np.ascontiguousarray(blocks[:, 48:56]).view("<u2")
    bits = words[:, :1] >> 12 | words[:, 1:2] >> 12 << 4 | words[:, 2:3] >> 12 << 8 | words[:, 3:4] >> 12 << 12
    s = np.arange(16)
    levels = words[:, s // 4] >> (3 * (s % 4)).astype(np.uint16) & 7
    return bits.astype("<u2").view("<f2").astype(np.float32) * (2 * levels + 1)


def _mxfp4(blocks: Blocks) -> Steps:
    return E8M0[blocks[:, :1]]


def _nvfp4(blocks: Blocks) -> Steps:
    return UE4M3[blocks[:, :4]]


_FORMATS: dict[TensorType, Callable[[Blocks], Steps]] = {
    TensorType.Q4_0: _scale_at(0),
    TensorType.Q4_1: _scale_at(0),
    TensorType.Q5_0: _scale_at(0),
    TensorType.Q5_1: _scale_at(0),
    TensorType.Q8_0: _scale_at(0),
    TensorType.Q2_K: _q2_k,
    TensorType.Q3_K: _in_units(108, q3_k_numbers),
    TensorType.Q4_K: _in_units(0, lambda blocks: q4_k_numbers(blocks)[0]),
    TensorType.Q5_K: _in_units(0, lambda blocks: q4_k_numbers(blocks)[0]),
    TensorType.Q6_K: _in_units(208, q6_k_numbers),
    TensorType.IQ4_NL: _scale_at(0),
    TensorType.IQ4_XS: _in_units(0, iq4_xs_numbers),
    TensorType.IQ3_XXS: _iq3_xxs,
    TensorType.IQ3_S: _iq3_s,
    TensorType.IQ2_XXS: _iq2_xxs,
    TensorType.IQ2_XS: _iq2(66),
    TensorType.IQ2_S: _iq2(74),
    TensorType.IQ1_S: _iq1_s,
    TensorType.IQ1_M: _iq1_m,
    TensorType.TQ1_0: _scale_at(52),
    TensorType.TQ2_0: _scale_at(64),
    TensorType.MXFP4: _mxfp4,
    TensorType.NVFP4: _nvfp4,
    TensorType.Q1_0: _scale_at(0),
    TensorType.Q2_0: _scale_at(0),
}
TYPES = tuple(_FORMATS)  # that have scales
