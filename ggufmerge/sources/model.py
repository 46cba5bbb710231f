"""A model that takes part in a merge: a GGUF file (or its shards) or a Hugging Face checkpoint, with LoRA adapters
applied while it streams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.files import GGUFFile
from ggufmerge.files.metadata import KeyValues
from ggufmerge.files.shards import model_name
from ggufmerge.files.tensor import MappedFile
from ggufmerge.formats.checkpoint import Checkpoint
from ggufmerge.formats.stored import StoredFile, StoredTensor
from ggufmerge.quants import codec
from ggufmerge.quants.magnitude import magnitude
from ggufmerge.sources.damage import adapter_damage, damage, too_large
from ggufmerge.sources.located import Located
from ggufmerge.sources.lora import Delta, LoraAdapter
from ggufmerge.sources.side_tensors import read_scales, side_names, side_tensors
from ggufmerge.types import TensorType

STRONG = 5  # times: from here on an adapter's strength is taken for a percentage, and the user is asked


class SourceTensor:
    """One tensor of a source. `rows` and `n` are its shape as a matrix (leading dimensions flattened).

    Nothing of it is kept in memory but a factor of each adapter. Several threads may read at once.
    """

    def __init__(
        self, tensor: StoredTensor, deltas: list[Delta], scales: NDArray[np.float32] | None = None, label: str = ""
    ) -> None:
        """scales: float32 [matrices], factors of what is stored; None for 1.  label: of the source, for errors."""
        self.tensor, self.scales, self.label = tensor, scales, label or str(tensor.path)
        self.n, self.rows = tensor.n, tensor.rows
        self._deltas = deltas
        self._codec = codec(tensor.type)

    def read(self, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out`, float32 [k, n], with rows [start, start + k), dequantized and with adapters applied.

        DamageError when the file holds NaN or infinity there, or the adapters make such of what it holds.
        """
        self.dequantize(start, out)
        self.adapt(start, out)

    def dequantize(self, start: int, out: NDArray[np.float32]) -> None:
        """The first half of `read`: what the file holds."""
        self.decode(self.raw_rows(start, start + len(out)), np.arange(start, start + len(out)), out)

    def decode(self, raw: NDArray[np.uint8], rows: NDArray[np.integer[Any]], out: NDArray[np.float32]) -> None:
        """Fill `out`, float32 [k, n], with the values of `raw`, the stored bytes of the rows of these numbers."""
        block = self._codec.decode(raw, out)
        if block >= 0:
            raise damage(self.label, self.tensor, raw, rows, block)
        if self.scales is not None:
            out *= self.scales[rows * len(self.scales) // self.rows, None]
        if (self.scales is not None or self.tensor.type == TensorType.F64) and not magnitude(out) < np.inf:
            raise too_large(self.label, self.tensor, rows, out)

    def check(self, raw: NDArray[np.uint8], rows: NDArray[np.integer[Any]]) -> None:
        """DamageError when `raw`, the stored bytes of the rows of these numbers, holds NaN or infinity."""
        block = self._codec.damaged(raw)
        if block >= 0:
            raise damage(self.label, self.tensor, raw, rows, block)

    def adapt(self, start: int, out: NDArray[np.float32]) -> None:
        """The second half of `read`: what the adapters change."""
        for delta in self._deltas:
            delta.add_to(out, start)
            if not magnitude(out) < np.inf:
                raise adapter_damage(self.label, self.tensor, delta, start, out)

    def stores(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        """Whether the stored bytes are of this type, in units of these scales, and no adapter changes what they say."""
        return not self._deltas and self.holds(kind, scales)

    def holds(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        """Whether the stored bytes are of this type, in units of these scales, whatever adapters add to them."""
        same = self.scales is scales is None or (
            self.scales is not None and scales is not None and np.array_equal(self.scales, scales)
        )
        return self.tensor.type == kind and same

    @property
    def rank(self) -> int:
        """Of all its adapters together: how many products are added to each value."""
        return sum(delta.rank for delta in self._deltas)

    def same_data(self, other: SourceTensor) -> bool:
        """Whether both read the same bytes of the same file, adapters aside."""
        return self.tensor == other.tensor

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The stored bytes of rows [start, stop), to which no adapter has added anything."""
        return self.tensor.raw_rows(start, stop)

    def intact_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The same, to be copied: DamageError when they hold NaN or infinity."""
        raw = self.raw_rows(start, stop)
        self.check(raw, np.arange(start, stop))
        return raw


class Source:
    """An opened model reference. `reference` is how the recipe calls it; `tensors` are those of the file but for side
    tensors, which `side_tensors` names by their weight; `located` is what is known of the model beside its file.
    """

    def __init__(
        self,
        reference: str,
        file: GGUFFile | Checkpoint,
        adapters: list[LoraAdapter],
        located: Located | None = None,
    ) -> None:
        self.reference = reference
        self.file = file
        self.adapters = adapters
        self.located = located or Located(file.path)
        self.metadata: KeyValues = file.metadata
        self.side_tensors = side_tensors(file.tensors)
        aside = {name for names in self.side_tensors.values() for name in names}
        self.tensors: dict[str, StoredTensor] = {name: t for name, t in file.tensors.items() if name not in aside}

    @property
    def label(self) -> str:
        """What messages and tables call the model."""
        return model_name(self.reference, 1 if isinstance(self.file, Checkpoint) else len(self.file.paths))

    @property
    def is_checkpoint(self) -> bool:
        """Whether it brings weights only, neither a tokenizer nor all metadata."""
        return isinstance(self.file, Checkpoint)

    def changed_by_adapter(self, name: str) -> bool:
        """Whether the tensor's stored bytes are not what the model computes with."""
        return any(name in adapter.names for adapter in self.adapters)

    def stores(self, name: str, kind: TensorType) -> bool:
        """Whether the bytes of a tensor are what the model computes with, in this type."""
        return self.tensors[name].type == kind and not self.changed_by_adapter(name)

    def open_tensor(self, name: str) -> SourceTensor:
        """A reader of one tensor, also of a side tensor; a factor of each adapter is held while it lives."""
        deltas = [d for adapter in self.adapters if (d := adapter.delta(name)) is not None]
        return SourceTensor(self.file.tensors[name], deltas, self.scales(name), self.label)

    def scales(self, name: str) -> NDArray[np.float32] | None:
        """float32 [matrices]: the factors of a tensor's stored values; None for 1."""
        scale = side_names(name)[0]
        if scale not in self.side_tensors.get(name, ()):
            return None
        return read_scales(self.file.tensors[scale], self.tensors[name])

    def files(self) -> Iterator[Path]:
        """All files that the source's numbers come from."""
        yield from self.file.paths
        for adapter in self.adapters:
            yield from adapter.file.paths

    def mapped(self) -> Iterator[MappedFile]:
        """All mapped files that the source's weights come from."""
        yield from self.file.mapped
        for adapter in self.adapters:
            yield from adapter.file.mapped

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the source, one line each."""
        return [*self.located.warnings, *self._ignored(), *self._strong()]

    def misfits(self) -> list[str]:
        """What was asked for in the metadata of its files and ignored, being of a wrong type."""
        files = (self.file, *(adapter.file for adapter in self.adapters))
        return list(dict.fromkeys(f"{file.path}: {line}" for file in files for line in file.metadata.misfits()))

    def _ignored(self) -> list[str]:
        return [
            f"{adapter.file.path}: {len(adapter.ignored)} tensors for norms ({adapter.ignored[0]}, ...) are ignored, "
            "as llama.cpp ignores them"
            for adapter in self.adapters
            if adapter.ignored
        ]

    def _strong(self) -> list[str]:
        return [
            f"{adapter.file.path}: applied at {adapter.strength:g} times its strength; "
            f"for {adapter.strength:g} % write ={adapter.strength / 100:g}"
            for adapter in self.adapters
            if adapter.strength >= STRONG
        ]

    def fingerprint(self) -> str:
        """A short hash that tells one model from another without reading it whole.

        It covers names, types and shapes of the tensors, 64 bytes at the beginning, in the middle and at the end of
        each, and the scales of the adapters, and so does not depend on where the files lie, what they are called or
        how they are sharded: random masks are keyed by it.
        """
        digest = hashlib.blake2b(digest_size=16)
        _add_file(digest, self.file)
        for adapter in self.adapters:
            digest.update(adapter.settings())
            _add_file(digest, adapter.file)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the files; tensors cannot be read any more."""
        for file in (self.file, *(a.file for a in self.adapters)):
            file.close()


def content_fingerprint(file: StoredFile) -> str:
    """A short hash of what a file's tensors hold, as in `Source.fingerprint`; metadata play no part."""
    digest = hashlib.blake2b(digest_size=16)
    _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: hashlib.blake2b, file: StoredFile) -> None:
    for name, tensor in file.tensors.items():
        digest.update(f"{name}|{tensor.type}|{tensor.shape}|".encode("utf-8", "surrogateescape"))
        nbytes = tensor.rows * tensor.type.row_bytes(tensor.n)
        for start in (0, nbytes // 2, max(0, nbytes - 64)):
            digest.update(_stored_bytes(tensor, start, min(start + 64, nbytes)))


def _stored_bytes(tensor: StoredTensor, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a tensor; its `raw` might have to be made as a whole."""
    width = max(1, tensor.type.row_bytes(tensor.n))
    first = start // width
    rows = tensor.raw_rows(first, -(-stop // width)).reshape(-1)
    return bytes(rows[start - first * width : stop - first * width])
