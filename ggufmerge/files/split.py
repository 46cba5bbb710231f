"""Cuts a GGUF file into shards and joins shards into one file: the same bytes in every tensor, read back and compared.

The results equal those of llama-gguf-split byte for byte, save `general.alignment` (see `writer.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from ggufmerge.errors import GgufmergeError, OutputError, PlanError
from ggufmerge.files.journal import Move
from ggufmerge.files.metadata import MetadataEditor
from ggufmerge.files.output import Output, Writer
from ggufmerge.files.reader import GGUFFile, open_gguf
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.shards import COUNT, SplitKeys
from ggufmerge.files.tensor import Tensor, TensorInfo
from ggufmerge.files.watch import Watch
from ggufmerge.files.writer import check_regular, same_file

_PIECE = 1 << 24  # bytes that a thread copies at a time


class CopyProgress(Protocol):
    """Who is told how a copy goes on, in the order of these methods; `engine.Progress` and what shows it are such."""

    def begin(self, total_bytes: int, tensors: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...
    def tensor_done(self, name: str) -> None: ...
    def end(self) -> None: ...
    def warn(self, warnings: Sequence[str]) -> None: ...


def split_gguf(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    limit: SplitLimit,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: CopyProgress | None = None,
) -> list[Path]:
    """Write a model (a file, or the first of its shards) as shards whose names begin with `output`; gives their paths.

    threads: None for all cores.
    FormatError and PlanError as in `open_gguf` and `GGUFWriter`.
    """
    with open_gguf(path) as source:
        infos = tensor_infos(source)
        paths = limit.paths(output, infos)
        check_regular(Path(output))
        _check_outputs(source, paths)
        with Output(paths, overwrite=overwrite) as out:
            if _is_to_do(out, source, limit):
                _copy(source, out, out.writer(MetadataEditor(source.metadata), infos, limit), threads, progress)
            out.publish()
            out.complete()
        return paths


def join_gguf(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: CopyProgress | None = None,
) -> Path:
    """Write the shards of a model as one file; `path` is the first of them; the rest as in `split_gguf`."""
    output = Path(output)
    with open_gguf(path) as source:
        if not source.metadata.integer(COUNT):
            raise GgufmergeError(f"{source.path}: is not split, so there is nothing to join: copy the file")
        infos = tensor_infos(source)
        _check_outputs(source, [output])
        keys = SplitKeys(0, 0, len(infos))
        with Output([output], overwrite=overwrite) as out:
            if _is_to_do(out, source, None):
                writer = out.writer(MetadataEditor(source.metadata), infos, keys=keys)
                _copy(source, out, writer, threads, progress)
            out.publish()
            out.complete()
        return output


def tensor_infos(file: GGUFFile) -> list[TensorInfo]:
    """The descriptions of a file's tensors, as a writer takes them."""
    return [TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values()]


def _is_to_do(output: Output, source: GGUFFile, limit: SplitLimit | None) -> bool:
    """Whether the files are still to be written; an interrupted run may have done all but naming them."""
    stamps = Watch(source.mapped, source.paths).stamps()
    return output.take_up(f"copy of {source.path.resolve()} {stamps} as {limit}") in (Move.START, Move.RESUME)


def _check_outputs(source: GGUFFile, outputs: list[Path]) -> None:
    for output in outputs:
        if any(same_file(output, path) for path in source.paths):
            raise PlanError(f"{output}: the output is also an input; choose another name")


def _copy(
    source: GGUFFile,
    output: Output,
    writer: Writer,
    threads: int | None,
    progress: CopyProgress | None,
) -> None:
    """Write all tensors; the files are then complete and wait for their names."""

    def copy(piece: tuple[Tensor, int, int]) -> None:
        tensor, start, stop = piece
        data = tensor.raw[start:stop]
        writer.write(tensor.name, start, data)
        if not np.array_equal(writer.read(tensor.name)[start:stop], data):
            raise OutputError(f"{tensor.name}: reads back differently than it was written: check the disk")

    pieces = list(_pieces(source))
    if progress:
        progress.begin(sum(tensor.nbytes for tensor in source.tensors.values()), len(source.tensors))
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
    try:
        for (tensor, start, stop), _ in zip(pieces, pool.map(copy, pieces), strict=True):
            if progress:
                progress.advance(stop - start)
                if stop == tensor.nbytes:
                    progress.tensor_done(tensor.name)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the rest need not be copied
        if progress:
            progress.end()
    writer.verify()
    warnings = Watch(source.mapped, source.paths).check()
    if progress and warnings:
        progress.warn(warnings)
    output.seal({})


def _pieces(source: GGUFFile) -> Iterator[tuple[Tensor, int, int]]:
    for tensor in source.tensors.values():
        for start in range(0, tensor.nbytes, _PIECE):
            yield tensor, start, min(start + _PIECE, tensor.nbytes)
