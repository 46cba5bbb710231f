"""Chunks: whole rows, all of them once, none across the end of a matrix."""

from __future__ import annotations

import pytest

from ggufmerge.methods.chunks import chunks_of

SHAPES = [(12, 5, 4), (12, 5, 12), (1, 7, 1), (60, 3, 6), (9, 1, 3)]


@pytest.mark.parametrize("values", [1, 4, 5, 11, 16, 1000])
@pytest.mark.parametrize(("rows", "n", "matrix"), SHAPES)
def test_chunks_have_all_rows_in_order(rows: int, n: int, matrix: int, values: int) -> None:
    """With the numbers of their first values."""
    chunks = chunks_of(rows, n, values, matrix)
    assert [row for chunk in chunks for row in range(chunk.row, chunk.end)] == list(range(rows))
    assert [(c.index, c.start) for c in chunks] == [(i, c.row * n) for i, c in enumerate(chunks)]


@pytest.mark.parametrize("values", [1, 4, 5, 11, 16, 1000])
@pytest.mark.parametrize(("rows", "n", "matrix"), SHAPES)
def test_a_chunk_is_of_one_matrix_and_as_large_as_it_may_be(rows: int, n: int, matrix: int, values: int) -> None:
    """No more values than asked for, unless a row has more, and another row only where the matrix goes on."""
    for chunk in chunks_of(rows, n, values, matrix):
        assert chunk.row // matrix == (chunk.end - 1) // matrix
        assert chunk.rows == 1 or chunk.rows * n <= values
        assert chunk.end % matrix == 0 or (chunk.rows + 1) * n > values


@pytest.mark.parametrize(("rows", "n"), [(0, 5), (5, 0), (0, 0)])
def test_a_tensor_without_values_has_no_chunks(rows: int, n: int) -> None:
    """Not even one of rows without values."""
    assert chunks_of(rows, n, 16) == []
