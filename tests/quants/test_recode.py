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
# Code books: the number of points, and whether an even number of a group's values is negative.
GRIDS = {
    "IQ2_XXS": (256, True),
    "IQ2_XS": (512, True),
    "IQ2_S": (1024, False),
    "IQ3_XXS": (256, True),
    "IQ3_S": (512, False),
    "IQ1_S": (2048, False),
    "IQ1_M": (2048, False),
}
KINDS = [TensorType[name] for name in CODES]
ALL = KINDS + [TensorType[name] for name in GRIDS]


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
    """What the kernel makes of inputs that cannot be written, as in a mapped file."""
    raw, x = raw.view(), x.view()
    raw.flags.writeable = x.flags.writeable = False
    out = np.full_like(raw, 0xA5)
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


def at_point(raw: np.ndarray, kind: TensorType, point: int, down: int = 0) -> np.ndarray:
    """The same blocks with all groups at one grid point and no negative sign; in IQ1_M shifted down, or up."""
    out, (high, low) = raw.copy().reshape(-1, kind.block_bytes), divmod(point, 256)
    if kind is TensorType.IQ2_XXS:
        for s in range(2, 66, 8):
            out[:, s : s + 4], out[:, s + 4 : s + 7], out[:, s + 7] = low, 0, out[:, s + 7] & 0xF0
    elif kind is TensorType.IQ2_XS:
        out[:, 2:66:2], out[:, 3:66:2] = low, high
    elif kind is TensorType.IQ2_S:
        out[:, 2:34], out[:, 34:66], out[:, 66:74] = low, 0, 0x55 * high
    elif kind is TensorType.IQ3_XXS:
        out[:, 2:66] = low
        for s in range(66, 98, 4):
            out[:, s : s + 3], out[:, s + 3] = 0, out[:, s + 3] & 0xF0
    elif kind is TensorType.IQ3_S:
        out[:, 2:66], out[:, 66:74], out[:, 74:106] = low, 255 * high, 0
    elif kind is TensorType.IQ1_S:
        words = out[:, 34:50].view("<u2")
        words[:] = words & 0xF000 | 0o1111 * high
        out[:, 2:34] = low
    else:
        out[:, :32], out[:, 32:48] = low, 0x11 * (high | down << 3)
    return out.reshape(raw.shape)


def points_of_groups(raw: np.ndarray, kind: TensorType) -> np.ndarray:
    """float64 [points, groups of 8, 8]: what each group is at each point, without signs."""
    count, _ = GRIDS[kind.name]
    shifts = (0, 1) if kind is TensorType.IQ1_M else (0,)
    values = [any_values(at_point(raw, kind, point, down), kind) for down in shifts for point in range(count)]
    return np.stack(values).reshape(len(values), -1, 8).astype(np.float64)


def squares(x: np.ndarray, values: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Squared differences, less what no value up to `reach` could mend."""
    near = np.clip(x, -reach, reach)
    return (near - values) * (near - values + 2 * (x - near))


def least_sums(x: np.ndarray, points: np.ndarray, reach: np.ndarray, kind: TensorType) -> np.ndarray:
    """float64 [groups]: the least sum of squares over all points and allowed signs, for groups of 8 values."""
    width = 4 if kind.name.startswith("IQ3") else 8
    if kind.name.startswith("IQ1"):
        return squares(x, points, reach).sum(2).min(0)
    patterns = np.array([signs for signs in itertools.product((1, -1), repeat=8) if np.prod(signs) == 1])
    if not GRIDS[kind.name][1]:
        one = np.minimum(squares(x, points, reach), squares(x, -points, reach))
        return one.reshape(*one.shape[:2], -1, width).sum(3).min(0).sum(1)
    sums = (squares(x * signs, points, reach).reshape(*points.shape[:2], -1, width).sum(3) for signs in patterns)
    return np.min([one.min(0).sum(1) for one in sums], axis=0)


@pytest.mark.parametrize("kind", [TensorType[name] for name in GRIDS])
@pytest.mark.parametrize("size", [0.05, 0.5, 1e9])
def test_each_group_becomes_the_nearest_that_its_block_holds(kind, size):
    """Of all points with all signs that the format can store, the least sum of squares, but for rounding."""
    raw = stored_rows(kind)[:: 12 if INTERPRETED else 3].copy()
    x = wanted_rows(raw, kind, 1, size)
    got, points = any_values(recoded(raw, x, kind), kind), points_of_groups(raw, kind)
    x, got = (a.reshape(-1, 8).astype(np.float64) for a in (x, got))
    fine = np.isfinite(points).all((0, 2))
    x, got, points = x[fine], got[fine], points[:, fine]
    reach = np.abs(points).max((0, 2))[:, None]
    least = least_sums(x, points, reach, kind)
    sums = squares(x, got, reach).sum(1)
    np.testing.assert_array_less(sums, least * (1 + 1e-5) + 1e-30)
    np.testing.assert_array_less(least, sums * (1 + 1e-5) + 1e-30)


@pytest.mark.parametrize("kind", [TensorType[name] for name in GRIDS])
def test_groups_keep_their_scales_and_those_that_are_wanted_their_codes(kind):
    """Scales, and the shifts that IQ1_S has for 32 values, are the stored ones; so is each group that has no change."""
    raw = stored_rows(kind)
    x, values = wanted_rows(raw, kind, 2, 1.0), any_values(raw, kind)
    changed = np.arange(N) // 8 % 2 == 0
    x[:, ~changed] = np.nan_to_num(values[:, ~changed], posinf=np.inf, neginf=-np.inf)
    out = recoded(raw, x, kind)
    assert (any_values(out, kind)[:, changed] != values[:, changed]).any()
    np.testing.assert_array_equal(any_values(out, kind)[:, ~changed], values[:, ~changed])
    np.testing.assert_array_equal(at_point(out, kind, 0), at_point(raw, kind, 0))


@pytest.mark.parametrize("kind", ALL)
def test_rows_are_independent(kind):
    """A row's bytes do not depend on the rows beside it."""
    raw = stored_rows(kind)[:2]
    x = wanted_rows(raw, kind, 3, 0.5)
    alone = [recoded(raw[i : i + 1], x[i : i + 1], kind) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(alone), recoded(raw, x, kind))


def test_of_equally_near_codes_the_stored_one_stays_and_else_the_lowest_is_taken():
    """Half-way between two codes, Q8_0 in steps of 1; a stored code that is one of the two wins."""
    raw = np.zeros((1, 34), np.uint8)
    raw[0, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    raw[0, 2:5] = 3, 4, 9
    x = np.zeros((1, 32), F)
    x[0, :3] = 3.5
    assert recoded(raw, x, TensorType.Q8_0)[0, 2:6].tolist() == [3, 4, 3, 0]


def test_a_zero_stays_a_zero_of_its_sign():
    """MXFP4 has two codes for zero: the stored one stays, and what becomes zero becomes the positive one."""
    raw = np.full((1, 17), 128, np.uint8)
    raw[0, 1:] = 0x87
    x = np.zeros((1, 32), F)
    np.testing.assert_array_equal(recoded(raw, x, TensorType.MXFP4)[0, 1:], 0x80)


@pytest.mark.parametrize(
    ("raw", "x", "out"),
    [
        (np.zeros((1, 34), np.uint8), np.zeros((1, 64), F), np.zeros((1, 34), np.uint8)),
        (np.zeros((1, 34), np.uint8), np.zeros((1, 32), F), np.zeros((1, 33), np.uint8)),
        (np.zeros((2, 34), np.uint8), np.zeros((1, 32), F), np.zeros((1, 34), np.uint8)),
    ],
)
def test_kernels_are_guarded(raw, x, out):
    """Shapes that do not go together are refused before a kernel runs past an array."""
    with pytest.raises(ValueError, match=r"Q8_0: .* do not go with"):
        codec(TensorType.Q8_0).recode(raw, x, out)


def test_blocks_are_not_recoded_in_place():
    """What is stored is read while the result is written."""
    raw = np.zeros((1, 34), np.uint8)
    with pytest.raises(ValueError, match="Q8_0: blocks cannot be recoded in place"):
        codec(TensorType.Q8_0).recode(raw, np.zeros((1, 32), F), raw)


def test_types_without_scales_have_nothing_to_keep():
    """Floats and integers are written anew."""
    assert [kind for kind in TensorType if kind.block_size > 1 and kind not in ("Q8_1", "Q8_K")] == [
        kind for kind in TensorType if kind not in ("Q8_1", "Q8_K") and codec(kind).recode is not None
    ]
