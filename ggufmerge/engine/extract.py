"""A LoRA adapter out of a fine-tune: the best low-rank approximation of its difference to the base, tensor by tensor.

The adapter is a GGUF file that llama.cpp applies at run time: for a tensor `W`, [out, in], the halves `W.lora_a`
[rank, in] and `W.lora_b` [out, rank], and `token_embd.weight` flipped (`sources.lora`). alpha is the rank, so that the
factor alpha / rank is 1 at strength 1.

Source of the idea: mergekit-extract-lora; of the file: llama.cpp's `convert_lora_to_gguf.py`.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufmerge import keys
from ggufmerge.architectures.stacks import layer_of
from ggufmerge.engine.low_rank import PASSES, LowRank, low_rank
from ggufmerge.errors import GgufmergeError, PlanError, nearest
from ggufmerge.files import MetadataEditor, TensorInfo, facts
from ggufmerge.files.journal import Move
from ggufmerge.files.output import Output, Writer
from ggufmerge.files.watch import Watch
from ggufmerge.formats.layers import main_layer_count
from ggufmerge.formats.stored import DescribedTensor
from ggufmerge.keys import EMBEDDING, HEAD
from ggufmerge.methods.chunks import chunks_of
from ggufmerge.methods.random import stream_key
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import check_found
from ggufmerge.planning import header, provenance
from ggufmerge.planning.checks import check_architectures, check_inputs, check_space
from ggufmerge.planning.opened import watched
from ggufmerge.planning.tables import TABLES
from ggufmerge.quants import codec
from ggufmerge.quants.magnitude import magnitude
from ggufmerge.recipe import ModelReference
from ggufmerge.recipe.settings import matches, matches_any
from ggufmerge.running.progress import Progress
from ggufmerge.running.scheduler import Job, drive
from ggufmerge.sources import Source, TensorReader
from ggufmerge.sources.damage import place
from ggufmerge.sources.layouts import to_layout_of
from ggufmerge.sources.tying import is_tied
from ggufmerge.text import first_few
from ggufmerge.types import FileType, TensorType

_COMPARED = 1 << 22  # bytes compared at a time
_TOO_LARGE = 1e12  # differences from here on: their squares, summed over a tensor, would leave float32
# two-dimensional weights that llama.cpp does not multiply with, and so never applies adapters to
_NOT_MULTIPLIED = ("*conv*", "*attn_rel_b.weight", "*.ssm_a", "*.ssm_d", "*.time_mix_*")


@dataclass(frozen=True)
class PlannedPair:
    """The two halves that one tensor of the base gets. shape: of that tensor."""

    name: str
    shape: tuple[int, ...]
    rank: int
    type: TensorType

    @property
    def flipped(self) -> bool:
        return self.name == EMBEDDING

    @property
    def matrices(self) -> int:
        """Number of matrices stacked in the tensor (experts); each gets a pair of its own."""
        return math.prod(self.shape[:-2])

    @property
    def halves(self) -> tuple[TensorInfo, TensorInfo]:
        """lora_a and lora_b as the file holds them."""
        *stack, rows, n = self.shape
        a = (rows, self.rank) if self.flipped else (*stack, self.rank, n)
        b = (n, self.rank) if self.flipped else (*stack, rows, self.rank)
        return TensorInfo(f"{self.name}.lora_a", a, self.type), TensorInfo(f"{self.name}.lora_b", b, self.type)


@dataclass(frozen=True)
class ExtractPlan:
    """What an adapter will hold. left_out: tensors that differ but get no halves, with the reason.

    unchanged: number of tensors whose weights are the base's.
    """

    tune: str
    base: str
    rank: int
    type: TensorType
    pairs: tuple[PlannedPair, ...]
    left_out: dict[str, str]
    unchanged: int
    warnings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the adapter's tensors, without padding."""
        return sum(half.nbytes for pair in self.pairs for half in pair.halves)


@dataclass(frozen=True)
class Extracted:
    """What became of a tensor, as sums of squares: of the base's weights, of the change, of what the adapter holds."""

    base: float
    change: float
    captured: float

    @property
    def share(self) -> float:
        """Part of the change's energy that the adapter holds; 1 for a change of nothing."""
        return min(1.0, self.captured / self.change) if self.change else 1.0

    @property
    def relative_change(self) -> float:
        """Size of the change relative to the base's weights (ratio of root mean squares)."""
        return math.sqrt(self.change / self.base) if self.base else 0.0


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did; `tensors` by the name of the base's tensor."""

    output: Path
    nbytes: int
    seconds: float
    tensors: dict[str, Extracted]


def extract_lora(
    tune: ModelReference | str | os.PathLike[str],
    base: ModelReference | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    rank: int = 16,
    out_type: TensorType | str = TensorType.F32,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the difference of `tune` to `base` as a LoRA adapter, the GGUF file `output`.

    The arguments and errors are those of `plan_extract` and `extract`.
    """
    plan, sources = plan_extract(
        tune, base, rank=rank, out_type=out_type, include=include, exclude=exclude, embeddings=embeddings
    )
    try:
        return extract(plan, sources, output, overwrite=overwrite, threads=threads, progress=progress)
    finally:
        for source in sources:
            source.close()


def total(extracted: Sequence[Extracted]) -> Extracted:
    """Of several tensors together."""
    return Extracted(
        sum(e.base for e in extracted), sum(e.change for e in extracted), sum(e.captured for e in extracted)
    )


def plan_extract(
    tune: ModelReference | str | os.PathLike[str],
    base: ModelReference | str | os.PathLike[str],
    *,
    rank: int = 16,
    out_type: TensorType | str = TensorType.F32,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
) -> tuple[ExtractPlan, tuple[Source, Source]]:
    """What to extract from `tune`, a fine-tune of `base`, and both, opened.

    rank: of the halves, less for a tensor with a smaller side.  out_type: F32, F16 or BF16.
    include, exclude: filters as in recipes; with `include` only tensors that one of them matches are taken.
    embeddings: take the token embedding too.
    By default that is every matrix of the blocks and the output head. Headers are read, and of tensors with the same
    type in both files as many bytes as it takes to find a difference. GgufmergeError says what does not fit.
    """
    kind = TensorType.parse(str(out_type))
    if not kind.is_float:
        raise GgufmergeError(f"an adapter is written as F32, F16 or BF16, not {kind}: llama.cpp's own tools refuse it")
    if rank < 1:
        raise GgufmergeError(f"the rank is a whole number of at least 1, not {rank}")
    models = _reference(tune), _reference(base)
    check_found(("", path) for reference in models for path in reference.paths)
    with ExitStack() as on_failure:
        opened_tune = open_source(models[0])
        on_failure.callback(opened_tune.close)
        opened_base = open_source(models[1])
        on_failure.callback(opened_base.close)
        sources = opened_tune, opened_base
        to_layout_of(opened_tune, opened_base)  # the adapter is for the tensors of the base
        check_architectures(sources)
        _check_layers(*sources)
        tied = is_tied(opened_base.file)
        for source, other in (sources, sources[::-1]):
            if HEAD in other.tensors and is_tied(source.file):
                source.part()
        plan = _Selection(*sources, rank, kind, include, exclude, embeddings, tied).plan()
        misfits = [line for source in sources for line in source.misfits()]
        on_failure.pop_all()
    return replace(plan, warnings=(*plan.warnings, *misfits)), sources


def _check_layers(tune: Source, base: Source) -> None:
    """PlanError when the models have not as many layers: then layers of one number are not of one origin."""
    counts = main_layer_count(tune.file), main_layer_count(base.file)
    if counts[0] != counts[1]:
        raise PlanError(
            f"{tune.label} has {counts[0]} layers and {base.label} {counts[1]}, so neither was tuned from the other, "
            "and an adapter can add no layer; give the model that it was tuned from with --base"
        )


def extract(
    plan: ExtractPlan,
    sources: tuple[Source, Source],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ExtractReport:
    """Carry out a plan: `output`, a GGUF adapter, appears when it is complete.

    Each tensor is gone through `PASSES` times, a few rows at a time; memory holds its factors. threads: None for all
    cores; the result does not depend on it. PlanError when the output is not allowed, OutputError when it cannot be
    written, GgufmergeError when weights are not finite or a model was changed while it was read.
    """
    started = time.monotonic()
    output, progress = Path(output), progress or Progress()
    infos = [half for pair in plan.pairs for half in pair.halves]
    watch = watched(sources)
    check_inputs([output], watch.paths)
    with Output([output], overwrite=overwrite) as out:
        if out.take_up(_identity(plan, sources, watch)) in (Move.START, Move.RESUME):
            check_space([output], plan.nbytes)
            done: dict[str, Extracted] = {}
            writer = out.writer(_metadata(plan, sources), infos)
            progress.begin(4 * PASSES * sum(math.prod(p.shape) for p in plan.pairs), len(plan.pairs))
            progress.phase("extracting")
            try:
                drive((_job(plan, pair, sources, writer, progress, done) for pair in plan.pairs), threads or _cores())
                progress.warn(watch.check())
                writer.verify()
                out.seal({pair.name: asdict(done[pair.name]) for pair in plan.pairs})
            finally:
                progress.end()
        tensors = {name: Extracted(**sums) for name, sums in out.record.facts.items()}
        out.publish()
        out.complete()
    return ExtractReport(output, output.stat().st_size, time.monotonic() - started, tensors)


def _identity(plan: ExtractPlan, sources: Sequence[Source], watch: Watch) -> str:
    """A hash of all that the adapter depends on, and of the state of the models."""
    text = repr((version("ggufmerge"), plan, [source.fingerprint() for source in sources], watch.stamps()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _reference(model: ModelReference | str | os.PathLike[str]) -> ModelReference:
    """A model as the caller means it: a path that exists, though it has a plus sign, is no reference."""
    return model if isinstance(model, ModelReference) else ModelReference.from_argument(model)


class _Selection:
    """Decides for each tensor of the base whether it gets halves."""

    def __init__(
        self,
        tune: Source,
        base: Source,
        rank: int,
        kind: TensorType,
        include: Sequence[str],
        exclude: Sequence[str],
        embeddings: bool,
        tied: bool,
    ) -> None:
        """tied: whether the base's file has one matrix for embedding and head; the rest as in `plan_extract`."""
        self.tied = tied
        self.tune, self.base, self.rank, self.kind = tune, base, rank, kind
        self.include, self.exclude, self.embeddings = include, exclude, embeddings

    def plan(self) -> ExtractPlan:
        self._check_filters()
        pairs, left_out, unchanged = [], dict[str, str](), 0
        for name, tensor in self.base.tensors.items():
            if self._is_same(name, tensor):
                unchanged += 1
            elif reason := self._reason_against(name, tensor):
                left_out[name] = reason
            else:
                pairs.append(PlannedPair(name, tensor.shape, min(self.rank, *tensor.shape[-2:]), self.kind))
        if not pairs:
            raise PlanError(
                f"{self.tune.label}: no tensor that an adapter could change differs from {self.base.label}; "
                + ("take others in with --include" if left_out else "it is the same model")
            )
        return ExtractPlan(
            tune=self.tune.reference,
            base=self.base.reference,
            rank=self.rank,
            type=self.kind,
            pairs=tuple(pairs),
            left_out=left_out,
            unchanged=unchanged,
            warnings=tuple(self._warnings(pairs, left_out)),
        )

    def _check_filters(self) -> None:
        for pattern in (*self.include, *self.exclude):
            if not any(matches(pattern, name, self.base.file.architecture) for name in self.base.tensors):
                raise PlanError(f'the filter "{pattern}" matches no tensor: {nearest(pattern, self.base.tensors)}')

    def _is_same(self, name: str, tensor: DescribedTensor) -> bool:
        """Whether both models hold the same weights; stops reading at the first difference."""
        other = self.tune.tensors.get(name)
        if other is None or other.shape != tensor.shape:
            return False
        if 0 in tensor.shape:
            return True  # there is nothing that could differ
        sources = (self.tune, self.base)
        plain = not any(s.changed_by_adapter(name) or s.scales(name) is not None for s in sources)
        if other.type == tensor.type and plain:
            a, b = (s.file.tensors[name] for s in sources)
            step = max(1, _COMPARED // tensor.type.row_bytes(tensor.n))
            spans = ((row, min(row + step, a.rows)) for row in range(0, a.rows, step))
            return all(np.array_equal(a.raw_rows(*span), b.raw_rows(*span)) for span in spans)
        if not all(t.type.is_quantized or t.type.is_float for t in (tensor, other)):
            return False
        readers = [s.open_tensor(name) for s in sources]
        for chunk in chunks_of(tensor.rows, tensor.n, _COMPARED // 4):
            x, y = np.empty((2, chunk.rows, tensor.n), np.float32)
            for reader, out in zip(readers, (x, y), strict=True):
                reader.read(chunk.row, out)
            if not np.array_equal(x, y):
                return False
        return True

    def _reason_against(self, name: str, tensor: DescribedTensor) -> str:
        """Why a tensor gets no halves though it differs; empty when it gets them."""
        other = self.tune.tensors.get(name)
        if self.include and not matches_any(self.include, name, self.base.file.architecture):
            return "not included"
        if matches_any(self.exclude, name, self.base.file.architecture):
            return "excluded"
        if other is None:
            return f"{self.tune.label} does not have it"
        if len(tensor.shape) not in (2, 3):
            return "not a matrix"
        if name == EMBEDDING and not self.embeddings:
            return "the embedding, taken with --embeddings"
        known = layer_of(name) is not None or name in (HEAD, EMBEDDING)
        if not known or not name.endswith(".weight") or any(fnmatchcase(name, p) for p in _NOT_MULTIPLIED):
            return "llama.cpp applies no adapter to it"
        if other.shape != tensor.shape:
            return f"shape {list(other.shape)} instead of {list(tensor.shape)}"
        if not all(t.type.is_quantized or t.type.is_float for t in (tensor, other)):
            return "not a matrix of weights"
        return ""

    def _warnings(self, pairs: Sequence[PlannedPair], left_out: dict[str, str]) -> list[str]:
        warnings = [*self.tune.warnings, *self.base.warnings]
        for reason, names in _by_reason(left_out).items():
            if reason not in ("not included", "excluded"):
                warnings.append(f"{first_few(names, 1)} differ but are left out: {reason}")
        added = [n for n in self.tune.tensors if n not in self.base.tensors and n not in TABLES]
        if added and not self.include:
            warnings.append(
                f"{self.base.label} has no {first_few(added, 1)} that {self.tune.label} has: an adapter cannot add that"
            )
        coarse = {
            str(source.tensors[p.name].type)
            for source in (self.tune, self.base)
            for p in pairs
            if source.tensors[p.name].type.is_quantized
        }
        if coarse:
            warnings.append(
                f"the difference contains the rounding of quantized weights ({', '.join(sorted(coarse))}), which no "
                "low rank captures; extract from F16 or F32 files if there are any"
            )
        if self.tied and not {p.name for p in pairs}.isdisjoint((EMBEDDING, HEAD)):
            warnings.append(
                "the output head is tied to the embedding: llama.cpp cannot apply this adapter, bake and merges can"
            )
        return warnings


def _by_reason(left_out: dict[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        grouped.setdefault(reason, []).append(name)
    return grouped


def _metadata(plan: ExtractPlan, sources: tuple[Source, Source]) -> MetadataEditor:
    tune, base = sources
    editor = MetadataEditor()
    editor.set(keys.ARCHITECTURE, base.file.architecture)
    editor.set(keys.TYPE, "adapter")
    editor.set(keys.ADAPTER_TYPE, "lora")
    editor.set(keys.LORA_ALPHA, float(plan.rank))
    if all(is_tied(source.file) for source in sources) and any(pair.name == EMBEDDING for pair in plan.pairs):
        editor.set(keys.TIED_CHANGE, True)
    editor.set(keys.NAME, f"{tune.name} LoRA rank {plan.rank}")
    licence = facts.licence(tune.file)
    if licence is not None:
        editor.set(keys.LICENSE, licence)
    editor.set(keys.BASE_MODEL_COUNT, 1)
    editor.set(keys.base_model(0, "name"), base.name)
    editor.set(keys.FILE_TYPE, FileType.parse(str(plan.type)).id)
    made = provenance.settings(file_type=str(plan.type)) | provenance.files(sources) | provenance.lineage(sources)
    return header.apply(made, editor)


def _job(
    plan: ExtractPlan,
    pair: PlannedPair,
    sources: tuple[Source, Source],
    writer: Writer,
    progress: Progress,
    done: dict[str, Extracted],
) -> Job:
    """Factor the difference of one tensor, matrix by matrix, and write its halves."""
    progress.tensor(pair.name)
    tune, base = (source.open_tensor(pair.name) for source in sources)
    rows, n = pair.shape[-2:]
    found = Extracted(0.0, 0.0, 0.0)
    for matrix in range(pair.matrices):
        first = matrix * rows
        squares: dict[int, float] = {}  # of the base's rows, by the first row of a chunk

        read = partial(_read_difference, pair, (tune, base), first, squares)
        key = int(stream_key(0, f"{pair.name}#{matrix}", "extract-lora"))
        factors = yield from low_rank(rows, n, pair.rank, read, key, lambda values: progress.advance(4 * values))
        _write(plan, pair, matrix, factors, writer)
        base_energy = math.fsum(squares.values())
        found = total([found, Extracted(base_energy, factors.energy, factors.captured)])
    done[pair.name] = found
    progress.tensor_done(pair.name)


def _read_difference(
    pair: PlannedPair,
    models: tuple[TensorReader, TensorReader],
    first: int,
    squares: dict[int, float],
    start: int,
    out: NDArray[np.float32],
) -> None:
    """Fill `out` with the difference of the rows from `first` + `start` on, and note the base's energy there."""
    tune, base = models
    old = np.empty_like(out)
    tune.read(first + start, out)
    base.read(first + start, old)
    squares[start] = float(np.square(old, dtype=np.float64).sum())
    np.subtract(out, old, out=out)
    if not magnitude(out) < _TOO_LARGE:
        row, column = divmod(int(np.abs(out).argmax()), out.shape[1])
        raise GgufmergeError(
            f"{pair.name}: the difference at {place(pair.shape, first + start + row, column)} is "
            f"{out[row, column]:.3g}, too large for products of float32; look whether a model is damaged, or "
            "leave the tensor out with --exclude"
        )


def _write(plan: ExtractPlan, pair: PlannedPair, matrix: int, factors: LowRank, writer: Writer) -> None:
    """Write the halves of one matrix. llama.cpp scales tensors of a smaller rank by alpha / that rank: undone here."""
    left = factors.left * np.float32(pair.rank / plan.rank)
    values = (left, factors.right.T) if pair.flipped else (factors.right, left)
    for half, x in zip(pair.halves, values, strict=True):
        raw = np.empty((len(x), half.row_bytes), np.uint8)
        codec(half.type).encode(np.ascontiguousarray(x), raw, None)
        if codec(half.type).damaged(raw) >= 0:
            raise GgufmergeError(
                f"{half.name}: {half.type} cannot hold its values, up to {np.abs(x).max():.3g}; write the adapter as "
                f"F32 (--type F32), or leave the tensor out (--exclude {pair.name})"
            )
        writer.write(half.name, matrix * raw.nbytes, raw)


def _cores() -> int:
    return os.cpu_count() or 1
