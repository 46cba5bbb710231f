"""A model that takes part in a merge: a GGUF file (or its shards), with LoRA adapters applied while it streams."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import PlanError
from ggufmerge.files import GGUFFile, Tensor, open_gguf
from ggufmerge.quants import codec
from ggufmerge.sources.lora import Delta, LoraAdapter


class SourceTensor:
    """One tensor of a source. `rows` and `n` are its shape as a matrix (leading dimensions flattened)."""

    def __init__(self, tensor: Tensor, deltas: list[Delta]) -> None:
        self.tensor = tensor
        self.n, self.rows = tensor.n, tensor.rows
        self._deltas = deltas
        self._codec = codec(tensor.type)

    def read(self, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out`, float32 [k, n], with rows [start, start + k), dequantized and with adapters applied."""
        self.dequantize(start, out)
        self.adapt(start, out)

    def dequantize(self, start: int, out: NDArray[np.float32]) -> None:
        """The first half of `read`: what the file holds."""
        self._codec.dequantize(self.tensor.raw_rows(start, start + len(out)), out)

    def adapt(self, start: int, out: NDArray[np.float32]) -> None:
        """The second half of `read`: what the adapters change."""
        for delta in self._deltas:
            delta.add_to(out, start)

    def same_data(self, other: SourceTensor) -> bool:
        """Whether both read the same bytes of the same file, adapters aside."""
        return (self.tensor.path, self.tensor.offset) == (other.tensor.path, other.tensor.offset)

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The stored bytes of rows [start, stop); only meaningful when no adapter changes the tensor."""
        return self.tensor.raw_rows(start, stop)


class Source:
    """An opened model reference. `label` is how the recipe calls it; `tensors` are those of the file."""

    def __init__(self, label: str, file: GGUFFile, adapters: list[LoraAdapter]) -> None:
        self.label = label
        self.file = file
        self.adapters = adapters
        self.metadata: Mapping[str, Any] = file.metadata
        self.tensors: dict[str, Tensor] = file.tensors

    def changed_by_adapter(self, name: str) -> bool:
        """Whether the tensor's stored bytes are not what the model computes with."""
        return any(name in adapter.names for adapter in self.adapters)

    def open_tensor(self, name: str) -> SourceTensor:
        """A reader of one tensor; adapters' factors are held while it lives."""
        deltas = [d for adapter in self.adapters if (d := adapter.delta(name)) is not None]
        return SourceTensor(self.tensors[name], deltas)

    def files(self) -> Iterator[Path]:
        """All files that the source's numbers come from."""
        yield from self.file.paths
        for adapter in self.adapters:
            yield from adapter.file.paths

    def fingerprint(self) -> str:
        """A short hash that tells one model from another without reading it whole.

        It covers the header of each file, the strengths of the adapters and the first 64 bytes of each tensor, and so
        does not depend on where the file lies or what it is called: random masks are keyed by it.
        """
        digest = hashlib.blake2b(digest_size=16)
        for file, strength in [(self.file, 1.0), *((a.file, a.strength) for a in self.adapters)]:
            digest.update(repr(strength).encode())
            for name, t in file.tensors.items():
                digest.update(f"{name}|{t.type}|{t.shape}|".encode())
                digest.update(bytes(t.raw[:64]))
        return digest.hexdigest()


def open_source(reference: Any, folder: str | os.PathLike[str] = ".") -> Source:
    """Open a `ModelReference`: its file and its adapters, with paths starting from `folder`.

    FormatError and PlanError say which file is not what it should be.
    """
    file = open_gguf(_locate(reference.path, folder))
    kind = file.metadata.get("general.type", "model")
    if kind == "adapter":
        raise PlanError(f"{file.path}: a LoRA adapter, not a model; write base.gguf+{Path(reference.path).name}")
    if not file.tensors:
        raise PlanError(f"{file.path}: holds no tensors, so there is nothing to merge")
    adapters = [LoraAdapter(_locate(a.path, folder), file, a.strength) for a in reference.adapters]
    return Source(str(reference), file, adapters)


def _locate(path: str, folder: str | os.PathLike[str]) -> Path:
    return Path(folder) / Path(path).expanduser()
