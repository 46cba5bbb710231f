"""Models in the vocabulary of the result: their tensors with a row per token have the rows that the result has.

`tokenizers.align` says where each row of the result comes from. Here those rows are gathered while they stream: only
the rows asked for are dequantized, rows that a model lacks are made from those of the other models, and adapters
change the rows of the model they belong to before they are lent to others. What a row holds does not depend on which
rows are read together with it. Memory: a chunk, beside the row numbers of the vocabulary.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import PlanError
from ggufmerge.files import MetadataEditor, Tensor, TensorInfo
from ggufmerge.formats.stored import DescribedTensor
from ggufmerge.keys import EMBEDDING, HEAD, HUGGINGFACE_JSON, TOKENIZER
from ggufmerge.sources.model import Source, SourceTensor, TensorReader
from ggufmerge.tokenizers.align import MEAN, PAD, ZERO, Alignment, Rows
from ggufmerge.types import TensorType

_BY_TOKEN = re.compile(
    r"(token_embd|per_layer_token_embd|output)\.weight|output\.bias|blk\.\d+\.nextn\.(embed_tokens|shared_head_head)\.weight"
)
_MEAN_VALUES = 1 << 16  # values read at a time to average a model's rows
_FILLED = {
    "copied": "copied from other models or tokens",
    "averaged": "averaged over the models that have them",
    "zero": "zero",
    "padding": "placeholders, the mean of its rows",
}


def aligned(sources: Sequence[Source], alignment: Alignment) -> list[Source]:
    """The same models, which stay open, in the vocabulary of the result."""
    return [AlignedSource(alignment, sources, number) for number in range(len(sources))]


class AlignedSource(Source):
    """A model whose tensors have the shapes and the rows that the result has; see `Source`."""

    def __init__(self, alignment: Alignment, sources: Sequence[Source], number: int) -> None:
        """sources: all models of the merge, as their files are.  number: of this one, as `alignment` counts them."""
        own = sources[number]
        super().__init__(own.label, own.file, own.adapters, own.located, own.replaced)
        self._alignment, self._sources, self._number = alignment, sources, number
        self._moved = {
            name
            for name, tensor in own.tensors.items()
            if has_token_rows(name) and not alignment.is_identity(number, first_dimension(tensor))
        }
        self.tensors |= {
            name: TensorInfo(name, (alignment.rows, *own.tensors[name].shape[1:]), own.tensors[name].type)
            for name in self._moved
        }

    def moves(self, name: str) -> bool:
        return name in self._moved

    def notes(self, name: str, role: str = "") -> list[str]:
        own = super().notes(name, role)
        if not self.moves(name):
            return own
        alignment, number = self._alignment, self._number
        check_widths(role or name, {i: self._sources[i] for i in sorted({number, *alignment.lenders(number)})})
        notes = own
        filled = {what: count for what, count in alignment.filled(number).items() if count}
        if filled:
            listed = ", ".join(f"{count} {_FILLED[what]}" for what, count in filled.items())
            total = f"{sum(filled.values())} of the {alignment.rows} rows of {self.label}"
            notes.append(f"{total} are not its own: {listed}")
        if alignment.dropped[number]:
            notes.append(f"tokens of {self.label} that the result lacks: {alignment.dropped[number]}")
        return notes

    def stores(self, name: str, kind: TensorType, role: str = "") -> bool:
        if not self.moves(name):
            return super().stores(name, kind)
        return is_stored(self._alignment, self._sources, self._number, role or name, kind)

    def open_tensor(self, name: str, role: str = "") -> TensorReader:
        if not self.moves(name):
            return self.open_stored(name)
        return AlignedTensor(self._alignment, self._sources, self._number, role or name)

    def editor(self) -> MetadataEditor:
        editor = super().editor()
        donor = self._alignment.donor
        for key in [k for k in editor if k.startswith(TOKENIZER) and k not in donor.metadata]:
            editor.remove(key)
        for key in donor.metadata:
            editor.set_raw(key, donor.metadata.raw(key))
        changes: Mapping[str, Any] = self._alignment.vocabulary.changes(donor)
        for key, value in changes.items():
            editor.set(key, value)
        if changes:
            editor.remove(HUGGINGFACE_JSON)
        return editor


def has_token_rows(name: str) -> bool:
    """Whether the first dimension of a tensor of this name counts tokens."""
    return _BY_TOKEN.fullmatch(name) is not None


def token_rows(source: Source) -> int | None:
    """Rows of the smallest tensor of a source that has a row per token; None when there is none."""
    return min((first_dimension(t) for name, t in source.tensors.items() if has_token_rows(name)), default=None)


def first_dimension(tensor: DescribedTensor) -> int:
    """The outermost dimension of a tensor; 1 for a single value without dimensions."""
    return tensor.shape[0] if tensor.shape else 1


def counterpart(source: Source, name: str) -> str | None:
    """What a source calls a tensor with token rows: a tied embedding is its output head. None when it has neither."""
    if name in source.tensors:
        return name
    return EMBEDDING if name == HEAD and EMBEDDING in source.tensors else None


def check_widths(name: str, sources: Mapping[int, Source]) -> None:
    """PlanError unless all these models have a tensor of this name, a matrix or a vector, with rows of one length."""
    first, width = "", None
    for source in sources.values():
        own = counterpart(source, name)
        if own is None:
            raise PlanError(f"{name}: {source.label} has no such tensor, but rows of it are to go to another model")
        shape = source.tensors[own].shape
        if len(shape) not in (1, 2):
            raise PlanError(f"{name}: {list(shape)} in {source.label}, not a row for each token; use another file")
        own_width = shape[1] if len(shape) == 2 else 1
        if width is None:
            first, width = source.label, own_width
        elif own_width != width:
            raise PlanError(
                f"{name}: rows of {first} have {width} values, those of {source.label} {own_width}; "
                "merge fine-tunes of one base"
            )


def is_stored(alignment: Alignment, sources: Sequence[Source], model: int, name: str, kind: TensorType) -> bool:
    """Whether each row is one that some file holds in this type, so that bytes can be copied."""
    rows = alignment.own(model) < 0
    lenders = {int(d) for d in np.unique(alignment.donors[rows])}
    if lenders & {ZERO, MEAN, PAD}:
        return False
    names = {m: counterpart(sources[m], name) for m in {model, *lenders}}
    return all(
        own is not None and sources[m].stores(own, kind) and own not in sources[m].side_tensors
        for m, own in names.items()
    )


class AlignedTensor(TensorReader):
    """A tensor of a source whose rows in the result are others, or elsewhere, than in the model's file.

    A vector (a bias of the output) is one row with a value per token.
    """

    gathered = True

    def __init__(self, alignment: Alignment, sources: Sequence[Source], model: int, name: str) -> None:
        """name: what the source `model` calls the tensor, or what the result calls it."""
        self._alignment, self._sources, self._model, self._name = alignment, sources, model, name
        self._parts = [_part(source, name) for source in sources]
        part = self._parts[model]
        if part is None:
            raise PlanError(f"{name}: {sources[model].label} has no such tensor")
        self._own = part
        self._vector = len(sources[model].tensors[part.name].shape) == 1
        self.n, self.rows = (alignment.rows, 1) if self._vector else (part.reader.n, alignment.rows)
        self._mean: NDArray[np.float32] | None = None
        self._lock = threading.Lock()
        self.data = (part.reader.tensor, hashlib.blake2b(alignment.maps[model].tobytes(), digest_size=16).digest())

    @property
    def type(self) -> TensorType:
        return self._own.reader.type

    @property
    def rank(self) -> int:
        return self._own.reader.rank

    def dequantize(self, start: int, out: NDArray[np.float32]) -> None:
        if self._vector:
            start, out = 0, out.reshape(-1, 1)
        own = self._alignment.own(self._model, start, start + len(out))
        here = np.flatnonzero(own >= 0)
        if len(here) == len(own):
            self._own.dequantize(own, out)
            return
        out[...] = 0
        rows = np.empty((len(here), out.shape[1]), np.float32)
        self._own.dequantize(own[here], rows)
        out[here] = rows

    def adapt(self, start: int, out: NDArray[np.float32]) -> None:
        if self._vector:
            start, out = 0, out.reshape(-1, 1)
        own = self._alignment.own(self._model, start, start + len(out))
        self._own.adapt(own, out)
        self._fill(start, own, out)

    def stores(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        return scales is None and is_stored(self._alignment, self._sources, self._model, self._name, kind)

    def holds(self, kind: TensorType, scales: NDArray[np.float32] | None = None) -> bool:
        """False: bytes are given of rows that the model lacks, too, which are zero without what others lend."""
        return False

    def raw_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Those that the model lacks from where they are lent; only for tensors of which `stores` holds. DamageError
        when they hold NaN or infinity.
        """
        a = self._alignment
        if self._vector:
            return self._gather(0, a.rows).reshape(1, -1)
        return self._gather(start, stop)

    def intact_rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.raw_rows(start, stop)

    def _gather(self, start: int, stop: int) -> NDArray[np.uint8]:
        a = self._alignment
        own = a.own(self._model, start, stop)
        lender = np.where(own >= 0, np.int32(self._model), a.donors[start:stop])
        rows = np.where(own >= 0, own, a.donor_rows[start:stop])
        if (lender == self._model).all():
            return self._own.intact(rows)
        tensor = self._own.reader.tensor
        out = np.empty((stop - start, tensor.type.row_bytes(tensor.n)), np.uint8)
        for model in np.unique(lender):
            here = lender == model
            out[here] = self._lender(int(model)).intact(rows[here])
        return out

    def _fill(self, start: int, own: Rows, out: NDArray[np.float32]) -> None:
        """Fill the rows that the model lacks."""
        a = self._alignment
        missing = np.flatnonzero(own < 0)
        donors = a.donors[start + missing]
        for donor in np.unique(donors):
            here = missing[donors == donor]
            if donor == MEAN:
                out[here] = self._average(start + here, out.shape[1])
            elif donor == PAD:
                out[here] = self._padding_row()
            elif donor == ZERO:
                out[here] = 0
            else:
                out[here] = self._lender(int(donor)).read(a.donor_rows[start + here])

    def _average(self, rows: NDArray[np.intp], n: int) -> NDArray[np.float32]:
        """float32 [rows, n]: the mean over the models that have these tokens, summed in the order of the models."""
        total, count = np.zeros((len(rows), n), np.float32), np.zeros((len(rows), 1), np.float32)
        for model, own in enumerate(self._alignment.maps):
            here = np.flatnonzero(own[rows] >= 0)
            if len(here):
                total[here] += self._lender(model).read(own[rows[here]])
                count[here] += 1
        return np.asarray(total / count, np.float32)

    def _padding_row(self) -> NDArray[np.float32]:
        """float32 [n]: the mean over all rows of the model that are no placeholders, computed once."""
        with self._lock:
            if self._mean is None:
                n = self._own.reader.n
                step = max(1, _MEAN_VALUES // n)
                real = ~self._alignment.vocabulary.padding
                total = np.zeros(n, np.float64)
                for start in range(0, len(real), step):
                    total += self._tokens(start, real[start : start + step]).sum(axis=0, dtype=np.float64)
                self._mean = (total / max(1, int(real.sum()))).astype(np.float32)
            return self._mean

    def _tokens(self, start: int, wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """float32 [wanted, n]: those rows of [start, start + len(wanted)) that are wanted; never of placeholders."""
        rows = start + np.flatnonzero(wanted)
        out = np.zeros((len(rows), self._own.reader.n), np.float32)
        for a, b in _runs(rows.astype(np.int32)):
            own = self._alignment.own(self._model, int(rows[a]), int(rows[a]) + b - a)
            here = np.flatnonzero(own >= 0)
            out[a + here] = self._own.read(own[here])
            self._fill(int(rows[a]), own, out[a:b])
        return out

    def _lender(self, model: int) -> _Part:
        part = self._parts[model]
        assert part is not None, "checked by check_widths"
        return part


class _Part:
    """The tensor of one source, with access to any rows of it."""

    def __init__(self, name: str, reader: SourceTensor, *, adapted: bool) -> None:
        self.name, self.reader, self.adapted = name, reader, adapted

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """float32 [rows, n]: these rows, with adapters applied."""
        out = np.empty((len(rows), self.reader.n), np.float32)
        self.dequantize(rows, out)
        self.adapt(rows, out)
        return out

    def dequantize(self, rows: Rows, out: NDArray[np.float32]) -> None:
        if len(rows):
            self.reader.decode(self.raw(rows), rows, out)

    def adapt(self, rows: Rows, out: NDArray[np.float32]) -> None:
        """Add what the adapters change to `out`, which holds these rows; rows numbered -1 are left alone."""
        if self.adapted:
            for start, stop in _runs(rows):
                if rows[start] >= 0:
                    self.reader.adapt(int(rows[start]), out[start:stop])

    def intact(self, rows: Rows) -> NDArray[np.uint8]:
        """`raw`, after a look for NaN and infinity."""
        raw = self.raw(rows)
        self.reader.check(raw, rows)
        return raw

    def raw(self, rows: Rows) -> NDArray[np.uint8]:
        """uint8 [rows, row bytes], as stored: a view of the file when the rows follow each other there."""
        tensor = self.reader.tensor
        first = int(rows[0]) if len(rows) else 0
        if len(rows) and int(rows[-1]) - first == len(rows) - 1 and (np.diff(rows) == 1).all():
            return tensor.raw_rows(first, first + len(rows))
        return tensor.raw_rows(0, tensor.rows)[rows]


def _part(source: Source, name: str) -> _Part | None:
    own = counterpart(source, name)
    if own is None:
        return None
    reader = source.open_stored(own)
    if len(reader.tensor.shape) == 1:
        assert isinstance(reader.tensor, Tensor), "vocabularies of checkpoints are not aligned"
        reader = SourceTensor(_as_column(reader.tensor), [], label=reader.label)
    return _Part(own, reader, adapted=source.changed_by_adapter(own))


def _as_column(vector: Tensor) -> Tensor:
    return replace(vector, shape=(vector.n, 1))


def _runs(rows: Rows) -> Iterator[tuple[int, int]]:
    """Spans [start, stop) in which row numbers rise by one; a row of -1 stands alone."""
    if len(rows):
        breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] < 0)) + 1
        edges = [0, *breaks.tolist(), len(rows)]
        yield from pairwise(edges)
