"""Calibrated rounding: the blocks of a type that keep a matrix's output, rather than its weights, near what it was.

llama.cpp rounds each weight by itself; an importance matrix only weighs the errors. Here the error of a column is fed
forward to the ones behind it (`moments`), the scales of a group are chosen by what they cost after that, and passes of
coordinate descent over the groups follow. What is written are ordinary blocks, read by every llama.cpp.

Rows are independent of each other. Source: GPTQ (Frantar et al. 2022) for the feedback; the scale searches, the descent
and what they are worth are measured in docs/calibration.md.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from ggufmerge.quants.calibrated.forms import FORMS, Form, Scales, halves
from ggufmerge.quants.calibrated.kernels import add_products, from_lanes, less_products, round_groups, to_lanes
from ggufmerge.quants.calibrated.moments import Floats, Moments
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.lanes import LANES
from ggufmerge.types import TensorType

Raw = NDArray[np.uint8]

PASSES = 2  # of descent
_NUDGES = (1.0, 0.94, 0.97, 0.985, 1.015, 1.03, 1.06)  # of a float scale in the descent
_SHIFTS = (0.35, -0.35)  # of a low, in scales


def can_calibrate(kind: TensorType) -> bool:
    """Whether blocks of a type can be written this way."""
    return kind in FORMS


def encode_calibrated(codec: Codec, rows: Floats, moments: Moments, raw: Raw, *, passes: int = PASSES) -> None:
    """Fill `raw`, uint8 [k, row bytes], with blocks for `rows`, float32 [k, n], whose inputs have these moments.

    passes: of descent.
    """
    work = _Work(codec, FORMS[codec.type], rows, moments)
    for block in range(rows.shape[1] // codec.type.block_size):
        work.enter(block)
    for _ in range(passes):
        for block in range(rows.shape[1] // codec.type.block_size):
            work.descend(block)
    work.write(raw)


class _Work:
    """Rows while they are rounded, in tiles of columns (`kernels`)."""

    def __init__(self, codec: Codec, form: Form, rows: Floats, moments: Moments) -> None:
        self.codec, self.form, self.moments = codec, form, moments
        self.k, self.n = rows.shape
        self.tiles = ceil(self.k / LANES)
        self.weights = np.empty(self.tiles * self.n * LANES, np.float32)
        to_lanes(rows, self.weights)
        self.values = np.zeros_like(self.weights)
        self.errors = np.zeros_like(self.weights)  # values - weights
        self.state = np.zeros(self.tiles * moments.size * LANES, np.float32) if moments.factors is not None else None
        self.blocks: list[Raw] = []
        self.scales: list[Scales] = []

    def enter(self, block: int) -> None:
        """Round a block for the first time, with scales around those of ggml's search."""
        size, group = self.codec.type.block_size, self.form.group
        first = block * size
        raw = self._searched(first, size)
        scales = self.form.read(raw)
        self.blocks.append(raw)
        self.scales.append(scales)
        for g in range(size // group):
            start = first + g * group
            targets = self._targets(start, group)
            numbers, lows = self._first_candidates(targets, scales, g)
            present = self._columns(self.weights, start, group)
            weights = self.moments.weights[start : start + group]
            within = self.moments.within(start, start + group)
            self._round(g, start, targets, present, within, weights, scales, numbers, lows)

    def descend(self, block: int) -> None:
        """Move the codes and scales of a block to where the loss is least while all others stay."""
        size, group = self.codec.type.block_size, self.form.group
        scales = self.scales[block]
        for g in range(size // group):
            start = block * size + g * group
            own, slope = self.moments.slope(start, start + group)
            targets = self._products(self.errors, own, slope, start)
            present = self._columns(self.values, start, group)
            targets += present
            numbers, lows = self._near_candidates(scales, g)
            weights = self.moments.diagonal[start : start + group]
            within = self.moments.slope_within(start, start + group)
            self._round(g, start, targets, present, within, weights, scales, numbers, lows)

    def write(self, raw: Raw) -> None:
        """The blocks of all columns."""
        size, width = self.codec.type.block_size, self.codec.type.block_bytes
        values = np.empty((self.k, size), np.float32)
        for block, (data, scales) in enumerate(zip(self.blocks, self.scales, strict=True)):
            self.form.write(data, scales)
            from_lanes(self.values, self.n, block * size, values)
            out = np.empty((self.k, width), np.uint8)
            assert self.codec.recode is not None, "types with forms can be recoded"
            self.codec.recode(np.ascontiguousarray(data[: self.k]), values, out)
            raw[:, block * width : (block + 1) * width] = out

    def _searched(self, first: int, size: int) -> Raw:
        """ggml's blocks for the columns as they should be now, uint8 [tiles * LANES, bytes]."""
        rows = np.empty((self.tiles * LANES, size), np.float32)
        from_lanes(self._targets(first, size), size, 0, rows)
        raw = np.empty((len(rows), self.codec.type.block_bytes), np.uint8)
        self.codec.encode(rows, raw, np.ascontiguousarray(self.moments.importance[first : first + size]))
        return raw

    def _targets(self, first: int, count: int) -> Floats:
        """Where columns should be, as tiles, given the errors of those before them."""
        ahead = self.moments.ahead(first, first + count)
        return self._products(self.weights, np.ones(count, np.float32), ahead, first)

    def _products(self, values: Floats, scale: Floats, coefficients: Floats, first: int) -> Floats:
        """Tiles of scale * values - coefficients @ state."""
        state, size = (self.errors, self.n) if self.state is None else (self.state, self.moments.size)
        out = np.empty(self.tiles * len(scale) * LANES, np.float32)
        less_products(values, self.n, first, scale, np.ascontiguousarray(coefficients), state, size, out)
        return out

    def _columns(self, tiles: Floats, first: int, count: int) -> Floats:
        part = tiles.reshape(self.tiles, self.n, LANES)[:, first : first + count]
        return np.ascontiguousarray(part).reshape(-1)

    def _round(
        self,
        g: int,
        start: int,
        targets: Floats,
        present: Floats,
        within: Floats,
        weights: Floats,
        scales: Scales,
        numbers: Floats,
        lows: Floats,
    ) -> None:
        """Choose among candidates, numbers and lows [candidates, lanes], and take over what comes of it."""
        worth, low = self.form.worth(scales, numbers, lows)
        count = len(weights)
        values, moved = np.empty_like(targets), np.empty_like(targets)
        chosen = np.empty(self.tiles * LANES, np.int64)
        levels, uniform = self.form.levels, self.form.uniform
        round_groups(targets, present, within, weights, worth, low, levels, uniform, values, moved, chosen)
        lanes = np.arange(len(chosen))
        scales.numbers[g], scales.lows[g] = numbers[chosen, lanes], lows[chosen, lanes]
        self.values.reshape(self.tiles, self.n, LANES)[:, start : start + count] = values.reshape(-1, count, LANES)
        self.errors.reshape(self.tiles, self.n, LANES)[:, start : start + count] += moved.reshape(-1, count, LANES)
        if self.state is not None:
            assert self.moments.factors is not None
            add_products(np.ascontiguousarray(self.moments.factors[start : start + count]), moved, self.state)

    def _first_candidates(self, targets: Floats, scales: Scales, g: int) -> tuple[Floats, Floats]:
        form = self.form
        number, low = scales.numbers[g], scales.lows[g]
        if not form.floats:
            return self._around(number, low)
        x = targets.reshape(self.tiles, -1, LANES)
        if not form.has_low:
            top = np.abs(x).max(axis=1).reshape(-1) / np.float32(abs(form.levels[0]))
            tried = [sign * top / np.float32(part) for sign in (1, -1) for part in form.shrink]
            found = halves(np.stack([number, *tried]))
            return found, np.zeros_like(found)
        bottom, top = x.min(axis=1).reshape(-1), x.max(axis=1).reshape(-1)
        middle = (bottom + top) * np.float32(0.5)
        numbers, lows = [number], [low]
        for a in form.shrink:
            for b in form.shrink:
                down = middle + (bottom - middle) * np.float32(a)
                numbers.append((middle + (top - middle) * np.float32(b) - down) / form.levels[-1])
                lows.append(down)
        return halves(np.stack(numbers)), halves(np.stack(lows))

    def _near_candidates(self, scales: Scales, g: int) -> tuple[Floats, Floats]:
        number, low = scales.numbers[g], scales.lows[g]
        if not self.form.floats:
            return self._around(number, low)
        numbers = [number * np.float32(f) for f in _NUDGES]
        lows = [low] * len(numbers)
        if self.form.has_low:
            shifts = [low + number * np.float32(f) for f in _SHIFTS]
            numbers, lows = numbers + [number] * len(shifts), lows + shifts
        return halves(np.stack(numbers)), halves(np.stack(lows))

    def _around(self, number: Floats, low: Floats) -> tuple[Floats, Floats]:
        assert self.form.reach is not None, "whole numbers"
        (first, last), (low_first, low_last) = self.form.reach
        pairs = [(a, b) for a in self.form.tried[0] for b in self.form.tried[1]]
        numbers = np.stack([np.clip(number + np.float32(a), first, last) for a, _ in pairs])
        lows = np.stack([np.clip(low + np.float32(b), low_first, low_last) for _, b in pairs])
        return numbers, lows
