"""Writes a model as several files, cut as llama-gguf-split cuts it: `<prefix>-00001-of-00003.gguf` and so on.

Tensors stay in order. A shard is closed when the next tensor would make it too large (`max_bytes` counts tensors with
their padding, not the header) or at every multiple of `max_tensors`. All metadata stands in the first shard. A tensor
larger than the limit has a shard of its own.

Source: the rules of `tools/gguf-split/gguf-split.cpp` (llama.cpp v0.5.0), whose files these equal byte for byte. It
gives up when the very first tensor is larger than the limit; here that tensor has a shard of its own, too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.files.metadata import MetadataEditor
from ggufmerge.files.shards import ShardName, SplitKeys
from ggufmerge.files.small import file_name
from ggufmerge.files.tensor import TensorInfo
from ggufmerge.files.writer import GGUFWriter, check_target, publish

DEFAULT_MAX_TENSORS = 128
MAX_SHARDS = 0xFFFF  # split.count is a u16


class Sized(Protocol):
    """What a limit asks of a tensor."""

    @property
    def name(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


_Sized = TypeVar("_Sized", bound=Sized)


@dataclass(frozen=True)
class SplitLimit:
    """How large a shard may be: `max_bytes` of tensors, or `max_tensors`; one of the two.

    metadata_first: the first shard holds no tensors (`--no-tensor-first-split`).
    """

    max_bytes: int | None = None
    max_tensors: int | None = None
    metadata_first: bool = False

    def __post_init__(self) -> None:
        if (self.max_bytes is None) == (self.max_tensors is None):
            raise GgufmergeError("give either a largest size or a largest number of tensors for a shard, not both")
        if (self.max_bytes or self.max_tensors or 0) <= 0:
            raise GgufmergeError("a shard must be allowed to hold something: give a limit greater than 0")

    @classmethod
    def parse(
        cls, max_size: str | None = None, max_tensors: int | None = None, metadata_first: bool = False
    ) -> SplitLimit | None:
        """The limit of the command line's options, `max_size` as in `parse_size`; None when none of them is given."""
        if max_size is None and max_tensors is None:
            if metadata_first:
                raise GgufmergeError("a first shard without tensors needs --split-max-size or --split-max-tensors")
            return None
        return cls(None if max_size is None else parse_size(max_size), max_tensors, metadata_first)

    def cut(self, tensors: Iterable[_Sized]) -> list[list[_Sized]]:
        """The tensors of each shard, in order."""
        shards: list[list[_Sized]] = [[], []] if self.metadata_first else [[]]
        size = 0
        for index, tensor in enumerate(tensors):
            padded = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            if self.max_tensors is not None:
                full = index > 0 and index % self.max_tensors == 0
            else:
                full = size + padded > (self.max_bytes or 0) and bool(shards[-1])
            if full:
                shards.append([])
                size = 0
            shards[-1].append(tensor)
            size += padded
        if len(shards) > MAX_SHARDS:
            raise GgufmergeError(f"{len(shards)} shards are more than a GGUF file can count: raise the limit")
        return shards

    def warnings(self, tensors: Iterable[Sized]) -> list[str]:
        """One line each for tensors that make their shard larger than the limit."""
        return [
            f"{tensor.name} has {tensor.nbytes / 1e6:.0f} MB, more than a shard should have: it gets one of its own"
            for tensor in tensors
            if self.max_bytes is not None and tensor.nbytes > self.max_bytes
        ]

    def paths(self, output: str | os.PathLike[str], tensors: Iterable[Sized]) -> list[Path]:
        """The files that these tensors are written to; `output` as in `split_prefix`."""
        return _paths(Path(output), len(self.cut(tensors)))


@dataclass(frozen=True)
class SameShards(SplitLimit):
    """Shards as another model has them: `counts`, how many tensors each holds, in order."""

    counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """There is no limit to check."""

    def cut(self, tensors: Iterable[_Sized]) -> list[list[_Sized]]:
        """The tensors of each shard, in order. GgufmergeError when there are more or fewer than in the other model."""
        every = list(tensors)
        if len(every) != sum(self.counts):
            raise GgufmergeError(
                f"{len(every)} tensors cannot be cut as {sum(self.counts)} are: leave out --keep-split"
            )
        rest = iter(every)
        return [list(itertools.islice(rest, count)) for count in self.counts]


class ShardedWriter:
    """The shards of a model being written: `GGUFWriter`, spread over several files.

    The set appears at `commit`, its first shard last, so that no incomplete set looks complete; whoever opens the first
    shard finds all. Shards that are replaced are put aside until the new ones have their names.

    output: as in `split_prefix`.  limit, tensors: see `SplitLimit.cut`.  The rest and all errors: see `GGUFWriter`.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        metadata: MetadataEditor,
        tensors: Sequence[TensorInfo],
        limit: SplitLimit,
        *,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        parts = limit.cut(tensors)
        self.paths, self._overwrite = _paths(Path(output), len(parts)), overwrite
        for path in self.paths:
            check_target(path, overwrite=overwrite)
        self._files = contextlib.ExitStack()
        self._shards: list[GGUFWriter] = []
        self._shard_of: dict[str, GGUFWriter] = {}
        with contextlib.ExitStack() as opened:  # those opened before one fails are closed
            for number, (path, part) in enumerate(zip(self.paths, parts, strict=True)):
                keys = SplitKeys(number, len(parts), len(tensors))
                own = metadata if number == 0 else MetadataEditor()
                shard = GGUFWriter(path, own, part, overwrite=overwrite, resume=resume, split=keys)
                self._shards.append(opened.enter_context(shard))
                self._shard_of |= dict.fromkeys((tensor.name for tensor in part), shard)
            if len(self._shard_of) != len(tensors):
                raise GgufmergeError("a tensor would be in the model twice: rename one")
            self._files = opened.pop_all()

    @property
    def path(self) -> Path:
        """The first shard, which is the one to open."""
        return self.paths[0]

    @property
    def total_bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.total_bytes for shard in self._shards)

    @property
    def resumed(self) -> bool:
        """Whether the work of an earlier run was found in any shard."""
        return any(shard.resumed for shard in self._shards)

    def write(self, name: str, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        self._shard_of[name].write(name, offset, data)

    def read(self, name: str) -> NDArray[np.uint8]:
        return self._shard_of[name].read(name)

    def mark_done(self, name: str) -> None:
        self._shard_of[name].mark_done(name)

    def patch(self, key: str, value: str) -> None:
        self._shards[0].patch(key, value)

    def verify(self) -> None:
        for shard in self._shards:
            shard.verify()

    @property
    def seals(self) -> list[str]:
        """The seal of each shard; see `writer.seal_of`."""
        return [shard.seal for shard in self._shards]

    def commit(self) -> None:
        self.finish()
        self.publish()

    def finish(self) -> None:
        for shard in self._shards:
            shard.finish()
        self.keep()

    def publish(self) -> None:
        publish(self.paths, overwrite=self._overwrite, closing=self.release)
        self.release()

    def release(self) -> None:
        for shard in self._shards:
            shard.release()

    def keep(self) -> None:
        for shard in self._shards:
            shard.keep()

    def abort(self) -> None:
        for shard in self._shards:
            shard.abort()

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)


def split_prefix(output: Path) -> Path:
    """What all shards of an output begin with: `m` for `m.gguf`, `m-00001-of-00002.gguf` and `m`.

    PlanError when `output` names no file.
    """
    shard = ShardName.parse(file_name(output))
    if shard is not None:
        return output.with_name(shard.prefix)
    return output.with_name(output.name.removesuffix(".gguf") or output.name)


def parse_size(text: str) -> int:
    """Bytes of a size such as 500M or 4G, in powers of 1000 as llama-gguf-split has it."""
    match = re.fullmatch(r"([0-9]+)([MG])", text.strip().upper())
    if match is None or not int(match[1]):
        raise GgufmergeError(f"{text!r} is not a shard size: give whole megabytes or gigabytes, such as 500M or 4G")
    return int(match[1]) * {"M": 10**6, "G": 10**9}[match[2]]


_ALIGNMENT = 32


def _paths(output: Path, count: int) -> list[Path]:
    prefix = split_prefix(output)
    return [prefix.with_name(str(name)) for name in ShardName(prefix.name, 1, count).all()]
