"""The k largest values of a tensor, found in passes: exactly those a stable sort finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufmerge.methods import selection
from ggufmerge.methods.selection import Cut, largest
from ggufmerge.methods.spec import Chunk


def by_passes(values, wanted, rows_at_a_time):
    """Cuts for `wanted` over values, float32 [quantities, rows, n], read in chunks; and how many passes that took."""

    def scores(x, chunk, first, end):
        return np.ascontiguousarray(x[:, first:end].reshape(len(x), -1))

    search = largest(scores, values[0].size, wanted)
    count = 0
    try:
        reading = next(search)
        while True:
            result, count = reading.initial, count + 1
            for index, row in enumerate(range(0, values.shape[1], rows_at_a_time)):
                part = values[:, row : row + rows_at_a_time]
                chunk = Chunk(index, row, part.shape[1], row * values.shape[2])
                result = reading.fold(result, reading.map(part, chunk))
            reading = search.send(result)
    except StopIteration as end:
        return end.value, count


def members(values, cut: Cut):
    """Element indices inside the cut, without zeros."""
    bits = values.reshape(-1).view(np.uint32)
    index = np.arange(bits.size)
    return np.flatnonzero(((bits > cut.bits) | ((bits == cut.bits) & (index <= cut.last))) & (bits > 0))


def sorted_members(values, k):
    """Element indices of the k largest values, equal ones by index, without zeros."""
    flat = values.reshape(-1)
    largest_first = np.argsort(-flat, kind="stable")[:k]
    return np.sort(largest_first[flat[largest_first] > 0])


magnitudes = st.one_of(
    st.floats(0, width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, 1.0000001, 1.5, 2.0, 1e-45, np.inf]),
)


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
@settings(deadline=None)
@given(data=st.data())
def test_the_cut_holds_the_k_largest(in_memory, data):
    """For any values, runs of equal ones and infinities included, whether or not the candidates fit in memory."""
    rows, n = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    drawn = data.draw(st.lists(magnitudes, min_size=rows * n, max_size=rows * n))
    values = np.array(drawn, np.float32).reshape(1, rows, n)
    k = data.draw(st.integers(0, rows * n + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "CANDIDATES", in_memory)
        (cut,), _ = by_passes(values, [(0, k)], data.draw(st.integers(1, rows)))
    np.testing.assert_array_equal(members(values, cut), sorted_members(values, k))


def test_two_passes_find_several_cuts_of_several_quantities():
    """Whatever is asked for is looked for at the same time; distinct values need no third pass."""
    values = np.random.default_rng(0).standard_exponential((3, 40, 50)).astype(np.float32)
    wanted = [(0, 1), (2, 1999), (1, 700), (1, 20), (0, 2000)]
    cuts, passes = by_passes(values, wanted, 7)
    assert passes == 2
    for (quantity, k), cut in zip(wanted, cuts, strict=True):
        np.testing.assert_array_equal(members(values[quantity], cut), sorted_members(values[quantity], k))
        assert cut.value == np.sort(values[quantity].reshape(-1))[-k]


def test_nothing_to_look_for_takes_no_pass():
    """k = 0 and more than everything are known beforehand."""
    values = np.ones((1, 3, 4), np.float32)
    cuts, passes = by_passes(values, [(0, 0), (0, 13)], 1)
    assert passes == 0
    assert [len(members(values, cut)) for cut in cuts] == [0, 12]


@pytest.mark.parametrize(("k", "passes"), [(100, 2), (950, 2)])
def test_zeros_are_not_told_apart(monkeypatch, k, passes):
    """Files that share most blocks differ by zeros: no third pass looks for the last of them."""
    monkeypatch.setattr(selection, "CANDIDATES", 0)
    values = np.zeros((1, 10, 100), np.float32)
    values[0, 3:5] = 1 + np.arange(200, dtype=np.float32).reshape(2, 100)
    (cut,), taken = by_passes(values, [(0, k)], 3)
    np.testing.assert_array_equal(members(values, cut), sorted_members(values, k))
    assert taken == passes
