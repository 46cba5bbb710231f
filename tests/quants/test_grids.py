"""The code books are ggml's: the points, and the candidates for groups that are no point, in ggml's order."""

import gguf.quants
import numpy as np
import pytest

from ggufmerge.quants import grids

# levels of a value, values of a group, distinct distances whose points are candidates
GRIDS = {
    "IQ1_S": (3, 8, 3),
    "IQ2_XXS": (3, 8, 2),
    "IQ2_XS": (3, 8, 2),
    "IQ2_S": (3, 8, 1),
    "IQ3_XXS": (8, 4, 2),
    "IQ3_S": (8, 4, 3),
}


@pytest.mark.parametrize("name", GRIDS)
def test_points_are_those_of_gguf_py(name):
    """gguf-py keeps the same tables in another form."""
    reference = getattr(gguf.quants, name)
    reference.init_grid()
    assert np.array_equal(grids.points(name), reference.grid.reshape(reference.grid_shape))


@pytest.mark.parametrize("name", GRIDS)
def test_candidates_are_the_nearest_points(name):
    """Of a group that is no grid point: all points within the first few distinct distances, nearest first, equally
    near ones by index. A grid point has no candidates.
    """
    levels, width, rings = GRIDS[name]
    point, span, neighbours = grids.code_book(name)
    shifts = (2 if width == 8 else 3) * np.arange(width)
    codes = np.flatnonzero(point >= 0)[np.argsort(point[point >= 0])]
    grid = codes[:, None] >> shifts & (3 if width == 8 else 7)
    for group in np.random.default_rng(0).integers(0, levels, (50, width)):
        code = int((group << shifts).sum())
        start, count = span[code] >> 9, span[code] & 511
        distance = ((grid - group) ** 2).sum(1)
        if distance.min() == 0:
            assert point[code] == distance.argmin()
            assert count == 0
            continue
        limit = np.unique(distance)[rings - 1]
        expected = [i for _, i in sorted(zip(distance, range(len(grid)), strict=True)) if distance[i] <= limit]
        assert point[neighbours[start : start + count]].tolist() == expected


@pytest.mark.parametrize("name", GRIDS)
def test_a_vector_may_be_loaded_behind_any_list(name):
    """Kernels load NEIGHBOURS codes from the start of each part of a list, however short the part."""
    _, span, neighbours = grids.code_book(name)
    start, count = span >> 9, span & 511
    last = start + (count - 1) // grids.NEIGHBOURS * grids.NEIGHBOURS
    assert (last[count > 0] + grids.NEIGHBOURS <= neighbours.size).all()


def test_seven_bits_of_signs_stand_for_eight():
    """The eighth makes the number of negative values even."""
    for bits in range(128):
        signs = int(grids.even_signs(np.uint32(bits)))
        assert signs & 127 == bits
        assert signs.bit_count() % 2 == 0
