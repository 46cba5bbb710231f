"""Stochastic rounding: on the grids of the blocks, on average where the weights are, the same however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.methods.random import words
from ggufmerge.quants import codec, dequantize, grid_of, quantize
from ggufmerge.quants.encoders import Piece, encoder, keep_scales, round_on_grid
from ggufmerge.quants.units import TYPES, units
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
Raw = NDArray[np.uint8]
GRIDS = {kind: grid for kind in TYPES if (grid := grid_of(kind)) is not None}
EVEN = [kind for kind, grid in GRIDS.items() if not grid.levels and not grid.book]
CODED = [kind for kind, grid in GRIDS.items() if not grid.book]  # each weight has a code of its own
BOOKS = [kind for kind, grid in GRIDS.items() if grid.book]


def stored(kind: TensorType, rows: int = 8, n: int = 256) -> Raw:
    """Weights as a file of this type has them."""
    x = np.random.default_rng(0).standard_normal((rows, n)).astype(np.float32)
    return quantize(x, kind, np.ones(n, np.float32) if codec(kind).needs_imatrix else None)


def piece_of(kind: TensorType, change: Floats | float, key: int = 7, raw: Raw | None = None, start: int = 0) -> Piece:
    """A change of weights that are stored in a type."""
    blocks = stored(kind) if raw is None else raw
    base = dequantize(blocks, kind, 256)

    def chance(out: NDArray[np.uint32]) -> None:
        out[:] = words(np.uint64(key), start, out.size)

    return Piece((base + change).astype(np.float32), base, blocks, [(base, blocks)], chance=chance)


def written(kind: TensorType, piece: Piece) -> Raw:
    raw = np.empty((len(piece.rows), kind.row_bytes(piece.rows.shape[1])), np.uint8)
    encoder("stochastic").encode(codec(kind), piece, raw)
    return raw


def small(rows: int = 8, size: float = 0.02) -> Floats:
    return np.random.default_rng(1).normal(0, size, (rows, 256)).astype(np.float32)


def test_every_type_with_scales_has_a_grid() -> None:
    """All that are read and written in blocks, and no other."""
    assert set(TYPES) == {kind for kind in TensorType if grid_of(kind)}
    assert all(codec(kind).recode for kind in TYPES)


@pytest.mark.parametrize("kind", EVEN)
def test_moves_are_whole_steps(kind: TensorType) -> None:
    """One more or one less than the change, from the old value in the scale of its block."""
    piece = piece_of(kind, small())
    assert piece.base is not None
    assert piece.blocks is not None
    luck = words(np.uint64(7), 0, piece.rows.size).reshape(piece.rows.shape)
    found = round_on_grid(codec(kind), piece, luck)
    steps = np.abs(units(piece.blocks, kind)) * GRIDS[kind].spacing
    step = np.repeat(steps, 256 // steps.shape[1], axis=1).astype(np.float64)
    used = step > 0
    moves = ((found - piece.base)[used] / step[used]).astype(np.float64)
    np.testing.assert_allclose(moves, np.rint(moves), atol=1e-3)
    assert (np.abs(moves - (piece.rows - piece.base)[used] / step[used]) < 1.01).all()
    np.testing.assert_array_equal(found[~used], piece.rows[~used])


@pytest.mark.parametrize("kind", CODED)
def test_weights_move_to_values_beside_them(kind: TensorType) -> None:
    """What is written of a small change is the old value or one of its two neighbours in the block's own scale."""
    piece = piece_of(kind, small(size=0.02 * GRIDS[kind].typical_step))
    assert piece.blocks is not None
    back = dequantize(written(kind, piece), kind, 256)
    grid, scales = GRIDS[kind], units(piece.blocks, kind)
    unit = np.repeat(scales, 256 // scales.shape[1], axis=1).astype(np.float64)
    moves = np.abs(back - piece.base)[unit != 0] / np.abs(unit[unit != 0])
    allowed = [grid.spacing] if not grid.levels else sorted(set(np.diff(grid.levels).tolist()))
    nearest = np.min([np.abs(moves - gap) for gap in [0.0, *allowed]], axis=0)
    assert (nearest < 1e-2).all()
    assert (moves > 0.5 * min(allowed)).any()  # some do


@pytest.mark.parametrize("kind", GRIDS)
def test_a_change_of_nothing_keeps_the_bytes(kind: TensorType) -> None:
    """Whatever chance says."""
    raw = stored(kind)
    np.testing.assert_array_equal(written(kind, piece_of(kind, 0.0)), raw)


@pytest.mark.parametrize("kind", GRIDS)
def test_a_small_change_survives_on_average(kind: TensorType) -> None:
    """Its projection on what was wanted, over many streams, is the change; the nearest keeps next to nothing."""
    raw, change = stored(kind, rows=16), small(16, 0.01)
    tries = 60
    kept = 0.0
    for key in range(tries):
        piece = piece_of(kind, change, key, raw)
        moved = (dequantize(written(kind, piece), kind, 256) - piece.base).astype(np.float64)
        kept += float((moved * change).sum())
    spread = 0.05 if GRIDS[kind].typical_step < 0.5 else 0.25  # chance alone, of so few weights
    assert kept / (tries * float(np.square(change, dtype=np.float64).sum())) == pytest.approx(1, abs=spread + 0.05)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "IQ4_NL"])
def test_on_average_results_are_where_the_weights_are(kind: str) -> None:
    """Each of them that is not at an end of its grid, over many streams, to the error of the mean."""
    type_ = TensorType[kind]
    raw, change = stored(type_, rows=1), small(1)
    luck = [words(np.uint64(key), 0, 256).reshape(1, 256) for key in range(400)]
    piece = piece_of(type_, change, 0, raw)
    tries = np.stack([round_on_grid(codec(type_), piece, one) - piece.base for one in luck])
    error = ((tries.mean(0) / GRIDS[type_].gain - change) ** 2).sum()
    assert error < 1.5 * tries.var(0).sum() / 400


def test_changes_beyond_a_step_are_not_enlarged() -> None:
    """What makes up for the ends of a grid is for small changes; a whole step is a whole step."""
    kind = TensorType.Q2_K
    raw = stored(kind)
    steps = np.abs(units(raw, kind))
    step = np.repeat(steps, 256 // steps.shape[1], axis=1)
    piece = piece_of(kind, 0.0)
    assert piece.base is not None
    wanted = Piece(piece.base + 2 * step, piece.base, raw)
    found = round_on_grid(codec(kind), wanted, np.full(wanted.rows.shape, 1 << 31, np.uint32))
    np.testing.assert_allclose(found, wanted.rows, atol=1e-5)


def test_what_a_block_cannot_hold_is_quantized_anew() -> None:
    """Weights that grew tenfold do not stay in the scale that they had."""
    kind = TensorType.Q4_K
    piece = piece_of(kind, 0.0)
    assert piece.base is not None
    far = Piece(piece.base * np.float32(10), piece.base, piece.blocks, chance=piece.chance)
    assert np.abs(far.rows).max() > 20
    assert np.abs(dequantize(written(kind, far), kind, 256) - far.rows).max() < 0.5


def test_one_weight_that_is_cut_off_moves_no_other() -> None:
    """A new grid would round the whole block again, which costs more."""
    kind = TensorType.Q4_0
    raw = stored(kind, rows=1)
    base = dequantize(raw, kind, 256)
    steps = units(raw, kind)
    x = base.copy()
    at = int(np.abs(base[0, :32]).argmax())
    x[0, at] += np.float32(np.sign(base[0, at]) * abs(steps[0, 0]))
    out = np.empty_like(raw)
    keep_scales(codec(kind), raw, x, out)
    np.testing.assert_array_equal(out, raw)


def test_groups_without_a_scale_have_no_grid() -> None:
    """Zeros above all: what is added to them is quantized as it is."""
    kind = TensorType.Q4_0
    raw = quantize(np.zeros((1, 256), np.float32), kind)
    rows = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
    back = dequantize(written(kind, piece_of(kind, rows, raw=raw)), kind, 256)
    np.testing.assert_array_equal(back, dequantize(quantize(rows, kind), kind, 256))


@pytest.mark.parametrize("kind", ["Q4_0", "IQ4_XS", "IQ2_XS"])
def test_rows_may_be_cut_anywhere(kind: str) -> None:
    """Each value has its own number in the stream."""
    type_ = TensorType[kind]
    raw = stored(type_)
    whole = written(type_, piece_of(type_, 0.01, 3, raw))
    parts = [written(type_, piece_of(type_, 0.01, 3, raw[i : i + 3], 256 * i)) for i in range(0, 8, 3)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_offsets_and_scales_are_those_of_the_blocks() -> None:
    """NVFP4 with a scale beside it, and weights that are stored with something added."""
    kind = TensorType.NVFP4
    raw = stored(kind)
    inside = dequantize(raw, kind, 256)
    scale, offset = np.float32(0.25), 1.0
    base = inside * scale - np.float32(offset)
    change = small(size=0.005)

    def chance(out: NDArray[np.uint32]) -> None:
        out[:] = words(np.uint64(1), 0, out.size)

    piece = Piece(base + change, base, raw, [(base, raw)], offset=offset, scale=scale, chance=chance)
    moved = (dequantize(written(kind, piece), kind, 256) - inside) * scale
    assert float((moved * change).sum() / (change * change).sum()) == pytest.approx(1, abs=0.35)
    assert ((moved != 0).mean()) < 0.3  # most weights stay where they are


def test_without_blocks_there_is_no_grid() -> None:
    """Rows of another type are rounded to the nearest."""
    x = np.random.default_rng(3).standard_normal((2, 256)).astype(np.float32)
    with pytest.raises(GgufmergeError, match="no grid"):
        round_on_grid(codec(TensorType.F16), Piece(x, x), np.zeros(x.shape, np.uint32))
    piece = Piece(x, x, chance=lambda out: None)
    np.testing.assert_array_equal(written(TensorType.Q4_0, piece), quantize(x, TensorType.Q4_0))
