"""Block formats of GGML, bit-exact with ggml: `codec(type)` finds one, `quantize` and `dequantize` use it at once."""

from __future__ import annotations

import importlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufmerge.errors import GgufmergeError, ShapeError
from ggufmerge.quants.codec import Codec
from ggufmerge.quants.grid import Grid
from ggufmerge.types import TensorType

# Which module holds a type's kernels; a module is imported (and compiled) only when one of its types is used.
_MODULES: dict[str, tuple[str, ...]] = {
    "floats": ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"),
    "legacy": ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    "k": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    "iq4": ("IQ4_NL", "IQ4_XS"),
    "iq3": ("IQ3_XXS", "IQ3_S"),
    "iq2": ("IQ2_XXS", "IQ2_XS", "IQ2_S"),
    "iq1": ("IQ1_S", "IQ1_M"),
    "ternary": ("TQ1_0", "TQ2_0"),
    "fp4": ("MXFP4", "NVFP4"),
    "tiny": ("Q1_0", "Q2_0"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def codec(type: TensorType) -> Codec:  # noqa: A002
    """The codec of a tensor type; GgufmergeError for types that never stand in files (Q8_1, Q8_K)."""
    try:
        module = _MODULE_OF[type]
    except KeyError:
        raise GgufmergeError(f"{type} is an intermediate type of ggml that files do not hold") from None
    codecs: dict[TensorType, Codec] = importlib.import_module(f"ggufmerge.quants.{module}").CODECS
    return codecs[type]


def grid_of(type: TensorType) -> Grid | None:  # noqa: A002
    """The grid that the values of a block of this type lie on; None when the type has no blocks with scales."""
    return codec(type).grid if type in _MODULE_OF else None


def dequantize(raw: NDArray[np.uint8], type: TensorType | str, n: int) -> NDArray[np.float32]:  # noqa: A002
    """uint8 [rows, row_bytes] of a type to float32 [rows, n], bit-equal to ggml.

    GgufmergeError for an unknown type; ShapeError (one of them, and a ValueError) when rows of n values are no whole
    blocks, or the bytes no whole rows.
    """
    kind = TensorType.parse(type)
    raw, width = np.ascontiguousarray(raw, np.uint8), kind.row_bytes(n)
    if raw.size % max(width, 1):
        raise ShapeError(f"{kind}: {raw.size} bytes are not a whole number of rows of {n} values ({width} bytes)")
    raw = raw.reshape(-1, width)
    out = np.empty((raw.shape[0], n), np.float32)
    codec(kind).dequantize(raw, out)
    return out


def quantize(x: ArrayLike, type: TensorType | str, imatrix: ArrayLike | None = None) -> NDArray[np.uint8]:  # noqa: A002
    """float32 [rows, n] to uint8 [rows, row_bytes] of a type, byte-equal to `ggml_quantize_chunk` on x86-64.

    imatrix: float32 [n], the mean squared activation of each column; ignored by the types that ggml ignores it for.
    GgufmergeError for a type that is unknown or cannot be written; ShapeError (one of them, and a ValueError) when a
    row is no whole number of blocks, with types that fit, or the matrix has another length.
    """
    kind = TensorType.parse(type)
    rows = np.ascontiguousarray(np.atleast_2d(np.asarray(x, np.float32)))
    n = rows.shape[1]
    out = np.empty((rows.shape[0], kind.row_bytes(n)), np.uint8)
    weights = None if imatrix is None else np.ascontiguousarray(imatrix, np.float32)
    if weights is not None and weights.shape != (n,):
        raise ShapeError(f"imatrix has shape {weights.shape}, expected ({n},): one value per column")
    codec(kind).encode(rows, out, weights)
    return out
