"""The interface of a block format: bytes of rows to float32 and back.

A codec owns the numba kernels of one tensor type. Kernels are single-threaded and release the GIL; whoever calls
them cuts the rows into chunks that fit in cache and drives several threads. Rows are independent of each other, so
the bytes never depend on how rows are cut into chunks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.kernels import kernel
from ggufmerge.quants.grid import Grid
from ggufmerge.quants.simd import INTERPRETED
from ggufmerge.types import TensorType

FLOATS, BYTES = np.dtype(np.float32), np.dtype(np.uint8)

Rows = NDArray[np.float32]
Raw = NDArray[np.uint8]

DequantizeKernel = Callable[[Raw, Rows], None]
QuantizeKernel = Callable[[Rows, Raw], None]
WeightedKernel = Callable[[Rows, Raw, NDArray[np.float32]], None]
DamageKernel = Callable[[Raw], int]
CheckedKernel = Callable[[Raw, Rows], int]
RecodeKernel = Callable[[Raw, Rows, Raw], None]

HALF_MAX = 65504.0  # the largest float16


@dataclass(frozen=True)
class Codec:
    """One block format. All arrays are C-contiguous; inputs may be read-only (a mapped file) and are never written.

    dequantize(raw, out): uint8 [rows, row_bytes] to float32 [rows, n], bit-equal to ggml's `to_float`.
    quantize(x, out): float32 [rows, n] to uint8 [rows, row_bytes], byte-equal to `ggml_quantize_chunk` without an
        importance matrix; None when ggml has no quantizer or refuses to work without a matrix. No NaN in `x`.
    quantize_weighted(x, out, imatrix): the same with an importance matrix, float32 [n], one value per column;
        None when the type ignores it (`quantize` then serves both).
    limit: the largest absolute value that a block can hold. The searches of ggml's quantizers overflow far above it
        and may then end in a block of zeros, which nothing in the block tells.
    scales: where the float16 scales of a block are, in bytes from its start. A block has a value that is NaN or
        infinite exactly when one of its scales is.
    find_damage(raw): what `damaged` gives, for formats whose scales are something else: `raw` is flat, uint8 [bytes].
        None for formats without scales, in which any bytes are finite numbers, and for those that `scales` describes.
    checked(raw, out): `decode` in one go; None to do it in two.
    grid: at which distances the values of a block lie; None for formats without scales.
    recode(raw, x, out): new values in blocks that keep their scales. The blocks `raw`, uint8 [rows, row_bytes], are
        written to `out`, of the same shape and other memory, with the codes whose values are nearest to `x`, float32
        [rows, n] without NaN; scales, minima and all that several groups share stay as they are. Of codes that are
        equally near the stored one stays, else the lowest is taken: `dequantize(raw)` gives `raw` back. Where a group
        of values has one code (`nearest_points.py`), the sum of squared differences counts. None for types without
        scales.

    A codec is built from bare kernels. It puts a check of shapes before each of them, because a kernel does not check
    and would write past the end of an array, and it shows every input as a read-only array: numba compiles a kernel
    once per kind of array, and so writable and read-only inputs share one compilation.
    """

    type: TensorType
    dequantize: DequantizeKernel
    quantize: QuantizeKernel | None = None
    quantize_weighted: WeightedKernel | None = None
    limit: float = math.inf
    scales: tuple[int, ...] = ()
    find_damage: DamageKernel | None = None
    checked: CheckedKernel | None = None
    grid: Grid | None = None
    recode: RecodeKernel | None = None

    def __post_init__(self) -> None:
        for name in ("dequantize", "quantize", "quantize_weighted", "checked"):
            function = getattr(self, name)
            if function is not None:
                object.__setattr__(self, name, _guard(function, self.type, reads_raw=name in ("dequantize", "checked")))
        if self.recode is not None:
            object.__setattr__(self, "recode", _guard_recode(self.recode, self.type))

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

    def decode(self, raw: Raw, out: Rows) -> int:
        """`dequantize`, with what `damaged` gives; if that is a block, `out` holds anything."""
        if self.checked is not None:
            return self.checked(raw, out)
        block = self.damaged(raw)
        if block < 0:
            self.dequantize(raw, out)
        return block

    def damaged(self, raw: Raw) -> int:
        """Number of the first block of `raw`, uint8 [rows, row_bytes], that holds NaN or infinity, counted over all
        rows; -1 when there is none. Of types without blocks a value counts as one.

        As `ggml_validate_row_data`, with which llama-quantize checks what it reads and writes.
        """
        if not raw.flags.c_contiguous or raw.dtype != BYTES:
            raise ValueError(f"{self.type}: {_described(raw)} are no blocks")
        flat = _read_only(raw).reshape(-1)
        if self.find_damage is not None:
            return int(self.find_damage(flat))
        if self.scales:
            return int(find_bad_half(flat, self.type.block_bytes, self.scales[0], self.scales[-1]))
        return -1

    @property
    def writable(self) -> bool:
        """Whether anything can be written in this type at all."""
        return self.quantize is not None or self.quantize_weighted is not None

    @property
    def needs_imatrix(self) -> bool:
        """Whether ggml refuses to quantize to this type without an importance matrix."""
        return self.quantize is None and self.quantize_weighted is not None


@kernel
def find_bad_half(raw, size, first, second):
    """Number of the first block of `size` bytes that has NaN or infinity in the float16 at byte `first` or `second`."""
    exponents = np.uint8(0)
    for block in range(0, raw.size, size):
        exponents = max(exponents, raw[block + first + 1] & np.uint8(0x7C), raw[block + second + 1] & np.uint8(0x7C))
    if exponents == np.uint8(0x7C):
        for block in range(0, raw.size, size):
            if (raw[block + first + 1] & 0x7C) == 0x7C or (raw[block + second + 1] & 0x7C) == 0x7C:
                return block // size
    return -1


def _guard(function: Callable[..., Any], type: TensorType, reads_raw: bool) -> Callable[..., Any]:  # noqa: A002
    """A kernel behind checks of its arrays; ValueError when one has the wrong shape, dtype or memory layout."""
    function = _without_warnings(function)

    @functools.wraps(function)
    def guarded(source: NDArray, out: NDArray, *imatrix: NDArray) -> Any:
        raw, values = (source, out) if reads_raw else (out, source)
        n = values.shape[-1]
        _check_rows(type, values, raw)
        for weights in imatrix:
            if not _fits(weights, FLOATS, (n,)):
                raise ValueError(f"{type}: {_described(weights)} are no imatrix for {n} columns")
        return function(_read_only(source), out, *map(_read_only, imatrix))

    return guarded


def _guard_recode(function: RecodeKernel, type: TensorType) -> RecodeKernel:  # noqa: A002
    """The same for a kernel that reads blocks and values and writes blocks elsewhere."""
    function = _without_warnings(function)

    @functools.wraps(function)
    def guarded(raw: Raw, x: Rows, out: Raw) -> None:
        _check_rows(type, x, raw)
        _check_rows(type, x, out)
        if np.may_share_memory(raw, out):
            raise ValueError(f"{type}: blocks cannot be recoded in place")
        function(_read_only(raw), _read_only(x), out)

    return guarded


def _without_warnings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Overflow is part of the formats; compiled kernels do not warn of it, and interpreted ones should not either."""
    return np.errstate(all="ignore")(function) if INTERPRETED else function


def _check_rows(type: TensorType, values: NDArray, raw: NDArray) -> None:  # noqa: A002
    rows, n = values.shape
    if not (_fits(values, FLOATS, (rows, n)) and _fits(raw, BYTES, (rows, type.row_bytes(n)))):
        raise ValueError(f"{type}: {_described(values)} do not go with {_described(raw)} of blocks")


def _fits(array: NDArray, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return array.shape == shape and array.dtype == dtype and array.flags.c_contiguous


def _described(array: NDArray) -> str:
    contiguous = "" if array.flags.c_contiguous else " (not contiguous)"
    return f"{array.dtype} {list(array.shape)}{contiguous}"


def _read_only(array: NDArray) -> NDArray:
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view
