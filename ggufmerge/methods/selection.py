"""Exact order statistics of a tensor that is read in chunks: the k largest values, without sorting or keeping them.

Non-negative float32 numbers sort like their bits, so a histogram of the upper 16 bits in one pass tells which narrow
interval the k-th largest value lies in; a second pass keeps the few values of that interval, with their places. Only
where it holds very many (long runs of equal values) a histogram of the lower 16 bits takes their place, and another
pass finds where among the equal ones the count is reached. Equal values are taken in the order of their element index;
only zeros, should the count reach into them, may all be taken.

Scores are never below zero, yet a NaN among them may have a sign (that of inf - inf has one on x86-64). As the bits are
indices here, all that look at them leave out the sign.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.spec import Chunk, Pass, Passes, Stack
from ggufmerge.methods.sums import add_counts

# scores(x, chunk, first, end): the quantities of rows [first, end) of a chunk, float32 [quantities, elements], none < 0
Scores = Callable[[Stack, Chunk, int, int], NDArray[np.float32]]
Count = int | Callable[[int], int]  # k, or k from the number of values that are not zero

MAGNITUDE = np.uint32(0x7FFFFFFF)  # the bits of a float32 without its sign
CANDIDATES = 1 << 20  # values kept in memory at most, 12 bytes each


class Cut(NamedTuple):
    """Which elements belong to the k largest: those above `bits`, and those equal to it up to element `last`."""

    bits: int  # of the k-th largest value, as uint32
    last: int

    @property
    def value(self) -> float:
        """The k-th largest value."""
        return float(np.uint32(self.bits).view(np.float32))


EVERYTHING = Cut(0, np.iinfo(np.int64).max)
NOTHING = Cut(np.iinfo(np.uint32).max, -1)


class _Search(NamedTuple):
    """A search in progress: the k-th largest of `quantity` is the `rank`-th largest of the `size` values in `bin`."""

    quantity: int
    rank: int
    size: int
    bin: int


# histograms of all quantities, int64 [quantities, 32768], and their counts of values not zero; of a chunk: filled bins
_Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
_PartialCounts = tuple[list[tuple[NDArray[np.int64], NDArray[np.uint32]]], NDArray[np.int64]]
_Found = list[tuple[list[NDArray[np.int64]], list[NDArray[np.uint32]]]]  # elements and bits for each search
_Equal = tuple[int, list[tuple[int, int, NDArray[np.uint8]]]]  # how many are equal; by blocks: start, how many, which
_End = tuple[int, int | None]  # how many equal values are still to come; the element of the last one, once found


def largest(scores: Scores, elements: int, wanted: Sequence[tuple[int, Count]]) -> Passes[list[Cut]]:
    """Passes that find, for each (quantity, k) in `wanted`, the cut of the k largest of this row of `scores`.

    elements: number of elements in the tensor.
    """
    cuts: dict[int, Cut] = {}
    unknown: dict[int, tuple[int, Count]] = {}
    for i, (quantity, k) in enumerate(wanted):
        known = _trivial_cut(k, elements)
        if known is None:
            unknown[i] = quantity, k
        else:
            cuts[i] = known
    if unknown:
        quantities = sorted({quantity for quantity, _ in unknown.values()})
        counts_nonzero = any(callable(k) for _, k in unknown.values())
        histograms, nonzero = yield from _upper_histograms(scores, quantities, counts_nonzero).read()
        searches = {}
        for i, (quantity, k) in unknown.items():
            at = quantities.index(quantity)
            count = k(int(nonzero[at])) if callable(k) else k
            known = _trivial_cut(count, elements)
            if known is None:
                bin_, rank = _kth_bin(histograms[at], count)
                searches[i] = _Search(quantity, rank, int(histograms[at][bin_]), bin_)
            else:
                cuts[i] = known
        if sum(s.size for s in searches.values()) > CANDIDATES:
            cuts |= yield from _refine(scores, searches)
        elif searches:
            found = yield from _collect(scores, list(searches.values())).read()
            for (i, s), (places, values) in zip(searches.items(), found, strict=True):
                cuts[i] = _cut_of(np.concatenate(places), np.concatenate(values), s)
    return [cuts[i] for i in range(len(wanted))]


def _trivial_cut(k: Count, elements: int) -> Cut | None:
    """The cut that needs no look at the values; None when it does."""
    if callable(k) or 0 < k <= elements:
        return None
    return NOTHING if k <= 0 else EVERYTHING


def _upper_histograms(scores: Scores, quantities: list[int], count_nonzero: bool) -> Pass[_PartialCounts, _Counts]:
    """Histograms of the upper 16 bits of these quantities, int64 [quantities, 32768], and counts of values not zero.

    The latter stay 0 unless `count_nonzero`.
    """

    def count(x: Stack, chunk: Chunk) -> _PartialCounts:
        histograms = np.zeros((len(quantities), 1 << 15), np.uint32)
        nonzero = np.zeros(len(quantities), np.int64)
        for block, _ in _blocks(x, chunk, scores):
            for i, quantity in enumerate(quantities):
                count_upper(block[quantity].view(np.uint32), histograms[i])
                if count_nonzero:
                    nonzero[i] += count_filled(block[quantity].view(np.uint32))
        return [_filled_bins(h) for h in histograms], nonzero

    def add(so_far: _Counts, partial: _PartialCounts) -> _Counts:
        for total, (bins, counts) in zip(so_far[0], partial[0], strict=True):
            total[bins] += counts
        return so_far[0], so_far[1] + partial[1]

    return Pass(count, add, (np.zeros((len(quantities), 1 << 15), np.int64), np.zeros(len(quantities), np.int64)))


def _filled_bins(histogram: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The few bins of a histogram that are not empty, and their counts."""
    bins = np.flatnonzero(histogram)
    return bins, histogram[bins]


def _collect(scores: Scores, searches: list[_Search]) -> Pass[_Found, _Found]:
    """Element indices and bits of the values in each search's bin, in element order."""

    def matches(x: Stack, chunk: Chunk) -> _Found:
        found: _Found = [([], []) for _ in searches]
        for block, start in _blocks(x, chunk, scores):
            for (places, values), s in zip(found, searches, strict=True):
                bits = block[s.quantity].view(np.uint32)
                inside = places_in_bin(bits, s.bin)
                places.append(inside + start)
                values.append(bits[inside] & MAGNITUDE)
        return found

    def join(so_far: _Found, partial: _Found) -> _Found:
        for (places, values), (more_places, more_values) in zip(so_far, partial, strict=True):
            places += more_places
            values += more_values
        return so_far

    return Pass(matches, join, [([], []) for _ in searches])


def _cut_of(index: NDArray[np.int64], bits: NDArray[np.uint32], search: _Search) -> Cut:
    kth = np.partition(bits, len(bits) - search.rank)[len(bits) - search.rank]
    equal = index[bits == kth]
    return Cut(int(kth), int(equal[search.rank - np.count_nonzero(bits > kth) - 1]))


def _refine(scores: Scores, searches: dict[int, _Search]) -> Passes[dict[int, Cut]]:
    """The cuts by another histogram and, where equal values must be told apart, a pass that looks for the last one."""
    listed = list(searches.values())

    def count(x: Stack, chunk: Chunk) -> NDArray[np.uint32]:
        histograms = np.zeros((len(listed), 1 << 16), np.uint32)
        for block, _ in _blocks(x, chunk, scores):
            for histogram, s in zip(histograms, listed, strict=True):
                count_lower(block[s.quantity].view(np.uint32), s.bin, histogram)
        return histograms

    counts = yield from Pass(count, add_counts, np.zeros((len(listed), 1 << 16), np.int64)).read()
    cuts: dict[int, Cut] = {}
    ties: list[tuple[int, int, int, int]] = []  # which cut, quantity, bits, how many of the equal values belong to it
    for (i, s), histogram in zip(searches.items(), counts, strict=True):
        lower, rank = _kth_bin(histogram, s.rank)
        bits = s.bin << 16 | lower
        cuts[i] = Cut(bits, EVERYTHING.last)
        if bits and rank < histogram[lower]:
            ties.append((i, s.quantity, bits, rank))
    if not ties:
        return cuts

    def equal_places(x: Stack, chunk: Chunk) -> list[_Equal]:
        found: list[list[tuple[int, int, NDArray[np.uint8]]]] = [[] for _ in ties]
        for block, start in _blocks(x, chunk, scores):
            for places, (_, quantity, bits, _) in zip(found, ties, strict=True):
                equal = block[quantity].view(np.uint32) & MAGNITUDE == np.uint32(bits)
                places.append((start, int(np.count_nonzero(equal)), np.packbits(equal)))
        return [(sum(n for _, n, _ in places), places) for places in found]

    def look_for_last(so_far: list[_End], partial: list[_Equal]) -> list[_End]:
        """so_far: per tie, how many equal values are still to come, and the element index of the last once found."""
        result: list[_End] = []
        for (missing, last), (count, places) in zip(so_far, partial, strict=True):
            if last is None and count >= missing:
                for start, n, packed in places:
                    if n >= missing:
                        last = start + int(np.flatnonzero(np.unpackbits(packed))[missing - 1])
                        break
                    missing -= n
            elif last is None:
                missing -= count
            result.append((missing, last))
        return result

    start: list[_End] = [(rank, None) for *_, rank in ties]
    ends = yield from Pass(equal_places, look_for_last, start).read()
    for (i, _, bits, _), (_, last) in zip(ties, ends, strict=True):
        assert last is not None, "a tie has as many equal values as are looked for"
        cuts[i] = Cut(bits, last)
    return cuts


def _kth_bin(histogram: NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest value, and which of that bin's values it is, counted from the largest."""
    falling = histogram[::-1]
    so_far = np.cumsum(falling)
    at = int(np.searchsorted(so_far, k))
    return len(histogram) - 1 - at, k - int(so_far[at] - falling[at])


_BLOCK = 1 << 15


def _blocks(x: Stack, chunk: Chunk, scores: Scores) -> Generator[tuple[NDArray[np.float32], int], None, None]:
    """The scores of a chunk by groups of rows, and the element index that each group starts at."""
    for first, end in row_groups(x):
        yield scores(x, chunk, first, end), chunk.start + first * x.shape[2]


def row_groups(x: Stack) -> Generator[tuple[int, int], None, None]:
    """The rows of a stack by groups [first, end), so small that scratch memory for one group stays in the cache."""
    _, rows, n = x.shape
    step = max(1, _BLOCK // max(1, n))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


@kernel
def count_upper(bits, histogram):
    """histogram[b >> 16] += 1 for each b of `bits`, uint32, without its highest bit."""
    for i in range(bits.size):
        histogram[(bits[i] & MAGNITUDE) >> np.uint32(16)] += 1


@kernel
def count_filled(bits):
    """How many of `bits` are not zero."""
    count = 0
    for i in range(bits.size):
        count += bits[i] != np.uint32(0)
    return count


@kernel
def count_lower(bits, upper, histogram):
    """histogram[b & 65535] += 1 for each b of `bits` whose upper 16 bits are `upper`, but for the highest."""
    for i in range(bits.size):
        if (bits[i] & MAGNITUDE) >> np.uint32(16) == upper:
            histogram[bits[i] & np.uint32(0xFFFF)] += 1


@kernel
def places_in_bin(bits, upper):
    """Positions of the values whose upper 16 bits are `upper`, but for the highest; int64, ascending."""
    count = 0
    for i in range(bits.size):
        count += (bits[i] & MAGNITUDE) >> np.uint32(16) == upper
    places = np.empty(count, np.int64)
    at = 0
    for i in range(bits.size):
        if (bits[i] & MAGNITUDE) >> np.uint32(16) == upper:
            places[at] = i
            at += 1
    return places
