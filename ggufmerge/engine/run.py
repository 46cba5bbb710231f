"""Plan to bytes: streams chunks of rows through a pool of threads; nothing of a tensor's size is ever allocated.

For each tensor the passes that its method asks for run first, then one pass that reads, merges, quantizes and writes.
Every result is independent of threads and chunk size: rows are independent of each other in codecs, statistics are
folded row by row, random masks depend on element numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.engine import provenance
from ggufmerge.engine.checks import check_inputs, check_space, output_files, watched
from ggufmerge.engine.encode import Figures, Scratch, TensorEncoder, warm_up
from ggufmerge.engine.memory import own_memory
from ggufmerge.engine.plan import Input, Plan, PlannedTensor, Rounding
from ggufmerge.engine.planner import Opened, header_of
from ggufmerge.engine.progress import Progress
from ggufmerge.engine.rates import Meter, Rates
from ggufmerge.engine.resolve import problem_of
from ggufmerge.engine.scheduler import Job, Stage, drive
from ggufmerge.engine.survey import WIDER, Finding, Sample, sample_runs, survey
from ggufmerge.engine.survey import warm_up as warm_up_survey
from ggufmerge.engine.survival import Survival, TypeSurvival, advice, by_type, total
from ggufmerge.engine.tensor_types import reference_types, types_in
from ggufmerge.engine.work import (
    TICKS,
    TensorWork,
    Work,
    digested,
    kernels_of,
    merge_kind,
    read_kind,
    work_of,
    write_kind,
)
from ggufmerge.errors import OutputError
from ggufmerge.files.journal import Move
from ggufmerge.files.output import Output
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.watch import Watch
from ggufmerge.kernels import is_prepared, note_prepared
from ggufmerge.methods import method as find_method
from ggufmerge.methods.api import run as merge_stack
from ggufmerge.methods.random import stream_key
from ggufmerge.methods.spec import Chunk, Pass, Passes
from ggufmerge.quants import codec
from ggufmerge.quants.importance import Imatrix
from ggufmerge.sources import Source, TensorReader
from ggufmerge.text import count, size
from ggufmerge.types import TensorType

DEFAULT_CHUNK = 1 << 18  # values; a chunk of each input and of the result stay in a core's cache
_DIGEST_STEP = 1 << 26  # bytes digested by one task


@dataclass(frozen=True)
class BuildReport:
    """What a build did. `output` is the file to open, `files` are all that were written: that one, or the shards of
    which it is the first. `notes`: decisions that only the weights could bring about, as (tensor, text).
    """

    output: Path
    nbytes: int
    seconds: float
    merged: int
    converted: int
    copied: int
    resumed: int
    sources: dict[str, str]  # file -> sha256
    errors: dict[str, float]  # tensor -> relative RMS error of writing it in its type, when measured
    survival: dict[str, Survival]  # tensor -> what is left of its change, of quantized tensors and when measured
    kept: tuple[TypeSurvival, ...] = ()  # the same for each quantized type, and what a wider one would keep
    notes: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    resumption: str = ""  # what became of the work of an interrupted build; empty when there was none
    file_type: str = ""
    parameters: int = 0
    source_bytes: int = 0  # size of the source files together

    def __repr__(self) -> str:
        made = (("merged", self.merged), ("converted", self.converted), ("copied", self.copied))
        what = ", ".join(f"{number} {verb}" for verb, number in made if number)
        facts = f"{self.file_type}, {count(self.parameters)} parameters, {size(self.nbytes)}; {what}; "
        warned = f"; {len(self.warnings)} warning{'s' * (len(self.warnings) > 1)}" if self.warnings else ""
        return f"<BuildReport {self.output}: {facts}{self.seconds:.1f} s{warned}>"


def run(
    plan: Plan,
    opened: Opened,
    output: str | os.PathLike[str] | Output,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    progress: Progress | None = None,
    measure: bool = False,
    split: SplitLimit | None = None,
) -> BuildReport:
    """Carry out a plan: `output` appears when it is complete and verified.

    output: a path, or the `Output` for it, which the caller has opened and taken up, and completes.
    split: write shards whose names begin with `output` (see `files.sharded`); they appear together.
    threads: None for all cores.  chunk: values of one input that a thread holds at a time (at least one row).
    measure: report the relative RMS error of writing each tensor in its type, and of single models with adapters what
    is left of each tensor's change, from all of its weights. Without it the latter is known from a sample of weights,
    and of quantized tensors only (`engine.survey`).
    A run that was interrupted, or stopped by an error of the machine, left its work beside the output and is continued
    by the same call. PlanError when the output is not allowed, OutputError when it cannot be written, GgufmergeError
    when merged weights are not finite or a source was changed while it was read.
    """
    started = time.monotonic()
    progress = progress or Progress()
    watch = watched(opened.sources)
    if isinstance(output, Output):
        owned: AbstractContextManager[Output] = nullcontext(output)
    else:
        files = output_files(plan, Path(output), split)
        check_inputs(files, opened.files())
        owned = Output(files, overwrite=overwrite)
    with owned as out:
        move = out.decision.move
        if out is not output:
            move = out.take_up(f"{identity(plan, opened, watch)}/{chunk}/{split}")
        if move in (Move.START, Move.RESUME):
            check_space(out.files, plan.nbytes)
            build = _Build(plan, opened, watch, out, progress, chunk, measure)
            try:
                build.execute(threads or os.cpu_count() or 1, split)
                progress.phase("forcing all of it to the disk")
                began = time.monotonic()
                out.seal(build.facts())
                build.meter.note("sync", build.writer.total_bytes, time.monotonic() - began)
                progress.measured(build.meter.sums)
            finally:
                progress.end()
        found = Facts.of(out)
        survival = {name: Survival(*sums) for name, sums in found.survival.items()}
        wider = {
            name: {of: Survival(*sums) for of, sums in by_file_type.items()}
            for name, by_file_type in found.wider.items()
        }
        kept = by_type(plan.tensors, survival, found.stochastic, wider)
        out.publish()
        if out is not output:
            out.complete()
    return BuildReport(
        output=out.path,
        nbytes=found.nbytes,
        seconds=time.monotonic() - started,
        merged=plan.count("merge"),
        converted=plan.count("convert"),
        copied=plan.count("copy"),
        resumed=build.resumed if move in (Move.START, Move.RESUME) else len(plan.tensors),
        sources=found.sources,
        errors=found.errors,
        survival=survival,
        kept=tuple(kept),
        notes=tuple((tensor, note) for tensor, note in found.notes),
        warnings=(*plan.warnings, *found.warnings, *advice(kept)),
        files=tuple(out.files),
        resumption=out.resumption,
        file_type=str(plan.file_type),
        parameters=plan.parameters,
        source_bytes=sum(source.nbytes for source in plan.sources),
    )


def foresee(plan: Plan, opened: Opened, tensors: Sequence[PlannedTensor]) -> list[TypeSurvival]:
    """What writing these tensors of a plan would leave of their changes, by type as in `BuildReport.kept`; nothing is
    written. A tensor is read as far as its method needs it to make a sample of its rows, and of a stack of experts the
    first.
    """
    build = _Build(plan, opened, Watch([], []), None, Progress(), DEFAULT_CHUNK, False)
    for tensor in tensors:
        inputs, encoder = opened.inputs(tensor), build._encoder(tensor)
        build.left[tensor.name] = 0  # nobody is told of this work
        if tensor.action == "convert":
            job = build._convert(tensor, inputs[0], encoder, [], lambda _: None)
        else:
            job = build._merge(tensor, inputs, encoder, 0, lambda _: None, TensorWork())
        for stage in job:
            if tensor.name in build.findings:
                break  # this stage would write
            for i in range(stage.count):
                stage.fold(stage.task(i))
        job.close()
    found = {name: total(f.survival for f in findings) for name, findings in build.findings.items()}
    stochastic = [name for name, findings in build.findings.items() if findings[0].rounding == "stochastic"]
    wider = {name: dict(findings[0].wider) for name, findings in build.findings.items()}
    return by_type(tensors, found, stochastic, wider)


@dataclass(frozen=True)
class Facts:
    """What a run found out, as its journal keeps it for the report of a run that goes on after everything was written.

    See `BuildReport`; `survival` has the sums of each tensor, `wider` the same for wider file types, `stochastic` the
    tensors that were rounded so, `warnings` those that only the run could give.
    """

    nbytes: int
    sources: dict[str, str]
    errors: dict[str, float]
    survival: dict[str, list[float]]
    wider: dict[str, dict[str, list[float]]]
    stochastic: list[str]
    notes: list[list[str]]
    warnings: list[str]

    @classmethod
    def of(cls, output: Output) -> Facts:
        """Those of a sealed output. OutputError when its journal has others."""
        try:
            return cls(**output.record.facts)
        except TypeError:
            raise OutputError(f"{output.journal_path}: was not written by this program: remove it") from None


def identity(plan: Plan, opened: Opened, watch: Watch) -> str:
    """A hash of all that the bytes of the result depend on, and of the state of its sources.

    What the plan says (recipe, options and version of the program among it), a fingerprint of each source and of the
    importance matrix, and, since a fingerprint reads too little to notice every change, sizes and times of the files.
    Where the files lie plays no part. What a journal belongs to depends on the chunks and the cutting into files, too.
    """
    text = json.dumps([replace(plan, folder="").to_json(), opened.fingerprints(), watch.stamps()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Build:
    """One build: the jobs that make each tensor, and what they share."""

    def __init__(
        self,
        plan: Plan,
        opened: Opened,
        watch: Watch,
        output: Output | None,
        progress: Progress,
        chunk: int,
        measure: bool,
    ) -> None:
        """output: None to write nothing (`foresee`)."""
        self.plan, self.opened, self.fingerprints = plan, opened, opened.fingerprints()
        self.sources, self.imatrix = opened.sources, opened.imatrix
        self.watch, self.progress = watch, progress
        if output is not None:
            self.output = output
        self.chunk, self.measure = chunk, measure
        self.figures: dict[str, Figures] = {}  # of tensors that were measured
        self.findings: dict[str, list[Finding]] = {}  # of tensors that were surveyed, one for each expert
        self.notes: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.digests: dict[Path, str] = {}
        self.resumed = 0
        self.scratch = Scratch()
        self.meter, self.rates = Meter(), Rates.load()
        self.work = Work()
        self.left: dict[str, int] = {}  # work that is not yet told of tensors under way

    def execute(self, threads: int, split: SplitLimit | None) -> None:
        """Make all tensors that an earlier run did not make, digest the sources and check the file."""
        self.progress.phase(f"reserving {size(self.plan.nbytes)} on the disk")
        self.writer = self.output.writer(*header_of(self.plan, self.opened), split)
        sizes = digested(self.plan, self.opened)
        paths = list(sizes)
        self.work = work_of(self.plan, self.opened, self.rates, chunk=self.chunk, measure=self.measure, digests=sizes)
        self.progress.begin(self.work.ticks, len(self.plan.tensors))
        done = self._finished_before() if self.writer.resumed else set()
        self.resumed = len(done)
        todo = [t for t in self.plan.tensors if t.name not in done]
        _warm_up(self.plan, self.sources, self.imatrix, self.meter, self.rates, self.progress)
        self.progress.phase("merging")
        self._measured(lambda: drive(self._jobs(todo, paths), threads), threads)
        self.progress.phase("verifying")
        self.warnings += self.watch.check()
        self.progress.warn(self.warnings)
        self.digests = {path: self.digests[path] for path in paths}  # not as the threads came to their ends
        for i, path in enumerate(paths):
            self.writer.patch(provenance.digest_key(i), self.digests[path])
        self.writer.verify()

    def _measured(self, work: Callable[[], None], threads: int) -> None:
        """Do the work, and note what it took beside what its threads have measured."""
        wall, processor = time.monotonic(), time.process_time()
        work()
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        kinds = ("read", "adapt", "merge", "pass", "write", "put", "copy", "digest", "survey")
        tasks = self.meter.sums.get("tasks")
        if tasks:
            self.meter.note("task", tasks.units, max(0.0, processor - self.meter.seconds(kinds)))
        # what other programs took of the processors says nothing of the next build
        used = min(threads, os.cpu_count() or 1)
        self.meter.note("waited", 1, self.meter.waited / threads)
        self.meter.note("stretch", processor / used, max(processor / used, wall - self.meter.waited / threads))
        own = own_memory(self.plan, self.opened, threads, self.chunk)
        if own is not None and not any(kind.startswith("compile ") for kind in self.meter.sums):
            self.meter.note("memory", 1, own)

    def facts(self) -> dict[str, Any]:
        """See `Facts`; in the order of the plan, not as the threads came to their ends."""
        order = {t.name: place for place, t in enumerate(self.plan.tensors)}
        findings = {name: self.findings[name] for name in order if name in self.findings}
        figures = {name: self.figures[name] for name in order if name in self.figures}
        survival = {name: total(f.survival for f in found) for name, found in findings.items()}
        wider = {
            name: {of: total(f.wider.get(of, f.survival) for f in found) for one in found for of in one.wider}
            for name, found in findings.items()
        }
        for t in self.plan.tensors:
            exact = self.figures.get(t.name)
            if exact and t.action == "convert" and self._is_adapted(t.inputs[0]):
                plain = survival[t.name].plain if t.name in survival else 0.0
                survival[t.name] = Survival(exact.kept, exact.change, exact.error, plain)
        facts = Facts(
            nbytes=self.writer.total_bytes,
            sources={str(path): digest for path, digest in self.digests.items()},
            errors={name: f.relative_error for name, f in figures.items()},
            survival={name: list(astuple(s)) for name, s in survival.items()},
            wider={name: {of: list(astuple(s)) for of, s in tried.items()} for name, tried in wider.items()},
            stochastic=[name for name, found in findings.items() if any(f.rounding == "stochastic" for f in found)],
            notes=sorted((list(note) for note in self.notes), key=lambda note: order.get(note[0], len(order))),
            warnings=self.warnings,
        )
        return asdict(facts)

    def _jobs(self, todo: Sequence[PlannedTensor], paths: Sequence[Path]) -> Iterator[Job]:
        # digests first: they take one thread a file, and at the end the others would wait for them
        for path in paths:
            yield self._digest(path)
        for tensor in todo:
            yield self._tensor(tensor)

    def _finished_before(self) -> set[str]:
        """Tensors whose bytes an earlier run has written and that still have its checksum."""
        done = set()
        there = self.output.record.done
        found = sum(t.nbytes for t in self.plan.tensors if t.name in there)
        self.progress.phase(f"checking {size(found)} that an earlier build has written")
        for tensor in self.plan.tensors:
            if (entry := there.get(tensor.name)) is not None:
                data, crc = self.writer.read(tensor.name), 0
                for start, stop in _steps(tensor, self.chunk):
                    row_bytes = tensor.type.row_bytes(tensor.n)
                    crc = _chain(crc, zlib.crc32(data[start * row_bytes : stop * row_bytes].data))
                if crc == entry.crc32 and self._recalls(tensor.name, entry.facts):
                    self.writer.mark_done(tensor.name)
                    done.add(tensor.name)
                    self.progress.taken_over(self.work.ticks_of(tensor.name), 1)
        return done

    def _recalls(self, tensor: str, facts: Mapping[str, Any]) -> bool:
        """Take over what an earlier run found out about a tensor; False when that makes no sense."""
        try:
            notes = [(tensor, str(note)) for note in facts.get("notes", ())]
            sums: Any = {name: float(value) for name, value in facts.get("figures", {}).items() if value is not None}
            figures = Figures(**sums)
            findings = [Finding.from_json(found) for found in facts.get("findings", ())]
        except (TypeError, ValueError, KeyError, AttributeError):
            return False
        self.notes += notes
        if facts.get("figures"):
            self.figures[tensor] = figures
        if findings:
            self.findings[tensor] = findings
        return True

    def _tensor(self, tensor: PlannedTensor) -> Job:
        """Make one tensor: the passes of its method, then the pass that writes it."""
        self.progress.tensor(tensor.name)
        inputs = self.opened.inputs(tensor)
        steps = _steps(tensor, self.chunk)
        written = _Written()
        encoder = self._encoder(tensor)
        work = self.work.tensors[tensor.name]
        self.left[tensor.name] = self.work.ticks_of(tensor.name)

        def fold(piece: _Written) -> None:
            written.add(piece)
            self._advance(tensor.name, work.last * piece.nbytes / tensor.nbytes)

        if not tensor.rows * tensor.n:
            pass  # no values, so there is nothing to merge or to write
        elif tensor.action == "copy":
            yield Stage(len(steps), lambda i: self._copy(tensor, inputs[0], *steps[i]), fold)
        elif tensor.action == "convert":
            yield from self._convert(tensor, inputs[0], encoder, steps, fold)
        else:
            for expert in range(tensor.experts):
                yield from self._merge(tensor, inputs, encoder, expert, fold, work)
        self.notes += [(tensor.name, note) for note in encoder.check(written.figures)]
        if self.measure:
            self.figures[tensor.name] = written.figures
        facts = {
            "figures": asdict(written.figures) if self.measure else {},
            "findings": [asdict(finding) for finding in self.findings.get(tensor.name, ())],
            "notes": [note for name, note in self.notes if name == tensor.name],
        }
        self.output.finished(tensor.name, written.checksum, facts)
        self.progress.advance(self.left.pop(tensor.name))
        self.progress.tensor_done(tensor.name)

    def _advance(self, tensor: str, seconds: float) -> None:
        """Tell of work on a tensor, of no more than was planned for it."""
        units = min(round(seconds * TICKS), self.left.get(tensor, 0))
        if not units:
            return
        self.left[tensor] -= units
        self.progress.advance(units)

    def _copy(self, tensor: PlannedTensor, source: TensorReader, start: int, stop: int) -> _Written:
        """Write stored rows as they are."""
        self.meter.note("tasks", 1, 0)
        with self.meter.measure(f"copy {tensor.type}", (stop - start) * tensor.type.row_bytes(tensor.n)):
            written = self._put(tensor, start, source.intact_rows(start, stop))
        self.meter.look_at_waiting()
        return written

    def _convert(
        self,
        tensor: PlannedTensor,
        source: TensorReader,
        encoder: TensorEncoder,
        steps: Sequence[tuple[int, int]],
        fold: Callable[[_Written], None],
    ) -> Job:
        """Write one input in another type, or with its adapters."""
        adapted = self._is_adapted(tensor.inputs[0])
        holds = source.holds(tensor.type, encoder.scales)

        def read(start: int, stop: int, wanted: Sequence[int] = ()) -> Sample:
            rows = self._read([source], start, stop)[0]
            base = self._without_adapters(source, start, stop) if adapted else None
            # weights that no adapter reaches and whose type stays keep their bytes
            stored = [(base, source.raw_rows(start, stop))] if base is not None and holds else []
            return Sample(start, rows, {} if base is None else {0: base}, stored)

        rounding: Rounding = "nearest"
        if adapted:
            rounding, _ = yield from self._surveyed(tensor, encoder, [source], read, 0, tensor.rows)

        def convert(i: int) -> _Written:
            return self._write(tensor, encoder, read(*steps[i]), 0, rounding)

        yield Stage(len(steps), convert, fold)

    def _merge(
        self,
        tensor: PlannedTensor,
        inputs: Sequence[TensorReader],
        encoder: TensorEncoder,
        expert: int,
        fold: Callable[[_Written], None],
        work: TensorWork,
    ) -> Job:
        """Merge one matrix of a tensor: all of it, or one expert of a stack."""
        method = find_method(tensor.method)
        problem = problem_of(tensor, self._keys(tensor, expert))
        first = expert * problem.shape[0]
        chunks = _chunks(problem.shape, self.chunk, tensor.rows // tensor.matrices)
        stored = [(i, source) for i, source in enumerate(inputs) if _stores(source, tensor, encoder.scales)]

        def read(chunk: Chunk) -> NDArray[np.float32]:
            x = self._read(inputs, first + chunk.row, first + chunk.row + chunk.rows)
            if tensor.offset:
                x -= np.float32(tensor.offset)
            return x

        sizes = problem.shape[1] * len(inputs)
        share = work.pass_ / max(1, tensor.rows)

        def passed(chunk: Chunk) -> None:
            self._advance(tensor.name, share * chunk.rows)

        def gather(current: Pass, chunk: Chunk) -> Any:
            x = read(chunk)
            self.meter.note(f"reads {tensor.method}", 0, chunk.rows * tensor.n)
            self.meter.note("tasks", 1, 0)
            with self.meter.measure(f"pass {tensor.method}", chunk.rows * sizes):
                partial = current.map(x, chunk)
            self.meter.look_at_waiting()
            return partial

        statistics = yield from _statistics(method.passes(problem), chunks, gather, passed)
        self.notes += [(tensor.name, note) for note in method.notes(problem, statistics)]

        def merged(chunk: Chunk, wanted: Sequence[int]) -> Sample:
            """The rows of a chunk, and of the inputs of these numbers what they would be without adapters."""
            out = self.scratch.array("out", (chunk.rows, tensor.n), np.float32)
            x, start = read(chunk), first + chunk.row
            stop = start + chunk.rows
            with self.meter.measure(merge_kind(tensor), chunk.rows * sizes):
                method.combine(x, problem, statistics, chunk, out)
            self.meter.note(f"reads {tensor.method}", chunk.rows * tensor.n, chunk.rows * tensor.n)
            same = [(x[i], source.raw_rows(start, stop)) for i, source in stored]
            bases = {}
            for i in wanted:
                source = inputs[i]
                if not self._is_adapted(tensor.inputs[i]):
                    bases[i] = x[i]
                    continue
                bases[i] = self._without_adapters(source, start, stop, i)
                if tensor.offset:
                    bases[i] -= np.float32(tensor.offset)
                if source.holds(tensor.type, encoder.scales):
                    same.append((bases[i], source.raw_rows(start, stop)))
            return Sample(start, out, bases, same)

        def sample(start: int, stop: int, wanted: Sequence[int]) -> Sample:
            row = start - first
            return merged(Chunk(0, row, stop - start, row * tensor.n), wanted)

        rounding, reference = yield from self._surveyed(tensor, encoder, inputs, sample, first, problem.shape[0])
        # blocks that no adapter reaches keep their bytes, which takes the base of an adapted input to see
        spared = tensor.keeps_type and self._is_adapted(tensor.inputs[reference])
        wanted = [reference] if rounding == "stochastic" or spared else []

        def task(i: int) -> _Written:
            return self._write(tensor, encoder, merged(chunks[i], wanted), reference, rounding)

        yield Stage(len(chunks), task, fold)

    def _write(
        self, tensor: PlannedTensor, encoder: TensorEncoder, part: Sample, reference: int, rounding: Rounding
    ) -> _Written:
        """Encode and write a piece of a tensor, whose reference of this number is what it is a change of."""
        self.meter.note("tasks", 1, 0)
        base = part.references.get(reference)
        kind = write_kind(tensor, self.imatrix, rounding=rounding, measure=self.measure)
        with self.meter.measure(kind, part.rows.size):
            raw, figures = encoder.encode(part.start, part.rows, stored=part.stored, base=base, rounding=rounding)
        with self.meter.measure("put", raw.nbytes):
            written = self._put(tensor, part.start, raw, figures)
        self.meter.look_at_waiting()
        return written

    @cached_property
    def _wider_types(self) -> dict[str, dict[str, TensorType]]:
        """The types of all tensors in the file types that may be proposed."""
        plan, donor = self.plan, self.sources[0].metadata
        return {file_type: types_in(file_type, plan.tensors, plan.metadata, donor) for file_type in WIDER}

    def _surveyed(
        self,
        tensor: PlannedTensor,
        encoder: TensorEncoder,
        inputs: Sequence[TensorReader],
        read: Callable[[int, int, Sequence[int]], Sample],
        first: int,
        rows: int,
    ) -> Generator[Stage, None, tuple[Rounding, int]]:
        """How rows [first, first + rows) of a tensor are rounded, and the number of the input whose change they are.

        read(start, stop, wanted): a run of rows, with the inputs of the numbers `wanted` as references.
        """
        if not tensor.type.is_quantized or any(source.gathered for source in inputs):
            return "nearest", 0
        types = reference_types(tensor, self.sources)
        # of several models that are one file with different adapters the first one's reference is that of all
        distinct = [i for i in types if not any(inputs[i].same_data(inputs[j]) for j in types if j < i)]
        runs = sample_runs(rows, tensor.n, tensor.rows // (tensor.matrices or 1))
        width = tensor.type.row_bytes(tensor.n)

        def wider() -> dict[str, TensorType]:
            types = {file_type: kinds[tensor.name] for file_type, kinds in self._wider_types.items()}
            return {file_type: kind for file_type, kind in types.items() if kind.row_bytes(tensor.n) > width}

        found: list[Finding] = []

        def task(i: int) -> Finding:
            with self.meter.measure(f"survey {tensor.type}", 1):
                found = look()
            self.meter.look_at_waiting()
            return found

        def look() -> Finding:
            samples = (read(first + start, first + stop, distinct).copy() for start, stop in runs)
            return survey(tensor, encoder, rows * tensor.n, samples, types, wider)

        yield Stage(1 if runs else 0, task, found.append)
        if not found:
            return "nearest", 0
        [finding] = found
        self.findings.setdefault(tensor.name, []).append(finding)
        return finding.rounding, finding.reference

    def _keys(self, tensor: PlannedTensor, expert: int) -> list[int]:
        """The random stream of each input that is not the base."""
        name = f"{tensor.name}#{expert}" if tensor.experts > 1 else tensor.name
        models = tensor.inputs[1:] if tensor.has_base else tensor.inputs
        return [int(stream_key(self.plan.seed, name, self.fingerprints[i.source])) for i in models]

    def _read(self, inputs: Sequence[TensorReader], start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of all inputs, float32 [inputs, rows, n], in the thread's own buffer."""
        x: NDArray[np.float32] = self.scratch.array("in", (len(inputs), stop - start, inputs[0].n), np.float32)
        for i, source in enumerate(inputs):
            # one base with several adapters is dequantized once
            twin = next((j for j in range(i) if inputs[j].same_data(source)), None)
            if twin is None:
                with self.meter.measure(read_kind(source), x[i].size):
                    source.dequantize(start, x[i])
            else:
                x[i] = x[twin]
        for i, source in enumerate(inputs):
            if source.rank and not source.gathered:
                with self.meter.measure("adapt", x[i].size * source.rank):
                    source.adapt(start, x[i])
            else:
                source.adapt(start, x[i])
        return x

    def _scales(self, tensor: PlannedTensor) -> NDArray[np.float32] | None:
        """What the values of a tensor are divided by before they are quantized, float32 [matrices]; None for 1."""
        return self.sources[tensor.scale.source].scales(tensor.scale.tensor) if tensor.scale else None

    def _is_adapted(self, given: Input) -> bool:
        """Whether adapters change an input."""
        return self.sources[given.source].changed_by_adapter(given.tensor)

    def _without_adapters(self, source: TensorReader, start: int, stop: int, number: int = 0) -> NDArray[np.float32]:
        """Rows [start, stop) as the file holds them, float32 [rows, n], in the thread's own buffer for this input."""
        base: NDArray[np.float32] = self.scratch.array(f"base {number}", (stop - start, source.n), np.float32)
        source.dequantize(start, base)
        return base

    def _weights(self, tensor: PlannedTensor) -> NDArray[np.float32] | None:
        """The importance of each column, float32 [matrices, n]; None without."""
        return self.imatrix.get(tensor.name, tensor.n, tensor.matrices) if self.imatrix else None

    def _encoder(self, tensor: PlannedTensor) -> TensorEncoder:
        """What writes a tensor; of copied ones it has nothing to write."""
        if tensor.action == "copy":
            return TensorEncoder(tensor, self.plan.seed, self.scratch)
        weights, scales = self._weights(tensor), self._scales(tensor)
        return TensorEncoder(tensor, self.plan.seed, self.scratch, weights=weights, scales=scales, measure=self.measure)

    def _put(
        self, tensor: PlannedTensor, start: int, raw: NDArray[np.uint8], figures: Figures | None = None
    ) -> _Written:
        self.writer.write(tensor.name, start * tensor.type.row_bytes(tensor.n), raw)
        return _Written(zlib.crc32(raw.data), raw.nbytes, figures or Figures())

    def _digest(self, path: Path) -> Job:
        """The sha256 of a source file, a piece at a time so that an interruption need not wait for the end.

        Of the file that was opened, which is the one that is merged.
        """
        digest, nbytes, told = hashlib.sha256(), self.watch.size(path), 0

        def task(i: int) -> int:
            start, stop = i * _DIGEST_STEP, min((i + 1) * _DIGEST_STEP, nbytes)
            with self.meter.measure("digest", stop - start):
                digest.update(self.watch.bytes(path, start, stop))
            self.meter.look_at_waiting()
            return stop

        def fold(stop: int) -> None:
            nonlocal told
            now = round(self.work.digests[path] * TICKS) * stop // nbytes
            self.progress.advance(now - told)
            told = now

        self.progress.phase(f"digest of {path.name}")
        yield Stage(-(-nbytes // _DIGEST_STEP), task, fold, ordered=True)
        self.digests[path] = digest.hexdigest()


@dataclass
class _Written:
    """A piece of a tensor that was written, or all of it so far: checksum, size, and what its encoding cost."""

    checksum: int = 0
    nbytes: int = 0
    figures: Figures = field(default_factory=Figures)

    def add(self, piece: _Written) -> None:
        """The next piece in order."""
        self.checksum = _chain(self.checksum, piece.checksum)
        self.nbytes += piece.nbytes
        self.figures.add(piece.figures)


def _steps(tensor: PlannedTensor, chunk: int) -> list[tuple[int, int]]:
    """The rows [start, stop) that are written at a time, the same for every run with this chunk size."""
    shape = (tensor.rows, tensor.n)
    return [(c.row, c.row + c.rows) for c in _chunks(shape, chunk, tensor.rows // (tensor.matrices or 1))]


def _chunks(shape: tuple[int, int], chunk: int, matrix: int) -> list[Chunk]:
    """Pieces of about `chunk` values, each of whole rows of one matrix; `matrix` is the number of rows of a matrix."""
    rows, n = shape
    if not rows * n:
        return []
    step = max(1, chunk // n)
    starts = [row for first in range(0, rows, matrix) for row in range(first, first + matrix, step)]
    ends = [min(row + step, row - row % matrix + matrix) for row in starts]
    return [Chunk(i, row, end - row, row * n) for i, (row, end) in enumerate(zip(starts, ends, strict=True))]


def _stores(source: TensorReader, tensor: PlannedTensor, scales: NDArray[np.float32] | None) -> bool:
    """Whether an input has the tensor's type, in units of these scales, and writing its values anew may round them."""
    return (tensor.type.is_quantized or tensor.offset != 0) and source.stores(tensor.type, scales)


def _chain(checksum: int, crc: int) -> int:
    """The checksum of a tensor from those of its pieces, in order."""
    return zlib.crc32(crc.to_bytes(4, "little"), checksum)


def _statistics(
    passes: Passes, chunks: Sequence[Chunk], gather: Callable[[Pass, Chunk], Any], passed: Callable[[Chunk], None]
) -> Generator[Stage, None, Any]:
    """Run the passes of a method as stages; returns what the method made of them. passed: is told of each chunk."""
    gathered: Any = None

    def stage(current: Pass) -> Stage:
        nonlocal gathered
        gathered = current.initial

        folded = iter(chunks)

        def fold(partial: Any) -> None:
            nonlocal gathered
            gathered = current.fold(gathered, partial)
            passed(next(folded))

        return Stage(len(chunks), lambda i: gather(current, chunks[i]), fold)

    try:
        current = next(passes)
        while True:
            yield stage(current)
            current = passes.send(gathered)
    except StopIteration as end:
        return end.value


def _warm_up(
    plan: Plan, sources: Sequence[Source], imatrix: Imatrix | None, meter: Meter, rates: Rates, progress: Progress
) -> None:
    """Compile (or load from numba's cache) the kernels that a plan needs, on a row of 256 values, in one thread.

    Without it all threads would start by waiting for the same compiler.
    """
    n = 256
    rows = np.sin(np.arange(n, dtype=np.float32)).reshape(1, n)
    merged: dict[str, list[PlannedTensor]] = {merge_kind(t): [] for t in plan.tensors if t.action == "merge"}
    for tensor in {
        (t.method, len(t.inputs), tuple(t.shared.items())): t for t in plan.tensors if t.action == "merge"
    }.values():
        merged[merge_kind(tensor)].append(tensor)

    def prepare(kind: str) -> None:
        word, _, rest = kind.partition(" ")
        name, _, how = rest.partition(" ")
        if word == "read":
            stored = TensorType.parse(name)
            codec(stored).dequantize(np.zeros((1, stored.row_bytes(n)), np.uint8), np.empty_like(rows))
        elif word == "write":
            warm_up(TensorType.parse(name), bool(how), rows)
        elif word == "survey":
            warm_up_survey(rows)
        elif word == "merge":
            for tensor in merged[kind]:
                _merge_once(tensor, rows)

    kernels = kernels_of(plan, sources, imatrix)
    new = [kind for kind in kernels if not is_prepared(kind)]
    if new:
        progress.compiling(new, sum(rates.of(f"compile {kind}") for kind in new))
    else:
        progress.phase("loading kernels")
    for kind in kernels:
        began = time.process_time()
        prepare(kind)
        meter.note(f"{'compile' if kind in new else 'load'} {kind}", 1, time.process_time() - began)
    note_prepared(new)


def _merge_once(tensor: PlannedTensor, rows: NDArray[np.float32]) -> None:
    """Merge a row of 256 values as a tensor is merged."""
    keys = range(len(tensor.inputs) - tensor.has_base)
    problem = replace(problem_of(replace(tensor, shape=(rows.size,), experts=1), list(keys)), shape=(1, rows.size))
    stack = np.stack([np.roll(rows, i) for i in range(len(tensor.inputs))])
    merge_stack(find_method(tensor.method), problem, stack)
