"""The block formats that calibrated rounding writes: the levels of their values, and the scales of their groups.

A value of a group of columns is scale * level + low, where a level is what its code stands for. Where a block has one
scale, both are floats of the block. In the K-quants, IQ4_XS and the 4-bit floats a group has whole numbers: multiples
of a unit that the block has, or places in a table.

Scales are a few percent of a file and are read and written with NumPy. Arrays: blocks are uint8 [rows, bytes of a
block], numbers and scales float32 [groups, rows], units float32 [rows].

Source: the layouts of `ggml-common.h` of llama.cpp v0.5.0, as in the modules of the formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.quants.fp4 import E8M0, UE4M3, VALUES
from ggufmerge.quants.iq4 import LEVELS
from ggufmerge.quants.units import Numbers, half_at, iq4_xs_numbers, q3_k_numbers, q4_k_numbers, q6_k_numbers
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]


@dataclass
class Scales:
    """The scales of one block of each row, as the format stores them.

    numbers, lows: float32 [groups, rows].  unit, low_unit: float32 [rows].
    """

    numbers: Floats
    lows: Floats
    unit: Floats
    low_unit: Floats


@dataclass(frozen=True)
class Form:
    """How a type writes its groups of columns.

    group: columns that share a scale.  levels: float32, what the codes stand for, rising.
    read, write: the scales of blocks; `write` puts numbers and lows into blocks that keep their units.
    floats: whether numbers are floats rather than whole numbers.  has_low: whether there are lows.
    reach: for whole numbers the first and the last one, those of lows, and how far from the present number (and low)
        others are tried.
    shrink: for floats, the parts of the block's largest value that the outermost level is tried at.
    table: the scale of each number, where that is not the number times the unit.
    """

    group: int
    levels: Floats
    read: Callable[[Blocks], Scales]
    write: Callable[[Blocks, Scales], None]
    has_low: bool = False
    reach: tuple[tuple[int, int], tuple[int, int]] | None = None
    tried: tuple[tuple[int, ...], tuple[int, ...]] = ((0,), (0,))
    shrink: tuple[float, ...] = ()
    table: Floats | None = None

    @property
    def floats(self) -> bool:
        return self.reach is None

    @property
    def uniform(self) -> bool:
        """Whether the levels are all the whole numbers from the first to the last."""
        return bool((np.diff(self.levels) == 1).all())

    def worth(self, scales: Scales, numbers: Floats, lows: Floats) -> tuple[Floats, Floats]:
        """The scales and lows that numbers [k, rows] stand for, float32 [k, rows]."""
        if self.table is not None:
            return self.table[numbers.astype(np.int64)], np.zeros_like(numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            return scales.unit * numbers, scales.low_unit * lows


def halves(values: Floats) -> Floats:
    """Values rounded to float16; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _put_half(blocks: Blocks, at: int, values: Floats) -> None:
    blocks[:, at : at + 2] = values.astype("<f2")[:, None].view(np.uint8)


def _unit(blocks: Blocks, at: int) -> Floats:
    """float32 [rows]: the float16 at a byte of each block."""
    return half_at(blocks, at)[:, 0]


def _float_form(levels: Floats, group: int, at: int, shrink: tuple[float, ...], low_at: int | None = None) -> Form:
    def read(blocks: Blocks) -> Scales:
        d = _unit(blocks, at)
        low = _unit(blocks, low_at) if low_at is not None else np.zeros_like(d)
        ones = np.ones_like(d)
        return Scales(d[None], low[None], ones, ones)

    def write(blocks: Blocks, scales: Scales) -> None:
        _put_half(blocks, at, scales.numbers[0])
        if low_at is not None:
            _put_half(blocks, low_at, scales.lows[0])

    return Form(group, levels, read, write, has_low=low_at is not None, shrink=shrink)


def _whole(numbers: NDArray[np.integer]) -> Floats:
    """[rows, groups] to float32 [groups, rows]."""
    return np.ascontiguousarray(numbers.T.astype(np.float32))


def _bytes(numbers: Floats, shift: int = 0) -> NDArray[np.int32]:
    """[groups, rows] to int32 [rows, groups]."""
    return numbers.T.astype(np.int32) + shift


def _read_q2_k(blocks: Blocks) -> Scales:
    packed = blocks[:, :16].astype(np.int32)
    return Scales(_whole(packed & 15), _whole(packed >> 4), _unit(blocks, 80), -_unit(blocks, 82))


def _write_q2_k(blocks: Blocks, scales: Scales) -> None:
    blocks[:, :16] = _bytes(scales.numbers) | _bytes(scales.lows) << 4


def _symmetric(at: int, numbers_of: Callable[[Blocks], Numbers]) -> Callable[[Blocks], Scales]:
    """Reads scales that are whole numbers in units of the float16 at a byte of the block, without lows."""

    def read(blocks: Blocks) -> Scales:
        numbers = _whole(numbers_of(blocks))
        return Scales(numbers, np.zeros_like(numbers), _unit(blocks, at), np.ones(len(blocks), np.float32))

    return read


def _write_q3_k(blocks: Blocks, scales: Scales) -> None:
    u = _bytes(scales.numbers, 32)
    high = u >> 4
    blocks[:, 96:104] = u[:, :8] & 15 | (u[:, 8:] & 15) << 4
    blocks[:, 104:108] = high[:, :4] | high[:, 4:8] << 2 | high[:, 8:12] << 4 | high[:, 12:] << 6


def _read_q4_k(blocks: Blocks) -> Scales:
    numbers, lows = q4_k_numbers(blocks)
    return Scales(_whole(numbers), _whole(lows), _unit(blocks, 0), -_unit(blocks, 2))


def _write_q4_k(blocks: Blocks, scales: Scales) -> None:
    s, m = _bytes(scales.numbers), _bytes(scales.lows)
    blocks[:, 4:8] = s[:, :4] | s[:, 4:] >> 4 << 6
    blocks[:, 8:12] = m[:, :4] | m[:, 4:] >> 4 << 6
    blocks[:, 12:16] = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4


def _write_q6_k(blocks: Blocks, scales: Scales) -> None:
    blocks[:, 192:208] = _bytes(scales.numbers).astype(np.int8).view(np.uint8)


def _write_iq4_xs(blocks: Blocks, scales: Scales) -> None:
    u = _bytes(scales.numbers, 32)
    high = ((u >> 4) << 2 * np.arange(8)).sum(axis=1)
    blocks[:, 2:4] = high.astype("<u2")[:, None].view(np.uint8)
    blocks[:, 4:8] = u[:, ::2] & 15 | (u[:, 1::2] & 15) << 4


def _table_form(table: Floats, size: int, group: int, tried: tuple[int, ...], last: int) -> Form:
    """`size` bytes at the start of a block, each the place of a scale in a table."""

    def read(blocks: Blocks) -> Scales:
        numbers = _whole(blocks[:, :size])
        ones = np.ones(len(blocks), np.float32)
        return Scales(numbers, np.zeros_like(numbers), ones, ones)

    def write(blocks: Blocks, scales: Scales) -> None:
        blocks[:, :size] = _bytes(scales.numbers)

    return Form(group, _E2M1, read, write, reach=((0, last), (0, 0)), tried=(tried, (0,)), table=table)


def _codes(first: int, end: int) -> Floats:
    return np.arange(first, end, dtype=np.float32)


_E2M1 = np.unique(VALUES).astype(np.float32)
_AROUND = (0, -3, -2, -1, 1, 2, 3)
_WIDE = (0.66, 0.72, 0.78, 0.84, 0.9, 0.96, 1.02, 1.08)
_ENDS = (0.7, 0.8, 0.9, 1.0)
_K4 = ((0, 63), (0, 63))

FORMS: dict[TensorType, Form] = {
    TensorType.Q4_0: _float_form(_codes(-8, 8), 32, 0, _WIDE),
    TensorType.Q5_0: _float_form(_codes(-16, 16), 32, 0, (0.78, 0.832, 0.884, 0.936, 0.988, 1.04)),
    TensorType.Q8_0: _float_form(_codes(-127, 128), 32, 0, (0.96, 0.98, 1.0)),
    TensorType.Q4_1: _float_form(_codes(0, 16), 32, 0, _ENDS, low_at=2),
    TensorType.Q5_1: _float_form(_codes(0, 32), 32, 0, _ENDS, low_at=2),
    TensorType.IQ4_NL: _float_form(LEVELS, 32, 0, _WIDE),
    TensorType.TQ1_0: _float_form(_codes(-1, 2), 256, 52, (0.3, 0.4, 0.5, 0.6, 0.7, 0.85)),
    TensorType.TQ2_0: _float_form(_codes(-1, 2), 256, 64, (0.3, 0.4, 0.5, 0.6, 0.7, 0.85)),
    TensorType.Q2_K: Form(
        16, _codes(0, 4), _read_q2_k, _write_q2_k, True, ((0, 15), (0, 15)), ((0, -1, 1), (0, -1, 1))
    ),
    TensorType.Q3_K: Form(
        16, _codes(-4, 4), _symmetric(108, q3_k_numbers), _write_q3_k, False, ((-32, 31), (0, 0)), (_AROUND, (0,))
    ),
    TensorType.Q4_K: Form(32, _codes(0, 16), _read_q4_k, _write_q4_k, True, _K4, ((0, -3, -1, 1, 3), (0, -2, 2))),
    TensorType.Q5_K: Form(32, _codes(0, 32), _read_q4_k, _write_q4_k, True, _K4, ((0, -2, 2), (0, -2, 2))),
    TensorType.Q6_K: Form(
        16,
        _codes(-32, 32),
        _symmetric(208, q6_k_numbers),
        _write_q6_k,
        False,
        ((-128, 127), (0, 0)),
        ((0, -3, 3), (0,)),
    ),
    TensorType.IQ4_XS: Form(
        32, LEVELS, _symmetric(0, iq4_xs_numbers), _write_iq4_xs, False, ((-32, 31), (0, 0)), (_AROUND, (0,))
    ),
    TensorType.MXFP4: _table_form(E8M0, 1, 32, (0, -1, 1), 254),
    TensorType.NVFP4: _table_form(UE4M3, 4, 16, _AROUND, 126),
}
