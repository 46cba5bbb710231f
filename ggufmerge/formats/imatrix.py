"""Importance matrices: GGUF files as llama-imatrix writes them, and the .dat files it wrote before (only read).

Facts from llama.cpp v0.5.0 (`common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp`).

GGUF: for every weight two F32 tensors, `NAME.in_sum2` [matrices, n] and `NAME.counts` [matrices, 1], and the keys
`imatrix.datasets`, `imatrix.chunk_count` and `imatrix.chunk_size`.
Legacy, little-endian: i32 number of entries; per entry i32 length of name, name, i32 calls, i32 number of values,
float32 values, which are means times calls; then, not always, i32 chunks, i32 length of name, name of the data set.

`ggufmerge calibrate` writes such a GGUF file with more in it, which other programs pass over: for a weight, or the
first of those that have the same inputs, `NAME.in_loadings` F16 [matrices, r, n] or `NAME.in_correlation` I8
[matrices, n (n + 1) / 2], as `quants.correlations` describes them, without the first dimension where there is one
matrix. The keys `ggufmerge.calibration.weights` and `.inputs` name each weight that has correlations, and under which
name they stand; `.rank` is the largest r, `.full` says that they are whole, `.version` is 1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import FormatError
from ggufmerge.files import GGUFFile, Tensor, open_gguf
from ggufmerge.files.absent import absent
from ggufmerge.files.metadata import MetadataEditor, ValueKind
from ggufmerge.files.small import open_regular
from ggufmerge.files.tensor import MappedFile, TensorInfo
from ggufmerge.files.writer import GGUFWriter
from ggufmerge.quants.correlations import Correlation, triangle_side
from ggufmerge.quants.importance import Imatrix, ImatrixEntry
from ggufmerge.text import counted, utf8
from ggufmerge.types import TensorType

_MAGIC = b"GGUF"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_COUNT = 2.0**53
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
_LOADINGS, _TRIANGLE = ".in_loadings", ".in_correlation"
_OWN = "ggufmerge.calibration."
_VERSION = 1
_CALIBRATED = "make the file again with ggufmerge calibrate"

Matrices = tuple[Correlation, ...]


def load_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """The importance matrices in a file of either format.

    FormatError when it cannot be read, is none, is damaged or holds values that are not finite.
    """
    file = Path(path)
    try:
        with open_regular(file) as f:
            if f.read(4) != _MAGIC:
                return _Legacy(file, MappedFile(file, f.fileno())).read()
    except FileNotFoundError:
        raise FormatError(f"{file}: {absent(file)}") from None
    except OSError as e:
        raise FormatError(
            f"{file}: the file cannot be read ({e.strerror or e}); give one that llama-imatrix wrote"
        ) from None
    with open_gguf(file) as gguf:
        return _from_gguf(gguf)


def load_together(paths: Sequence[str]) -> Imatrix | None:
    """The importance matrix of several files, whose sums and counts add up; None of none."""
    matrices = [load_imatrix(path) for path in paths]
    return matrices[0].combine(matrices[1:]) if len(matrices) > 1 else matrices[0] if matrices else None


def _from_gguf(file: GGUFFile) -> Imatrix:
    missing = [key for key in _KEYS if key not in file.metadata]
    if missing and file.architecture:
        _refuse(file.path, "a model or adapter, not an importance matrix", "give a file that llama-imatrix wrote")
    if missing:
        _refuse(file.path, f"it lacks {', '.join(missing)}", "give a file that llama-imatrix wrote")
    datasets, *numbers = file.metadata.texts(_KEYS[0]), *map(file.metadata.integer, _KEYS[1:])
    if datasets is None:
        _refuse(file.path, "imatrix.datasets is not a list of texts", "give a file that llama-imatrix wrote")
    chunks, chunk_size = numbers
    if chunks is None or chunk_size is None:
        key = _KEYS[1] if chunks is None else _KEYS[2]
        what = f"{key} is {file.metadata.found(key)}, no whole number"
        _refuse(file.path, what, "give a file that llama-imatrix wrote")
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    alone = [n for n in file.tensors if n.endswith(_COUNTS) and n.removesuffix(_COUNTS) + _SUMS not in file.tensors]
    alone += [name + _SUMS for name in names if name + _COUNTS not in file.tensors]
    if alone:
        _refuse(file.path, f"{alone[0]} is there without its other half", "make the file again with llama-imatrix")
    if not names:
        _refuse(file.path, "it holds no importance values", "give a file that llama-imatrix wrote")
    entries = {}
    for name in names:
        sums, counts = (_float32(file, file.tensors[name + suffix]) for suffix in (_SUMS, _COUNTS))
        if not (np.abs(counts) < _MAX_COUNT).all():
            _refuse(file.path, f"{name}{_COUNTS} holds no counts", "make the file again with llama-imatrix")
        entries[name] = ImatrixEntry(sums, np.floor(counts.astype(np.float64) + 0.5).astype(np.int64))
    return Imatrix(
        entries,
        datasets=datasets,
        chunks=chunks,
        chunk_size=chunk_size,
        file=file.path.name,
        correlations=_correlations(file, entries),
    )


def _correlations(file: GGUFFile, entries: Mapping[str, ImatrixEntry]) -> dict[str, Matrices]:
    """The correlations in a file, by name of the weight; weights that have the same inputs have the same object."""
    if _OWN + "version" not in file.metadata:
        return {}
    version = file.metadata.integer(_OWN + "version")
    if version != _VERSION:
        what = f"{_OWN}version is {file.metadata.found(_OWN + 'version')}, not {_VERSION}"
        _refuse(file.path, what, "update ggufmerge, or " + _CALIBRATED)
    weights, inputs = (file.metadata.texts(_OWN + key) for key in ("weights", "inputs"))
    if weights is None or inputs is None or len(weights) != len(inputs):
        what = f"{_OWN}weights and {_OWN}inputs are not two lists of as many names"
        _refuse(file.path, what, _CALIBRATED)
    stored: dict[str, Matrices] = {}
    found: dict[str, Matrices] = {}
    for weight, name in zip(weights, inputs, strict=True):
        if weight not in entries:
            _refuse(file.path, f"it has correlations for {weight}, but no {weight}{_SUMS}", _CALIBRATED)
        if name not in stored:
            stored[name] = _stored(file, name)
        found[weight] = stored[name]
        if sum(c.n for c in found[weight]) != entries[weight].sums.size:
            what = f"the correlations of {name} are of {len(found[weight])} x {found[weight][0].n} inputs"
            _refuse(file.path, f"{what}, but {weight} has {entries[weight].sums.size}", _CALIBRATED)
    return found


def _stored(file: GGUFFile, name: str) -> Matrices:
    """The correlations that stand under a name, one for each matrix."""
    loadings, triangle = file.tensors.get(name + _LOADINGS), file.tensors.get(name + _TRIANGLE)
    if (loadings is None) == (triangle is None):
        which = "both" if loadings is not None else "neither"
        _refuse(file.path, f"{which} of {name}{_LOADINGS} and {name}{_TRIANGLE} is there", _CALIBRATED)
    if loadings is not None:
        raw = _typed(file, loadings, TensorType.F16, "<f2")
        if len(loadings.shape) not in (2, 3) or not loadings.size:
            _refuse(file.path, f"{loadings.name} has the shape {list(loadings.shape)}", _CALIBRATED)
        values = raw.reshape(-1, *loadings.shape[-2:]).astype(np.float32)
        if not np.isfinite(values).all():
            _refuse(file.path, f"{loadings.name} holds NaN or infinity", _CALIBRATED)
        if (np.square(values).sum(axis=1) > _MOST).any():
            _refuse(file.path, f"{loadings.name} holds correlations above 1", _CALIBRATED)
        return tuple(Correlation(loadings=matrix) for matrix in values)
    assert triangle is not None, "one of the two is there"
    raw = _typed(file, triangle, TensorType.I8, np.int8)
    n = triangle_side(triangle.n)
    if len(triangle.shape) not in (1, 2) or not triangle.size or n * (n + 1) // 2 != triangle.n:
        _refuse(file.path, f"{triangle.name} has the shape {list(triangle.shape)}, no triangle", _CALIBRATED)
    return tuple(Correlation(triangle=matrix) for matrix in raw.reshape(-1, triangle.n))


_MOST = 1.01  # what squares of loadings add up to, with the rounding of others


def _typed(file: GGUFFile, tensor: Tensor, kind: TensorType, dtype: Any) -> NDArray[Any]:
    if tensor.type is not kind:
        _refuse(file.path, f"{tensor.name} is {tensor.type} instead of {kind}", _CALIBRATED)
    return np.asarray(tensor.raw).reshape(-1).view(dtype)


def save_imatrix(imatrix: Imatrix, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write importance matrices, and correlations where there are some, as a GGUF file; whole or not at all.

    Weights whose correlations are the same object (those that have the same inputs) share what is stored.
    overwrite: replace a file of this name.  OutputError or PlanError when it cannot be written.
    """
    owners: dict[int, str] = {}
    inputs = {name: owners.setdefault(id(imatrix.correlations[name]), name) for name in _with_correlations(imatrix)}
    metadata = MetadataEditor()
    metadata.set("general.type", "imatrix")
    metadata.set(_KEYS[0], list(imatrix.datasets), ValueKind.STRING)
    metadata.set(_KEYS[1], imatrix.chunks, ValueKind.U32)
    metadata.set(_KEYS[2], imatrix.chunk_size, ValueKind.U32)
    stored = {name: imatrix.correlations[name] for name in owners.values()}
    if stored:
        ranks = [c.loadings.shape[0] for found in stored.values() for c in found if c.loadings is not None]
        metadata.set(_OWN + "version", _VERSION, ValueKind.U32)
        metadata.set(_OWN + "rank", max(ranks, default=0), ValueKind.U32)
        metadata.set(_OWN + "full", not ranks)
        metadata.set(_OWN + "weights", list(inputs), ValueKind.STRING)
        metadata.set(_OWN + "inputs", list(inputs.values()), ValueKind.STRING)
    parts = [part for name in sorted(imatrix) for part in _parts(name, imatrix.entry(name), stored.get(name))]
    with GGUFWriter(path, metadata, [info for info, _ in parts], overwrite=overwrite) as writer:
        for info, values in parts:
            writer.write(info.name, 0, np.ascontiguousarray(values))
        writer.verify()
        writer.commit()


def statistics_facts(file: GGUFFile) -> dict[str, Any] | None:
    """What a header says of importance matrices and correlations; None for a file that has none.

    texts: names of the texts.  chunks, chunk_size, tokens: what was read, pieces, tokens of each, of all (about).
    weights: how many weights have importances.  correlated: of how many the correlations are kept.
    inputs: how many different inputs those have.  rank: eigenvectors that are kept, 0 for none.  full: whether all are.
    """
    weights = sum(name.endswith(_SUMS) for name in file.tensors)
    if not weights or any(key not in file.metadata for key in _KEYS):
        return None
    chunks, chunk_size = (file.metadata.integer(key) or 0 for key in _KEYS[1:])
    inputs = file.metadata.texts(_OWN + "inputs") or []
    return {
        "texts": [utf8(text) for text in file.metadata.texts(_KEYS[0]) or []],
        "chunks": chunks,
        "chunk_size": chunk_size,
        "tokens": chunks * chunk_size,
        "weights": weights,
        "correlated": len(inputs),
        "inputs": len(set(inputs)),
        "rank": file.metadata.integer(_OWN + "rank") or 0,
        "full": any(name.endswith(_TRIANGLE) for name in file.tensors),
    }


def what_it_keeps(weights: int, inputs: int, rank: int, *, full: bool) -> str:
    """What a file of statistics holds, in words. inputs: how many different ones have correlations."""
    if not full and not rank:
        return f"importance matrix of {counted(weights, 'weight')}"
    how = "whole" if full else f"rank {rank}"
    return f"statistics of {counted(weights, 'weight')} with correlations ({how}, of {counted(inputs, 'input')})"


def _with_correlations(imatrix: Imatrix) -> list[str]:
    return [name for name in sorted(imatrix) if name in imatrix.correlations]


def _parts(name: str, entry: ImatrixEntry, found: Matrices | None) -> list[tuple[TensorInfo, NDArray[Any]]]:
    """The tensors of one weight."""
    matrices = len(entry.counts)
    sums, counts = entry.sums.astype("<f4"), entry.counts.astype("<f4")
    parts: list[tuple[TensorInfo, NDArray[Any]]] = [
        (TensorInfo(name + _SUMS, (matrices, sums.size // matrices), TensorType.F32), sums),
        (TensorInfo(name + _COUNTS, (matrices, 1), TensorType.F32), counts),
    ]
    if found is None:
        return parts
    if found[0].loadings is not None:
        rank = max(0 if c.loadings is None else len(c.loadings) for c in found)
        values = np.zeros((len(found), rank, found[0].n), "<f2")
        for matrix, c in zip(values, found, strict=True):
            assert c.loadings is not None, "the matrices of a weight are kept in one way"
            matrix[: len(c.loadings)] = _towards_zero(c.loadings)
        suffix, kind = _LOADINGS, TensorType.F16
    else:
        values = np.stack([c.triangle for c in found if c.triangle is not None])
        suffix, kind = _TRIANGLE, TensorType.I8
    shape = values.shape if len(found) > 1 else values.shape[1:]
    return [*parts, (TensorInfo(name + suffix, shape, kind), values)]


def _float32(file: GGUFFile, tensor: Tensor) -> NDArray[np.float32]:
    if tensor.type is not TensorType.F32:
        _refuse(file.path, f"{tensor.name} is {tensor.type} instead of F32", "make the file again with llama-imatrix")
    return np.asarray(tensor.raw).reshape(-1).view("<f4")


class _Legacy:
    """A reader of the old format that asks for no more bytes than are left."""

    def __init__(self, path: Path, file: MappedFile) -> None:
        self.path, self.data, self.position = path, file.bytes, 0

    def read(self) -> Imatrix:
        count = self._number("the number of entries")
        if not 0 < count <= len(self.data) // 16:  # an entry has 16 bytes at least
            _refuse(
                self.path,
                f"neither GGUF nor a legacy importance matrix, which would begin with {count} entries",
                "give a file that llama-imatrix wrote",
            )
        entries: dict[str, ImatrixEntry] = {}
        for i in range(count):
            name, entry = self._entry(f"entry {i + 1} of {count}")
            if name in entries:
                self._damaged(f"{name} appears twice")
            entries[name] = entry
        chunks, datasets = 0, []
        if self.position < len(self.data):
            chunks = self._number("the number of chunks")
            if self.position < len(self.data):
                datasets = [self._text(self._number("the data set"), "the data set")]
        return Imatrix(entries, datasets=[d for d in datasets if d], chunks=chunks, file=self.path.name)

    def _entry(self, what: str) -> tuple[str, ImatrixEntry]:
        name = self._text(self._number(what), what)
        if not name:
            self._damaged(f"{what} has no name")
        calls, size = self._number(what), self._number(what)
        if size < 1:
            self._damaged(f"{what}, {name}, has {size} values")
        sums = np.frombuffer(self._take(4 * size, f"{what}, {name},"), "<f4")
        # without calls the values are taken as they are
        return name, ImatrixEntry(sums, np.array([max(calls, 1)], np.int64))

    def _number(self, what: str) -> int:
        return int(struct.unpack("<i", self._take(4, what))[0])

    def _text(self, size: int, what: str) -> str:
        try:
            return self._take(size, what).decode("utf-8")
        except UnicodeDecodeError:
            self._damaged(f"the name in {what} is not UTF-8")

    def _take(self, size: int, what: str) -> bytes:
        left = len(self.data) - self.position
        if not 0 <= size <= left:
            self._damaged(f"{what} should have {size} bytes, but {left} are left")
        self.position += size
        return self.data[self.position - size : self.position].tobytes()

    def _damaged(self, what: str) -> NoReturn:
        _refuse(self.path, f"damaged importance matrix: {what}", "make the file again with llama-imatrix")


def _towards_zero(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Values in 16 bits, none larger than it was: so squares that add up to at most 1 still do."""
    found = values.astype("<f2")
    larger = np.abs(found.astype(np.float32)) > np.abs(values)
    return np.where(larger, np.nextafter(found, np.float16(0)), found)


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise FormatError(f"{path}: {what}; {remedy}")
