"""The interface of a block format: bytes of rows to float32 and back.

A codec owns the numba kernels of one tensor type. Kernels are single-threaded and release the GIL; whoever calls
them cuts the rows into chunks that fit in cache and drives several threads. Rows are independent of each other, so
the bytes never depend on how rows are cut into chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.quants.simd import INTERPRETED
from ggufmerge.types import TensorType

FLOATS, BYTES = np.dtype(np.float32), np.dtype(np.uint8)

Rows = NDArray[np.float32]
Raw = NDArray[np.uint8]

DequantizeKernel = Callable[[Raw, Rows], None]
QuantizeKernel = Callable[[Rows, Raw], None]
WeightedKernel = Callable[[Rows, Raw, NDArray[np.float32]], None]


@dataclass(frozen=True)
class Codec:
    """One block format. All arrays are C-contiguous; inputs may be read-only (a mapped file) and are never written.

    dequantize(raw, out): uint8 [rows, row_bytes] to float32 [rows, n], bit-equal to ggml's `to_float`.
    quantize(x, out): float32 [rows, n] to uint8 [rows, row_bytes], byte-equal to `ggml_quantize_chunk` without an
        importance matrix; None when ggml has no quantizer or refuses to work without a matrix. No NaN in `x`.
    quantize_weighted(x, out, imatrix): the same with an importance matrix, float32 [n], one value per column;
        None when the type ignores it (`quantize` then serves both).

    A codec is built from bare kernels. It puts a check of shapes before each of them, because a kernel does not check
    and would write past the end of an array, and it shows every input as a read-only array: numba compiles a kernel
    once per kind of array, and so writable and read-only inputs share one compilation.
    """

    type: TensorType
    dequantize: DequantizeKernel
    quantize: QuantizeKernel | None = None
    quantize_weighted: WeightedKernel | None = None

    def __post_init__(self) -> None:
        for name in ("dequantize", "quantize", "quantize_weighted"):
            kernel = getattr(self, name)
            if kernel is not None:
                object.__setattr__(self, name, _guard(kernel, self.type, reads_raw=name == "dequantize"))

    def encode(self, x: Rows, out: Raw, imatrix: NDArray[np.float32] | None = None) -> None:
        """`quantize_weighted` when there is a matrix and the type heeds it, else `quantize`.

        GgufmergeError when the type cannot be written at all, or not without a matrix.
        """
        if imatrix is not None and self.quantize_weighted is not None:
            self.quantize_weighted(x, out, imatrix)
        elif self.quantize is not None:
            self.quantize(x, out)
        elif self.needs_imatrix:
            raise GgufmergeError(f"{self.type} cannot be written without an importance matrix")
        else:
            raise GgufmergeError(f"{self.type} can be read but not written")

    @property
    def writable(self) -> bool:
        """Whether anything can be written in this type at all."""
        return self.quantize is not None or self.quantize_weighted is not None

    @property
    def needs_imatrix(self) -> bool:
        """Whether ggml refuses to quantize to this type without an importance matrix."""
        return self.quantize is None and self.quantize_weighted is not None


def _guard(kernel: Callable[..., None], type: TensorType, reads_raw: bool) -> Callable[..., None]:  # noqa: A002
    """`kernel` behind checks of its arrays; ValueError when one has the wrong shape, dtype or memory layout."""
    if INTERPRETED:  # overflow is part of the formats; compiled kernels do not warn of it
        kernel = np.errstate(all="ignore")(kernel)

    @functools.wraps(kernel)
    def guarded(source: NDArray, out: NDArray, *imatrix: NDArray) -> None:
        raw, values = (source, out) if reads_raw else (out, source)
        rows, n = values.shape
        if not (_fits(values, FLOATS, (rows, n)) and _fits(raw, BYTES, (rows, type.row_bytes(n)))):
            raise ValueError(f"{type}: {_described(values)} do not go with {_described(raw)} of blocks")
        for weights in imatrix:
            if not _fits(weights, FLOATS, (n,)):
                raise ValueError(f"{type}: {_described(weights)} are no imatrix for {n} columns")
        kernel(_read_only(source), out, *map(_read_only, imatrix))

    return guarded


def _fits(array: NDArray, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return array.shape == shape and array.dtype == dtype and array.flags.c_contiguous


def _described(array: NDArray) -> str:
    contiguous = "" if array.flags.c_contiguous else " (not contiguous)"
    return f"{array.dtype} {list(array.shape)}{contiguous}"


def _read_only(array: NDArray) -> NDArray:
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view
