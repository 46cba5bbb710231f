"""How the weights of a model's file were rounded, for `ggufmerge.noise`: the steps of rows that are read, and the
importance matrix that its metadata names."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from ggufmerge.files.metadata import KeyValues
from ggufmerge.keys import IMATRIX_CHUNKS, IMATRIX_DATASET, IMATRIX_FILE
from ggufmerge.noise.steps import squared_steps
from ggufmerge.sources.model import SourceTensor, TensorReader

Floats = NDArray[np.float32]


def fill_steps(reader: SourceTensor, start: int, x: Floats, out: Floats) -> None:
    """Fill `out`, float32 [k, groups], with the squares of the steps of rows from `start` on, whose values are `x`."""
    rows = np.arange(start, start + len(x))
    raw = reader.raw_rows(start, start + len(x)) if reader.type.is_quantized else np.empty((len(x), 0), np.uint8)
    if reader.scales is None:
        squared_steps(raw, x, reader.type, out)
        return
    scales = reader.scales[rows * len(reader.scales) // reader.rows, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        squared_steps(raw, np.where(scales == 0, 0, x / scales), reader.type, out)
    out *= scales * scales


def is_exact(base: TensorReader, model: TensorReader) -> bool:
    """Whether a difference has no rounding errors in it: of floats, and of adapters on one file."""
    if base.same_data(model) or not (base.type.is_quantized or model.type.is_quantized):
        return True
    return not (isinstance(base, SourceTensor) and isinstance(model, SourceTensor))


def matrix_of(metadata: KeyValues) -> str | None:
    """What tells the importance matrix that a file was quantized with from others, by its metadata; None without."""
    named = metadata.text(IMATRIX_DATASET) or metadata.text(IMATRIX_FILE)
    if not named:
        return None
    return f"{PurePath(named.replace(chr(92), '/')).name} {metadata.integer(IMATRIX_CHUNKS)}"
