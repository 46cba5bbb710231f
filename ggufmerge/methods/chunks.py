"""Cuts tensors into chunks: whole rows, about as many values as one is to hold."""

from __future__ import annotations

from ggufmerge.methods.spec import Chunk


def chunks_of(rows: int, n: int, values: int, matrix: int | None = None) -> list[Chunk]:
    """The chunks of a tensor of so many rows of n values, in order; none when it has no values.

    values: that a chunk holds at most, but for one of a single row.
    matrix: rows of each of the matrices that are stacked in the tensor; no chunk crosses the end of one. None for one.
    """
    if not rows * n:
        return []
    step, matrix = max(1, values // n), matrix or rows
    starts = [row for first in range(0, rows, matrix) for row in range(first, first + matrix, step)]
    ends = [min(row + step, row - row % matrix + matrix) for row in starts]
    return [Chunk(i, row, end - row, row * n) for i, (row, end) in enumerate(zip(starts, ends, strict=True))]
