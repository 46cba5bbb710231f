"""What to say of weights that are NaN or infinite: which source, which tensor, where, and what to do.

No method gives a meaningful result from them, and some would drop them without a word: a comparison with NaN is false.
So rows are looked through where they are read and where they are copied (`sources.model`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import DamageError
from ggufmerge.formats.stored import StoredTensor
from ggufmerge.quants import codec, dequantize
from ggufmerge.quants.magnitude import first_bad
from ggufmerge.sources.lora import Change

_AGAIN = "download or convert it again"


def damage(
    label: str, tensor: StoredTensor, raw: NDArray[np.uint8], rows: NDArray[np.integer[Any]], block: int
) -> DamageError:
    """Of block number `block` of `raw`, the stored bytes of the rows of these numbers."""
    blocks = tensor.n // tensor.type.block_size
    row, start = divmod(block, blocks)
    start *= tensor.type.block_size
    with np.errstate(all="ignore"):
        values = dequantize(raw[row : row + 1], tensor.type, tensor.n).reshape(-1)
    bad = first_bad(values[start : start + tensor.type.block_size])
    where = place(tensor.shape, int(rows[row]), start + max(bad, 0))
    if bad >= 0:
        what = f"the weight at {where} is {_named(values[start + bad])}"
    else:  # a scale that is NaN in the format's standard, which ggml reads as a number
        what = f"the scale of the block at {where} is NaN"
    return DamageError(f"{label}: {tensor.name}: {what}; the file is damaged, {_AGAIN} or leave it out")


def too_large(
    label: str, tensor: StoredTensor, rows: NDArray[np.integer[Any]], values: NDArray[np.float32]
) -> DamageError:
    """Of stored numbers that are finite, but not as the float32 that they mean."""
    row, column = divmod(first_bad(values), tensor.n)
    where = place(tensor.shape, int(rows[row]), column)
    return DamageError(
        f"{label}: {tensor.name}: the weight at {where} is too large for float32; the file "
        f"is damaged, {_AGAIN} or leave it out"
    )


def adapter_damage(
    label: str, tensor: StoredTensor, delta: Change, start: int, values: NDArray[np.float32]
) -> DamageError:
    """Of an adapter: `values` are rows from `start` on, finite before it changed them."""
    path = delta.path
    for half in delta.parts:
        raw = half.raw_rows(0, half.rows)
        block = codec(half.type).damaged(raw)
        if block >= 0:
            return damage(str(path), half, raw, np.arange(half.rows), block)
    row, column = divmod(first_bad(values), tensor.n)
    return DamageError(
        f"{label}: {tensor.name}: the adapter {path} makes the weight at "
        f"{place(tensor.shape, start + row, column)} too large for float32; lower its strength, or use another adapter"
    )


def place(shape: tuple[int, ...], row: int, column: int) -> str:
    """Where a value is in a tensor, all counted from 0; `row` counts the rows of all its matrices."""
    if len(shape) < 2:
        return f"place {column}"
    where = f"row {row % shape[-2]}, column {column}"
    return where if math.prod(shape[:-2]) == 1 else f"matrix {row // shape[-2]}, {where}"


def _named(value: np.float32) -> str:
    return "NaN" if np.isnan(value) else "infinite"
