"""Recoding: new values in blocks that keep their scales, against twins that try every code.

The twins know where the codes of a block are, but not what they mean: they write each code everywhere and let
`dequantize`, which has the bits of ggml, tell the values.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

from ggufmerge import quants
from ggufmerge.quants import codec
from ggufmerge.types import TensorType
from tests.quants.laws import INTERPRETED, N, any_values, plain_imatrix, sample_rows

F = np.float32
BITS, TWOS, NIBBLES, BYTES = (0, 255), range(0, 256, 0x55), range(0, 256, 0x11), range(256)

# Where the codes of a block are, and the bytes that give every value the same code.
CODES = {
    "Q4_0": {(2, 18): NIBBLES},
    "Q4_1": {(4, 20): NIBBLES},
    "Q5_0": {(2, 6): BITS, (6, 22): NIBBLES},
    "Q5_1": {(4, 8): BITS, (8, 24): NIBBLES},
    "Q8_0": {(2, 34): BYTES},
    "Q2_K": {(16, 80): TWOS},
    "Q3_K": {(0, 32): BITS, (32, 96): TWOS},
    "Q4_K": {(16, 144): NIBBLES},
    "Q5_K": {(16, 48): BITS, (48, 176): NIBBLES},
    "Q6_K": {(0, 128): NIBBLES, (128, 192): TWOS},
    "IQ4_NL": {(2, 18): NIBBLES},
    "IQ4_XS": {(8, 136): NIBBLES},
    "MXFP4": {(1, 17): NIBBLES},
    "NVFP4": {(4, 36): NIBBLES},
    "TQ1_0": {(0, 52): BYTES},
    "TQ2_0": {(0, 64): TWOS},
    "Q1_0": {(2, 18): BITS},
    "Q2_0": {(2, 18): TWOS},
}
KINDS = [TensorType[name] for name in CODES]
ALL = KINDS


@functools.cache
def stored_rows(kind: TensorType) -> np.ndarray:
    """uint8 [rows, row bytes] of blocks that ggml would write, and a few rows of any bytes, some of them damaged."""
    names = ("Gaussian", "heavy-tailed", "positive", "sparse", "zero", "half subnormal", "outliers")
    x = np.concatenate([sample_rows()[name][:1] for name in names])
    anything = np.random.default_rng(kind.id).integers(0, 256, (1 if INTERPRETED else 6, kind.row_bytes(N)), np.uint8)
    return np.concatenate([quants.quantize(x, kind, plain_imatrix()), anything])


def wanted_rows(raw: np.ndarray, kind: TensorType, seed: int, size: float) -> np.ndarray:
    """The values of `raw` changed by `size` times their own scale; 0 where a damaged block has no numbers."""
    rng = np.random.default_rng(seed)
    values = np.nan_to_num(any_values(raw, kind), posinf=0, neginf=0).astype(np.float64)
    blocks = values.reshape(len(raw), -1, 32)
    spread = np.sqrt((blocks**2).mean(2, keepdims=True))
    wanted = blocks + size * spread * rng.standard_normal(blocks.shape)
    return np.clip(wanted, -3e38, 3e38).astype(F).reshape(values.shape)


def recoded(raw: np.ndarray, x: np.ndarray, kind: TensorType) -> np.ndarray:
    out = np.empty_like(raw)
    codec(kind).recode(raw, x, out)
    return out


def filled(raw: np.ndarray, kind: TensorType, places, codes) -> np.ndarray:
    """The same blocks with these bytes at these places."""
    blocks = raw.copy().reshape(-1, kind.block_bytes)
    for (start, end), byte in zip(places, codes, strict=True):
        blocks[:, start:end] = byte
    return blocks.reshape(raw.shape)


def all_values(raw: np.ndarray, kind: TensorType) -> np.ndarray:
    """float32 [codes, rows, N]: what each value is with each code, under the scales of its block."""
    regions = CODES[kind.name]
    fills = itertools.product(*regions.values())
    return np.stack([any_values(filled(raw, kind, regions, codes), kind) for codes in fills])


@pytest.mark.parametrize("kind", ALL)
def test_values_of_a_block_give_it_back(kind):
    """Byte for byte, whatever the block holds: codes with several representations and scales of zero too."""
    raw = stored_rows(kind)
    values = np.nan_to_num(any_values(raw, kind), posinf=np.inf, neginf=-np.inf)
    np.testing.assert_array_equal(recoded(raw, values, kind), raw)


@pytest.mark.parametrize("kind", [kind for kind in ALL if codec(kind).scales])
@pytest.mark.parametrize("top", [0x7C, 0xFC, 0x7E])
def test_a_block_whose_scale_is_no_number_stays(kind, top):
    """Infinite or NaN: no value is near what is wanted."""
    raw = stored_rows(kind).copy()
    raw.reshape(-1, kind.block_bytes)[:, codec(kind).scales[0] + 1] = top
    x = np.random.default_rng(0).standard_normal((len(raw), N)).astype(F)
    np.testing.assert_array_equal(recoded(raw, x, kind), raw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0, 1e9])
def test_each_value_becomes_the_nearest_that_its_block_holds(kind, size):
    """Nearest in float32 within the range of the block; a stored value that is as near as any stays."""
    raw = stored_rows(kind)
    x = wanted_rows(raw, kind, 1, size)
    values, stored = all_values(raw, kind), any_values(raw, kind)
    fine = np.isfinite(values).all(0)
    got = any_values(recoded(raw, x, kind), kind)
    with np.errstate(all="ignore"):
        x = np.clip(x, values.min(0), values.max(0))
        least = np.abs(values - x).min(0)
        np.testing.assert_array_equal(np.abs(got - x)[fine], least[fine])
        stays = fine & (np.abs(stored - x) == least)
    assert stays.any() or size > 1
    np.testing.assert_array_equal(got[stays].view(np.uint32), stored[stays].view(np.uint32))


@pytest.mark.parametrize("kind", KINDS)
def test_only_codes_change(kind):
    """All other bytes of a block are the stored ones."""
    raw = stored_rows(kind)
    out = recoded(raw, wanted_rows(raw, kind, 2, 1.0), kind)
    regions = CODES[kind.name]
    zero = [0] * len(regions)
    assert (out != raw).any()
    np.testing.assert_array_equal(filled(out, kind, regions, zero), filled(raw, kind, regions, zero))
