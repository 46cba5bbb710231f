"""Grids: where the values of a group of weights may lie, once the scale of their block is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """The grid of a block format, in units of the scales that `quants.units` reads.

    typical_step: the distance of neighbouring values relative to the RMS of normally distributed weights, root of the
        mean square over 512 Ki of them.
    gain: what changes of less than a step are multiplied by when they are rounded stochastically. Without it a part of
        them is lost: values at the ends of a grid cannot go further, and the entries of code books stand in one
        another's way. Measured on the same weights for changes of 1 %.
    spacing: units from one value to the next; on average where these are not equal.
    levels: the multiples of a unit that a value can be, where they are not at equal distances; rising.
    book: how many weights are written together as one entry of a code book; 0 where each has a code of its own.
    """

    typical_step: float
    gain: float = 1
    spacing: float = 1
    levels: tuple[int, ...] = ()
    book: int = 0
