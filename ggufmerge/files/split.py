"""Cuts a GGUF file into shards and joins shards into one file: the same bytes in every tensor, read back and compared.

The results equal those of llama-gguf-split byte for byte, save `general.alignment` (see `writer.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files.metadata import MetadataEditor
from ggufmerge.files.reader import GGUFFile, open_gguf
from ggufmerge.files.sharded import ShardedWriter, SplitLimit
from ggufmerge.files.shards import COUNT, SplitKeys
from ggufmerge.files.tensor import Tensor, TensorInfo
from ggufmerge.files.writer import GGUFWriter, same_file

_PIECE = 1 << 24  # bytes that a thread copies at a time


def split_gguf(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    limit: SplitLimit,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> list[Path]:
    """Write a model (a file, or the first of its shards) as shards whose names begin with `output`; gives their paths.

    threads: None for all cores.  advance: is told how many bytes more are written.
    FormatError and PlanError as in `open_gguf` and `GGUFWriter`.
    """
    with open_gguf(path) as source:
        infos = tensor_infos(source)
        _check_outputs(source, limit.paths(output, infos))
        metadata = MetadataEditor(source.metadata)
        with ShardedWriter(output, metadata, infos, limit, overwrite=overwrite) as writer:
            _copy(source, writer, threads, advance)
            writer.commit()
            return writer.paths


def join_gguf(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> Path:
    """Write the shards of a model, of which `path` is the first, as one file; the rest as in `split_gguf`."""
    output = Path(output)
    with open_gguf(path) as source:
        if not source.metadata.get(COUNT):
            raise GgufmergeError(f"{source.path}: is not split, so there is nothing to join: copy the file")
        infos = tensor_infos(source)
        _check_outputs(source, [output])
        keys = SplitKeys(0, 0, len(infos))
        with GGUFWriter(output, MetadataEditor(source.metadata), infos, overwrite=overwrite, split=keys) as writer:
            _copy(source, writer, threads, advance)
            writer.commit()
        return output


def tensor_infos(file: GGUFFile) -> list[TensorInfo]:
    """The descriptions of a file's tensors, as a writer takes them."""
    return [TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values()]


def _check_outputs(source: GGUFFile, outputs: list[Path]) -> None:
    for output in outputs:
        if any(same_file(output, path) for path in source.paths):
            raise PlanError(f"{output}: the output is also an input; choose another name")


def _copy(
    source: GGUFFile, writer: GGUFWriter | ShardedWriter, threads: int | None, advance: Callable[[int], None]
) -> None:
    def copy(piece: tuple[Tensor, int, int]) -> int:
        tensor, start, stop = piece
        data = tensor.raw[start:stop]
        writer.write(tensor.name, start, data)
        if not np.array_equal(writer.read(tensor.name)[start:stop], data):
            raise GgufmergeError(f"{tensor.name}: reads back differently than it was written: check the disk")
        return stop - start

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for nbytes in pool.map(copy, _pieces(source)):
            advance(nbytes)
    writer.verify()


def _pieces(source: GGUFFile) -> Iterator[tuple[Tensor, int, int]]:
    for tensor in source.tensors.values():
        for start in range(0, tensor.nbytes, _PIECE):
            yield tensor, start, min(start + _PIECE, tensor.nbytes)
