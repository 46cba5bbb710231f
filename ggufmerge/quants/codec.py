"""The interface of a block format: bytes of rows to float32 and back.

A codec owns the numba kernels of one tensor type. Kernels are single-threaded and release the GIL; whoever calls
them cuts the rows into chunks that fit in cache and drives several threads. Rows are independent of each other, so
the bytes never depend on how rows are cut into chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufmerge.types import TensorType

Rows = NDArray[np.float32]
Raw = NDArray[np.uint8]

DequantizeKernel = Callable[[Raw, Rows], None]
QuantizeKernel = Callable[[Rows, Raw], None]
WeightedKernel = Callable[[Rows, Raw, NDArray[np.float32]], None]


@dataclass(frozen=True)
class Codec:
    """One block format.

    dequantize(raw, out): uint8 [rows, row_bytes] to float32 [rows, n], bit-equal to ggml's `to_float`.
    quantize(x, out): float32 [rows, n] to uint8 [rows, row_bytes], byte-equal to `ggml_quantize_chunk` without an
        importance matrix; None when ggml has no quantizer or refuses to work without a matrix.
    quantize_weighted(x, out, imatrix): the same with an importance matrix, float32 [n], one value per column;
        None when the type ignores it (`quantize` then serves both).
    """

    type: TensorType
    dequantize: DequantizeKernel
    quantize: QuantizeKernel | None = None
    quantize_weighted: WeightedKernel | None = None

    @property
    def writable(self) -> bool:
        """Whether anything can be written in this type at all."""
        return self.quantize is not None or self.quantize_weighted is not None

    @property
    def needs_imatrix(self) -> bool:
        """Whether ggml refuses to quantize to this type without an importance matrix."""
        return self.quantize is None and self.quantize_weighted is not None
