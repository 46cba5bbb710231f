"""A model that takes part in a merge: a GGUF file (or its shards) or a Hugging Face checkpoint, with LoRA adapters
applied while it streams.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.architectures.fused import of_expert
from ggufmerge.files import GGUFFile, MetadataEditor, TensorInfo, facts
from ggufmerge.files.metadata import KeyValues
from ggufmerge.files.shards import model_name
from ggufmerge.files.tensor import MappedFile
from ggufmerge.formats.checkpoint import Checkpoint
from ggufmerge.formats.experts import about_stacks
from ggufmerge.formats.rearranged import Computed, Rearranged, described, taken_apart, under_other_names
from ggufmerge.formats.stored import DescribedTensor, StoredFile, StoredTensor, with_only, with_tensors
from ggufmerge.keys import HEAD
from ggufmerge.quants import codec
from ggufmerge.quants.magnitude import magnitude
from ggufmerge.sources.damage import adapter_damage, damage, too_large
from ggufmerge.sources.located import Located
from ggufmerge.sources.lora import Change, LoraAdapter, Moved
from ggufmerge.sources.replaced import replacement
from ggufmerge.sources.side_tensors import read_scales, side_names, side_tensors
from ggufmerge.sources.tying import own_head
from ggufmerge.text import first_few
from ggufmerge.types import TensorType

STRONG = 5  # times: from here on an adapter's strength is taken for a percentage, and the user is asked


class TensorReader(ABC):
    """Reads one tensor of a source, as the result has it. Several threads may read at once.

    rows, n: its shape as a matrix (leading dimensions flattened).
    gathered: whether its rows are collected from several places, as a changed vocabulary needs it.
    data: what tells the stored data that is read from other data, adapters aside.
    """

    rows: int
    n: int
    gathered: bool
    data: tuple[StoredTensor, bytes]

    @property
    @abstractmethod
    def type(self) -> TensorType:
        """Of what the model's own file stores."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Of all the model's adapters together: how many products are added to each value."""

    def read(self, start: int, out: NDArray[np.float32]) -> None:
        """Fill `out`, float32 [k, n], with rows [start, start + k), dequantized and with adapters applied.

        DamageError when the file holds NaN or infinity there, or the adapters make such of what it holds.
        """
        self.dequantize(start, out)
        self.adapt(start, out)

    @abstractmethod
    def dequantize(self, start: int, out: NDArray[np.float32]) -> None:
        """The first half of `read`: what the model's own file holds; rows it lacks are zero."""

    @abstractmethod
    def adapt(self, start: int, out: NDArray[np.float32]) -> None:
        """The second half of `read`: what the model's adapters change, and the rows that its file lacks."""

    @abstractmethod
    def stores(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        """Whether `raw_rows` are bytes of this type, in units of these scales, and say what `read` gives."""

    @abstractmethod
    def holds(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        """Whether `raw_rows` are bytes of this type, in units of these scales, and say what `dequantize` gives."""

    @abstractmethod
    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The stored bytes of rows [start, stop), to which no adapter has added anything."""

    @abstractmethod
    def intact_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The same, to be copied: DamageError when they hold NaN or infinity."""

    def same_data(self, other: TensorReader) -> bool:
        """Whether both read the same rows of the same file, adapters aside."""
        return self.data == other.data


class SourceTensor(TensorReader):
    """One tensor of a source as the file has it.

    Nothing of it is kept in memory but a factor of each adapter.
    """

    gathered = False

    def __init__(
        self, tensor: StoredTensor, deltas: Sequence[Change], scales: NDArray[np.float32] | None = None, label: str = ""
    ) -> None:
        """scales: float32 [matrices], factors of what is stored; None for 1.  label: of the source, for errors."""
        self.tensor, self.scales, self.label = tensor, scales, label or str(tensor.path)
        self.n, self.rows = tensor.n, tensor.rows
        self.data = (tensor, b"")
        self._deltas = deltas
        self._codec = codec(tensor.type)

    @property
    def type(self) -> TensorType:
        return self.tensor.type

    @property
    def rank(self) -> int:
        return sum(delta.rank for delta in self._deltas)

    def dequantize(self, start: int, out: NDArray[np.float32]) -> None:
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
        for delta in self._deltas:
            delta.add_to(out, start)
            if not magnitude(out) < np.inf:
                raise adapter_damage(self.label, self.tensor, delta, start, out)

    def stores(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        return not self._deltas and self.holds(kind, scales)

    def holds(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        if self.scales is None or scales is None:
            same = self.scales is None and scales is None
        else:
            same = np.array_equal(self.scales, scales)
        return self.tensor.type == kind and same

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.tensor.raw_rows(start, stop)

    def intact_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        raw = self.raw_rows(start, stop)
        self.check(raw, np.arange(start, stop))
        return raw


class Source:
    """An opened model reference. `reference` is how the recipe calls it; `tensors` are those of the file but for side
    tensors, which `side_tensors` names by their weight; `located` is what is known of the model beside its file.

    Some methods take the role of a tensor, which is its name in the result: an embedding may stand in for a tied output
    head there. It decides which rows other models lend (`sources.aligned`).

    replaced: the tensors in the place of which adapters brought others; `file` has those, while `tensors` has the types
    of the model's own. So it is with stacks of experts whose types differ (`formats.rearranged.Mixed`).
    """

    def __init__(
        self,
        reference: str,
        file: GGUFFile | Checkpoint,
        adapters: list[LoraAdapter],
        located: Located | None = None,
        replaced: Mapping[str, DescribedTensor] | None = None,
    ) -> None:
        self.reference = reference
        self.file = file
        self.adapters = adapters
        self.located = located or Located(file.path)
        self.metadata: KeyValues = file.metadata
        self.side_tensors = side_tensors(file.tensors)
        aside = {name for names in self.side_tensors.values() for name in names}
        self.tensors: dict[str, DescribedTensor] = {
            name: described(tensor) for name, tensor in file.tensors.items() if name not in aside
        }
        self.replaced = dict(replaced or {})
        self.tensors |= self.replaced

    @classmethod
    def adapted(
        cls, reference: str, file: GGUFFile | Checkpoint, adapters: list[LoraAdapter], located: Located | None = None
    ) -> Source:
        """A model with adapters that were opened for its file: with a head of its own if one of them needs that, and
        with the tensors that they bring whole.
        """
        if any(adapter.parts for adapter in adapters):
            file = with_tensors(file, own_head(file))
        brought: dict[str, list[tuple[StoredTensor, float]]] = {}
        for adapter in adapters:
            for name in adapter.wholes & file.tensors.keys():
                brought.setdefault(name, []).append((adapter.whole(name), adapter.strength))
        own = {name: file.tensors[name] for name in brought}
        replaced = {name: TensorInfo(name, tensor.shape, described(tensor).type) for name, tensor in own.items()}
        file = with_tensors(file, {name: replacement(own[name], parts) for name, parts in brought.items()})
        return cls(reference, file, adapters, located, replaced)

    def part(self) -> None:
        """Give a model whose head is its embedding a head of its own, as if its file had the matrix twice."""
        self.file = with_tensors(self.file, own_head(self.file))
        self.side_tensors = side_tensors(self.file.tensors)
        self.tensors[HEAD] = self.file.tensors[HEAD]

    def take_apart(self, parts: Mapping[str, Mapping[str, StoredTensor]], metadata: KeyValues | None = None) -> None:
        """Show parts of tensors instead of the tensors, as if the file had them so.

        parts: by the name of the tensor; a single part is the same under another name.  metadata: to show as well.
        """
        if not parts and metadata is None:
            return
        brought = {part: self.replaced[name] for name, own in parts.items() for part in own if name in self.replaced}
        shown: dict[str, StoredTensor] = {}
        for name, tensor in self.file.tensors.items():
            shown |= parts.get(name, {name: tensor})
        self.file = with_only(self.file, shown, metadata)
        self.metadata = self.file.metadata
        self.replaced = {name: tensor for name, tensor in self.replaced.items() if name not in parts}
        self.replaced |= {part: TensorInfo(part, shown[part].shape, whole.type) for part, whole in brought.items()}
        self.side_tensors = side_tensors(shown)
        aside = {name for names in self.side_tensors.values() for name in names}
        self.tensors = {name: self.tensors.get(name, described(t)) for name, t in shown.items() if name not in aside}
        self.tensors |= self.replaced

    @property
    def name(self) -> str:
        """What the model and its adapters call themselves, else their files' names."""
        return " + ".join(map(facts.name, (self.file, *(adapter.file for adapter in self.adapters))))

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
        names = (name, self._whole(name))
        return any(own in adapter.changed for adapter in self.adapters for own in names)

    def _whole(self, name: str) -> str:
        """The tensor of the file that a tensor is a part of; empty for others."""
        tensor = self.file.tensors.get(name)
        return tensor.whole if isinstance(tensor, Rearranged) else ""

    def moves(self, name: str) -> bool:
        """Whether the rows of a tensor are others, or elsewhere, than in the file."""
        return False

    def notes(self, name: str, role: str = "") -> list[str]:
        """What happens to the rows of a tensor, in words; PlanError when rows that are to be lent do not fit."""
        if name in self.replaced:
            brought = ", ".join(str(a.file.path) for a in self.adapters if name in a.wholes)
            return [f"replaced by the one of {brought}, where it was trained whole"]
        return []

    def stores(self, name: str, kind: TensorType, role: str = "") -> bool:
        """Whether the bytes of a tensor are what the model computes with, in this type."""
        return self.file.tensors[name].type == kind and not self.changed_by_adapter(name)

    @property
    def parted(self) -> bool:
        """Whether adapters part an output head from the embedding to which it was tied in the file."""
        return any(adapter.parts for adapter in self.adapters)

    def open_tensor(self, name: str, role: str = "") -> TensorReader:
        """A reader of one tensor, also of a side tensor; a factor of each adapter is held while it lives."""
        return self.open_stored(name)

    def open_stored(self, name: str) -> SourceTensor:
        """A reader of one tensor as the file has it."""
        tensor = self.file.tensors[name]
        deltas = [change for adapter in self.adapters for change in adapter.changes(name)]
        if isinstance(tensor, Rearranged) and tensor.whole:
            of_whole = (change for adapter in self.adapters for change in adapter.changes(tensor.whole))
            deltas += [Moved(change, tensor.moves) for change in of_whole]
        return SourceTensor(tensor, deltas, self.scales(name), self.label)

    def scales(self, name: str) -> NDArray[np.float32] | None:
        """float32 [matrices]: the factors of a tensor's stored values; None for 1."""
        scale = side_names(name)[0]
        if scale not in self.side_tensors.get(name, ()) or name in self.replaced:
            return None
        return read_scales(self.file.tensors[scale], self.tensors[name])

    def editor(self) -> MetadataEditor:
        """The metadata that a result takes over from this source, to be changed."""
        return MetadataEditor(self.file.metadata)

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
        return [*self.located.warnings, *self.rearranged(), *self._ignored(), *self._idle(), *self._strong()]

    def misfits(self) -> list[str]:
        """What was asked for in the metadata of its files and ignored, being of a wrong type."""
        files = (self.file, *(adapter.file for adapter in self.adapters))
        return list(dict.fromkeys(f"{file.path}: {line}" for file in files for line in file.metadata.misfits()))

    def rearranged(self) -> list[str]:
        """What is special of the layout of its file, which is read as if it had that of today; one line each."""
        told = [f"{self.label}: {stacks}"] if (stacks := about_stacks(self.file.tensors)) else []
        if wholes := taken_apart(self.file.tensors):
            told.append(f"{self.label}: {first_few(wholes, 1)} taken apart, as the other models have them")
        if computed := [t.name for t in self.file.tensors.values() if isinstance(t, Computed)]:
            told.append(
                f"{self.label}: {first_few(computed, 1)} made of what it has in another layout, as in the first model"
            )
        names = [name for name in under_other_names(self.file.tensors) if of_expert(name) is None]
        if names:
            told.append(f"{self.label}: {first_few(names, 1)} read under the names that the other models have for them")
        return told

    def _ignored(self) -> list[str]:
        return [
            f"{adapter.file.path}: {first_few(names, 1)} left out: {what}"
            for adapter in self.adapters
            for what, names in adapter.ignored.items()
        ]

    def _idle(self) -> list[str]:
        return [
            f"{adapter.file.path}: the adapter changes nothing: {why}"
            for adapter in self.adapters
            if (why := adapter.idle())
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
