"""Importance matrices: how large the inputs of each column of a weight are, on average, on some calibration text.

A quantizer that knows them spends its precision on the columns that matter. For every weight there is a row of mean
squared activations per matrix: one for an ordinary weight, one per expert for a stack of experts. Source: llama.cpp
v0.5.0 (`tools/imatrix`, `tools/quantize`, `llama_model_quantize_impl`). `ggufmerge.formats.imatrix` reads the files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ggufmerge.architectures.fused import GATE_UP, QKV, expert_name, of_expert
from ggufmerge.errors import FormatError, GgufmergeError, PlanError, nearest
from ggufmerge.keys import (
    EMBEDDING,
    IMATRIX_CHUNKS,
    IMATRIX_DATASET,
    IMATRIX_ENTRIES,
    IMATRIX_FILE,
    PER_LAYER_EMBEDDING,
)
from ggufmerge.quants.correlations import Correlation, correlation_of_all

# What one weight is called in two layouts of a model. Its inputs are the same in both, and so is what was collected.
_PART = re.compile(r"(blk\.\d+\.)(\w+)\.weight", re.ASCII)
_TOGETHER = dict([QKV, GATE_UP])
_TOGETHER |= {part: (whole,) for whole, parts in _TOGETHER.items() for part in parts}
_DEFAULT_CHUNK = 512  # tokens in a chunk of llama-imatrix, for files that do not say


@dataclass(frozen=True)
class ImatrixEntry:
    """What was collected for one weight.

    sums: float32 [k * m], sums of squared activations, matrix after matrix.
    counts: int64 [k], how many activations each of k equal parts of `sums` adds up; 0 for an expert no token met.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 [k * m]: sums / counts as llama-quantize divides them; 1 where nothing was counted."""
        parts = self.sums.reshape(len(self.counts), -1)
        counts = self.counts[:, None]
        means = parts / np.maximum(counts, 1).astype(np.float32)
        return np.where(counts > 0, means, np.float32(1)).reshape(-1)


class Imatrix(Collection[str]):
    """The importance matrices of one model, by name of the weight; `name in imatrix` says whether there is one.

    names: of the weights.  datasets: names of the calibration texts.  chunks: how many pieces of text were used.
    chunk_size: tokens in a piece, 0 when the file does not say (legacy .dat files, whose counts are chunks).

    A file may call a weight as another layout of the model does: an entry for each expert where the model has them in
    one tensor, one for Q, K and V together where it has three. Such entries are found, too.
    file: the name of the file it came from, without its folder.
    correlations: of a calibration file, by name of the weight, for each of its matrices; empty without.
    """

    def __init__(
        self,
        entries: Mapping[str, ImatrixEntry],
        *,
        datasets: Sequence[str] = (),
        chunks: int = 0,
        chunk_size: int = 0,
        file: str = "imatrix",
        correlations: Mapping[str, tuple[Correlation, ...]] | None = None,
    ) -> None:
        """FormatError, with the weight's name, when an entry is not finite or its counts do not divide its sums."""
        self.file = file
        self.correlations = dict(correlations or {})
        self.datasets, self.chunks, self.chunk_size = tuple(datasets), chunks, chunk_size
        self._entries = dict(entries)
        for name, entry in self._entries.items():
            if not len(entry.counts) or not entry.sums.size or entry.sums.size % len(entry.counts):
                raise FormatError(
                    f"{self.file}: {name} has {entry.sums.size} sums for {len(entry.counts)} counts; "
                    "the file is damaged, make it again with llama-imatrix"
                )
            if not np.isfinite(entry.sums).all():
                raise FormatError(f"{self.file}: {name} holds NaN or infinity; make the file again with llama-imatrix")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self._other(name) is not None or name in self._singles)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def entry(self, name: str) -> ImatrixEntry:
        """The sums and counts of one weight, under this very name; KeyError when there are none."""
        return self._entries[name]

    def missed(self, name: str, n_mat: int = 1) -> int:
        """How many of the `n_mat` experts of a stack no token met; 0 for other weights, and those without an entry."""
        entry = self._other(name)
        if entry is None and name in self._singles:
            return n_mat - sum(1 for single in self._singles[name].values() if single.counts.any())
        return int((entry.counts == 0).sum()) if entry is not None and len(entry.counts) > 1 else 0

    def get(self, name: str, n: int, n_mat: int = 1) -> NDArray[np.float32] | None:
        """float32 [n_mat, n]: the importance of each column of weight `name`, for each of its matrices (experts).

        None when there is no entry. PlanError when the entry is for another shape; as in llama-quantize, token
        embeddings of another shape merely have none.
        """
        entry = self._other(name)
        if entry is None and name in self._singles:
            entry = self._stacked(name, n_mat)
        if entry is None:
            return None
        if entry.sums.size != n * n_mat:
            if name in (EMBEDDING, PER_LAYER_EMBEDDING):
                return None
            raise PlanError(
                f"{self.file}: {name} has {entry.sums.size} importance values, but the tensor needs {n * n_mat} "
                f"({n_mat} x {n}); use an importance matrix that was made for this model"
            )
        return entry.values.reshape(n_mat, n)

    def correlation(self, name: str, n: int, n_mat: int = 1) -> tuple[Correlation, ...] | None:
        """The correlations of the inputs of each matrix of weight `name`, each of `n` columns; None when there are
        none. PlanError when they are for another shape.
        """
        names = (name, *self._elsewhere(name))
        found = next((self.correlations[other] for other in names if other in self.correlations), None)
        if found is None:
            return None
        if len(found) != n_mat or found[0].n != n:
            raise PlanError(
                f"{self.file}: {name} has correlations of {len(found)} x {found[0].n} columns, but the tensor needs "
                f"those of {n_mat} x {n}; use a calibration that was made for this model"
            )
        return found

    def _other(self, name: str) -> ImatrixEntry | None:
        """The entry of a weight under its own name, or else of one that has the same inputs in another layout."""
        if (own := self._entries.get(name)) is not None:
            return own
        if name in self._singles:
            return None
        return next((self._entries[other] for other in self._elsewhere(name) if other in self._entries), None)

    @staticmethod
    def _elsewhere(name: str) -> list[str]:
        """What a weight is part of, or made of, in another layout of the model."""
        match = _PART.fullmatch(name)
        return [f"{match[1]}{other}.weight" for other in _TOGETHER.get(match[2], ())] if match else []

    def _stacked(self, stack: str, n_mat: int) -> ImatrixEntry:
        """The entries that each expert of a stack has of its own as one for the stack, with 0 counts for the rest.

        n_mat: how many experts there are.  PlanError when there are entries for more, or they differ in size.
        """
        singles = self._singles[stack]
        if max(singles) >= n_mat:
            raise PlanError(
                f"{self.file}: has an entry for expert {max(singles)} of {stack}, which has {n_mat} (counted from 0); "
                "use an importance matrix that was made for this model"
            )
        size = next(iter(singles.values())).sums.size
        sums, counts = np.zeros((n_mat, size), np.float32), np.zeros(n_mat, np.int64)
        for expert, entry in singles.items():
            if entry.sums.size != size or len(entry.counts) != 1:
                raise PlanError(
                    f"{self.file}: the entries for single experts of {stack} differ in size; make the file again with "
                    "llama-imatrix"
                )
            sums[expert], counts[expert] = entry.sums, entry.counts[0]
        return ImatrixEntry(sums.reshape(-1), counts)

    @cached_property
    def _singles(self) -> dict[str, dict[int, ImatrixEntry]]:
        """The entries that are for one expert, by the name of the stack and the expert's place in it."""
        found: dict[str, dict[int, ImatrixEntry]] = {}
        for name, entry in self._entries.items():
            if (place := of_expert(name)) is not None:
                found.setdefault(place[0], {})[place[1]] = entry
        return found

    def _like(self, stacks: Mapping[str, ImatrixEntry]) -> dict[str, ImatrixEntry]:
        """The entries, with those for single experts as one for the stack if it is among these."""
        entries = dict(self._entries)
        for stack, singles in self._singles.items():
            if stack in stacks and stack not in entries:
                size = next(iter(singles.values())).sums.size
                entries[stack] = self._stacked(stack, stacks[stack].sums.size // size)
                for expert in singles:
                    del entries[str(expert_name(stack, expert))]
        return entries

    def combine(self, others: Iterable[Imatrix]) -> Imatrix:
        """The importance matrix of all the texts together: sums and counts add, as in llama-imatrix.

        It is the natural choice for a merge of the models the matrices were made for. Legacy files count chunks, the
        others tokens, so legacy sums and counts are first multiplied by the chunk size. PlanError when two entries of
        a name differ in size.
        """
        everyone = [self, *others]
        in_tokens = any(m.chunk_size for m in everyone)
        chunk = next((m.chunk_size for m in everyone if m.chunk_size), _DEFAULT_CHUNK)
        entries: dict[str, ImatrixEntry] = {}
        stacks = {name: entry for m in everyone for name, entry in m._entries.items() if name.endswith("_exps.weight")}
        for imatrix in everyone:
            factor = chunk if in_tokens and not imatrix.chunk_size else 1
            for name, entry in imatrix._like(stacks).items():
                scaled = ImatrixEntry(entry.sums * np.float32(factor), entry.counts * factor)
                try:
                    entries[name] = _sum(entries[name], scaled) if name in entries else scaled
                except ValueError as e:
                    raise PlanError(
                        f"{imatrix.file}: {name} has {e} in {self.file}; "
                        "importance matrices can be combined for models of the same shapes only"
                    ) from None
        return Imatrix(
            entries,
            datasets=list(dict.fromkeys(d for m in everyone for d in m.datasets)),
            chunks=sum(m.chunks for m in everyone),
            chunk_size=chunk if in_tokens else 0,
            file=" + ".join(dict.fromkeys(m.file for m in everyone)),
            correlations=_together(everyone, entries),
        )

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Imatrix:
        """Only the entries whose name contains one of `include`, or all but those that contain one of `exclude`.

        They are llama-quantize's --include-weights and --exclude-weights: give one of the two. GgufmergeError when both
        are given, or a text is found in no name.
        """
        if include and exclude:
            raise GgufmergeError("--include-weights and --exclude-weights cannot be used together")
        for part in (*include, *exclude):
            if not any(part in name for name in self):
                raise GgufmergeError(f'"{part}" is found in no name of {self.file}: {nearest(part, self.names[:8])}')
        entries = {
            name: entry
            for name, entry in self._entries.items()
            if (not include or any(part in name for part in include)) and not any(part in name for part in exclude)
        }
        return Imatrix(
            entries,
            datasets=self.datasets,
            chunks=self.chunks,
            chunk_size=self.chunk_size,
            file=self.file,
            correlations={name: found for name, found in self.correlations.items() if name in entries},
        )

    def fingerprint(self) -> str:
        """A hash of all names, sums, counts and correlations."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self):
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            digest.update(self._entries[name].sums.tobytes() + self._entries[name].counts.tobytes())
        for name in sorted(self.correlations):
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            for one in self.correlations[name]:
                kept = one.triangle if one.loadings is None else one.loadings
                assert kept is not None, "one of the two is given"
                digest.update(f"{kept.dtype}{kept.shape}".encode() + np.ascontiguousarray(kept).tobytes())
        return digest.hexdigest()

    def metadata(self) -> dict[str, str | int]:
        """The keys that llama-quantize writes into a file it made with this matrix: str and u32.

        The file stands there without its folder, so the result does not depend on where it lies.
        """
        keys: dict[str, str | int] = {IMATRIX_FILE: self.file}
        if self.datasets:
            keys[IMATRIX_DATASET] = self.datasets[0]
        keys[IMATRIX_ENTRIES] = len(self)
        if self.chunks > 0:
            keys[IMATRIX_CHUNKS] = self.chunks
        return keys


def _together(everyone: Sequence[Imatrix], entries: Mapping[str, ImatrixEntry]) -> dict[str, tuple[Correlation, ...]]:
    """The correlations of all the texts together. A matrix of importances without any counts for as many texts as it
    had, but says nothing of correlations: those of the others are taken.
    """
    found: dict[str, tuple[Correlation, ...]] = {}
    done: dict[tuple[object, ...], tuple[Correlation, ...]] = {}  # weights that have the same inputs share them
    for name in entries:
        having = [m for m in everyone if name in m.correlations and name in m]
        if len(having) == 1:
            found[name] = having[0].correlations[name]
        elif having:
            sums = [m.entry(name).sums for m in having]
            key = tuple((id(m.correlations[name]), s.tobytes()) for m, s in zip(having, sums, strict=True))
            if key not in done:
                matrices = zip(*(m.correlations[name] for m in having), strict=True)
                squares = [s.reshape(len(having[0].correlations[name]), -1) for s in sums]
                done[key] = tuple(
                    correlation_of_all(list(same), [s[i] for s in squares]) for i, same in enumerate(matrices)
                )
            found[name] = done[key]
    return found


def _sum(a: ImatrixEntry, b: ImatrixEntry) -> ImatrixEntry:
    """Sums and counts of both; a single count stands for each matrix. ValueError, with the sizes, when they differ."""
    if a.sums.size != b.sums.size:
        raise ValueError(f"{b.sums.size} values, {a.sums.size}")
    if len(a.counts) != len(b.counts) and 1 not in (len(a.counts), len(b.counts)):
        raise ValueError(f"{len(b.counts)} matrices, {len(a.counts)}")
    with np.errstate(over="ignore"):  # sums that are too large are refused as infinite values in a file are
        return ImatrixEntry(a.sums + b.sums, a.counts + b.counts)
