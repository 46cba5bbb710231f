"""Vectors inside kernels do what numpy does with the same elements, compiled or interpreted."""

import numpy as np
import pytest
from numba import njit

from ggufmerge.quants.simd import (
    absolute,
    any_set,
    bit_mask,
    convert,
    first,
    indices,
    largest,
    load,
    mask_bytes,
    pick,
    repeat,
    round_half_away,
    round_half_even,
    select,
    splat,
    store,
    truncate,
    view,
)

kernel = njit(error_model="numpy")
F = np.float32


def floats(*values):
    """float32 [16]: the values, then zeros."""
    return np.array([*values, *[0] * (16 - len(values))], np.float32)


def applied(function, x, out):
    """out, after `function` stored its result there."""
    function(x, out)
    return out


def test_arithmetic_has_the_bits_of_numpy():
    """Float operators round each operation once; scalars take part as elements of the vector's type."""

    @kernel
    def formula(x, out):
        a, b = load(x, 0, 16), load(x, 16, 16)
        store(out, 0, (a * b + a - 3) / b + F(0.1))

    x = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    a, b = x[:16], x[16:]
    assert np.array_equal(applied(formula, x, np.empty(16, F)), (a * b + a - F(3)) / b + F(0.1))


def test_integers_wrap_around():
    """As numpy's arrays do: uint8 overflows, >> of signed numbers keeps the sign."""

    @kernel
    def unsigned(x, out):
        v = load(x, 0, 16)
        store(out, 0, ((v * 3 + 7) ^ (v << 2) | (v & 15)) // 3)

    @kernel
    def signed(x, out):
        store(out, 0, convert(view(load(x, 0, 16), np.int8), np.int32) >> 2)

    x = np.arange(0, 256, 17, np.uint8)
    x = np.resize(x, 16)
    assert np.array_equal(applied(unsigned, x, np.empty(16, np.uint8)), ((x * 3 + 7) ^ (x << 2) | (x & 15)) // 3)
    assert np.array_equal(applied(signed, x, np.empty(16, np.int32)), x.view(np.int8).astype(np.int32) >> 2)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (round_half_away, [3, -3, 1, -1, 0, 8388609]),
        (round_half_even, [2, -2, 0, -0.0, 0, 8388609]),
        (truncate, [2, -2, 0, -0.0, 0, 8388609]),
        (absolute, [2.5, 2.5, 0.5, 0.5, 0.49999997, 8388609]),
    ],
)
def test_rounding(function, expected):
    """C's roundf, rintf, truncf and fabsf, also just below a half and where float32 has no fractions."""

    @kernel
    def rounded(x, out):
        store(out, 0, function(load(x, 0, 16)))

    x = floats(2.5, -2.5, 0.5, -0.5, 0.49999997, 8388609)
    assert np.array_equal(applied(rounded, x, np.empty(16, F)), floats(*expected))


def test_comparisons_with_nan_are_false_but_for_unequal():
    """select takes the second value where a NaN is compared; x != x finds a NaN."""

    @kernel
    def clean(x, out):
        v = load(x, 0, 16)
        store(out, 0, select(v < F(9), v, F(-1)))
        store(out, 16, select(v != v, F(1), splat(F(0), 16)))

    x = floats(np.nan, 1, 10, np.inf)
    out = applied(clean, x, np.empty(32, F))
    assert np.array_equal(out, [*floats(-1, 1, -1, -1), *floats(1)])


def test_masks_and_bytes():
    """mask_bytes and bit_mask are inverse, the lowest bit first; masks combine."""

    @kernel
    def bits(x, out):
        v = load(x, 0, 16)
        mask = (v > F(0)) & (v < F(5)) | (v == F(7))
        store(out, 0, mask_bytes(mask))
        store(out, 2, select(bit_mask(mask_bytes(mask)), np.uint8(1), splat(np.uint8(0), 16)))

    x = floats(1, -1, 2, 7, 9, *[0] * 8, 3)
    out = applied(bits, x, np.empty(18, np.uint8))
    expected = (x > 0) & (x < 5) | (x == 7)
    assert np.array_equal(out[:2], np.packbits(expected, bitorder="little"))
    assert np.array_equal(out[2:], expected)


def test_the_largest_and_the_first():
    """Of equal elements `first` finds the one that comes first; where none is, it stays inside the vector."""

    @kernel
    def search(x, out):
        v = load(x, 0, 16)
        out[0] = largest(v)
        out[1] = first(v == largest(v))

    assert applied(search, floats(-1, 3, 2, 3, -5), np.empty(2, F)).tolist() == [3, 1]
    assert applied(search, -1 - floats(), np.empty(2, F)).tolist() == [-1, 0]
    assert applied(search, np.full(16, np.nan, F), np.empty(2, F))[1] == 15


def test_elements_are_rearranged():
    """repeat, indices and view: values of a byte side by side, four bytes as one word."""

    @kernel
    def spread(x, out):
        two_bits = repeat(load(x, 0, 4), 4) >> ((indices(np.uint8, 16) & 3) << 1) & 3
        store(out, 0, two_bits)

    @kernel
    def words(x, out):
        store(out, 0, view(load(x, 0, 16), np.uint32))

    x = np.arange(228, 244, dtype=np.uint8)
    places = np.arange(0, 8, 2, np.uint8)
    assert np.array_equal(applied(spread, x, np.empty(16, np.uint8)), (x[:4, None] >> places & 3).reshape(-1))
    assert np.array_equal(applied(words, x, np.empty(4, np.uint32)), x.view("<u4"))


def test_pick_looks_up_a_table_of_eight():
    """The low three bits of each index count."""

    @kernel
    def picked(x, out):
        index = convert(load(x, 8, 16), np.int32)
        store(out, 0, pick(load(x, 0, 8), index))

    index = np.arange(16) * 5 - 8
    x = np.concatenate([np.arange(8) + 0.5, index]).astype(np.float32)
    assert np.array_equal(applied(picked, x, np.empty(16, F)), (index & 7) + F(0.5))


def test_any_set_tells_whether_a_mask_has_an_element():
    """One is enough."""

    @kernel
    def exceeds(x, out):
        out[0] = 1 if any_set(load(x, 0, 16) > F(2)) else 0

    assert applied(exceeds, floats(1, 2), np.empty(1, np.int32)) == 0
    assert applied(exceeds, floats(1, 2, 3), np.empty(1, np.int32)) == 1


def test_places_outside_an_array_are_found_when_bounds_are_checked():
    """Reading and writing, on either side; the places just inside are fine."""
    x = floats(*range(16))

    @njit(error_model="numpy", boundscheck=True)
    def copied(x, source, target):
        out = np.zeros(16, np.float32)
        store(out, target, load(x, source, 4))
        return out

    np.testing.assert_array_equal(copied(x, 12, 0)[:4], x[12:])
    np.testing.assert_array_equal(copied(x, 0, 12)[12:], x[:4])
    for source, target in ((13, 0), (-1, 0), (0, 13), (0, -1), (1 << 40, 0)):
        with pytest.raises(IndexError):
            copied(x, source, target)
