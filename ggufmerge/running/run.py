"""Plan to bytes: streams chunks of rows through a pool of threads; nothing of a tensor's size is ever allocated.

What is to be done is data (`running.tasks`), done by a worker (`running.worker`); here it is handed to threads, and
what comes of it goes into the output and its journal. Every result is independent of threads and chunk size: rows are
independent of each other in codecs, statistics are folded row by row, random masks depend on element numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.files.journal import Move
from ggufmerge.files.output import Output
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.watch import Watch
from ggufmerge.planning import provenance
from ggufmerge.planning.checks import check_inputs, check_space, output_files
from ggufmerge.planning.opened import Opened, header_of, watched
from ggufmerge.planning.plan import Opening, Plan, PlannedTensor
from ggufmerge.planning.survival import TypeSurvival, advice, by_type, total
from ggufmerge.planning.tensor_types import size_in
from ggufmerge.running.effort import TICKS, Work, digested, work_of
from ggufmerge.running.encode import Figures
from ggufmerge.running.making import Batch, Making, joined
from ggufmerge.running.memory import own_memory
from ggufmerge.running.progress import Progress
from ggufmerge.running.rates import Meter, Rates
from ggufmerge.running.report import BuildReport, Facts
from ggufmerge.running.scheduler import Job, Step, drive, most_active
from ggufmerge.running.signal import Heeded
from ggufmerge.running.survey import Finding, wider_types
from ggufmerge.running.tasks import written_at_a_time
from ggufmerge.running.warm_up import warm_up
from ggufmerge.running.worker import Worker
from ggufmerge.text import size

__all__ = ["DEFAULT_CHUNK", "BuildReport", "foresee", "identity", "run"]

DEFAULT_CHUNK = 1 << 18  # values; a chunk of each input and of the result stay in a core's cache
_DIGEST_STEP = 1 << 26  # bytes digested by one task


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
    and of quantized tensors only (`running.survey`).
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
            build = _Build(plan, opened, watch, out, progress, chunk, measure, threads or os.cpu_count() or 1)
            try:
                build.execute(split)
                progress.phase("forcing all of it to the disk")
                began = time.monotonic()
                out.seal(asdict(build.facts()))
                build.meter.note("sync", build.writer.total_bytes, time.monotonic() - began)
                progress.measured(build.meter.sums)
            finally:
                progress.end()
        found = Facts.of(out)
        kept = found.kept(plan.tensors, _wider_sizes(plan, opened, found.wider))
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
        survival=found.survivals(),
        kept=tuple(kept),
        notes=tuple((tensor, note) for tensor, note in found.notes),
        heeded=found.heard(),
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
    worker = Worker(plan, opened)
    findings: dict[str, list[Finding]] = {}
    for tensor in tensors:
        making = Making(worker, tensor, DEFAULT_CHUNK)
        for batch in making.prepare(0):
            for task in batch.tasks:
                batch.fold(worker.execute(task, batch.known))
        worker.release(tensor.name)
        if making.findings:
            findings[tensor.name] = making.findings
    found = {name: total(f.survival for f in parts) for name, parts in findings.items()}
    stochastic = [name for name, parts in findings.items() if parts[0].rounding == "stochastic"]
    wider = {name: dict(parts[0].wider) for name, parts in findings.items()}
    return by_type(tensors, found, stochastic, wider, _wider_sizes(plan, opened, wider))


def _wider_sizes(plan: Plan, opened: Opened, wider: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """About how large the file would be in wider types; of none if none was tried for a tensor in `wider`."""
    if not any(wider.values()):
        return {}
    return {file_type: size_in(types, plan.tensors) for file_type, types in wider_types(plan, opened).items()}


def identity(plan: Plan, opened: Opened, watch: Watch) -> str:
    """A hash of all that the bytes of the result depend on, and of the state of its sources.

    What the plan says (recipe, settings and version of the program among it), a fingerprint of each source and of the
    importance matrix, and, since a fingerprint reads too little to notice every change, sizes and times of the files.
    Where the files lie plays no part. What a journal belongs to depends on the chunks and the cutting into files, too.
    """
    text = json.dumps(
        [replace(plan, folder="", opening=Opening()).to_json(), opened.fingerprints(), watch.stamps()], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


class _Build:
    """One build, seen from the owner of the output: the jobs that make each tensor, and what is known of them so far.

    The work itself is that of a `Worker`, whose tasks run in threads; results are folded here, in order.
    """

    def __init__(
        self,
        plan: Plan,
        opened: Opened,
        watch: Watch,
        output: Output,
        progress: Progress,
        chunk: int,
        measure: bool,
        threads: int,
    ) -> None:
        self.plan, self.opened, self.watch = plan, opened, watch
        self.output, self.progress = output, progress
        self.chunk, self.measure, self.threads = chunk, measure, threads
        self.figures: dict[str, Figures] = {}  # of tensors that were measured
        self.findings: dict[str, list[Finding]] = {}  # of tensors that were surveyed, one for each expert
        self.heeded: dict[str, list[Heeded]] = {}  # of tensors whose method made something of rounding errors
        self.notes: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.digests: dict[Path, str] = {}
        self.resumed = 0
        self.meter, self.rates = Meter(), Rates.load()
        self.worker = Worker(
            plan, opened, put=self._put, meter=self.meter, measure=measure, keep=most_active(threads) + 1
        )
        self.work = Work()
        self.left: dict[str, int] = {}  # work that is not yet told of tensors under way

    def execute(self, split: SplitLimit | None) -> None:
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
        warm_up(self.plan, self.opened, self.meter, self.rates, self.progress)
        self.progress.phase("merging")
        self._measured(lambda: drive(self._jobs(todo, paths), self.threads))
        self.progress.phase("verifying")
        self.warnings += self.watch.check()
        self.progress.warn(self.warnings)
        self.digests = {path: self.digests[path] for path in paths}  # not as the threads came to their ends
        for i, path in enumerate(paths):
            self.writer.patch(provenance.digest_key(i), self.digests[path])
        self.writer.verify()

    def _measured(self, work: Callable[[], None]) -> None:
        """Do the work, and note what it took beside what its threads have measured."""
        threads = self.threads
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

    def facts(self) -> Facts:
        """What was found out."""
        return Facts.gathered(
            self.plan.tensors,
            nbytes=self.writer.total_bytes,
            sources=self.digests,
            figures=self.figures,
            findings=self.findings,
            adapted=self._is_adapted,
            heeded=self.heeded,
            notes=self.notes,
            warnings=self.warnings,
        )

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
                for rows in written_at_a_time(tensor, self.chunk):
                    row_bytes = tensor.type.row_bytes(tensor.n)
                    crc = joined(crc, zlib.crc32(data[rows.row * row_bytes : rows.end * row_bytes].data))
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
            heeded = [Heeded.from_json(found) for found in facts.get("heeded", ())]
        except (TypeError, ValueError, KeyError, AttributeError):
            return False
        self.notes += notes
        if facts.get("figures"):
            self.figures[tensor] = figures
        if findings:
            self.findings[tensor] = findings
        if heeded:
            self.heeded[tensor] = heeded
        return True

    def _tensor(self, tensor: PlannedTensor) -> Job:
        """Make one tensor."""
        self.progress.tensor(tensor.name)
        work = self.work.tensors[tensor.name]
        self.left[tensor.name] = self.work.ticks_of(tensor.name)
        share = work.pass_ / max(1, tensor.rows)
        making = Making(
            self.worker,
            tensor,
            self.chunk,
            passed=lambda chunk: self._advance(tensor.name, share * chunk.rows),
            written=lambda piece: self._advance(tensor.name, work.last * piece.nbytes / tensor.nbytes),
        )
        for batch in making.batches():
            yield Step(len(batch.tasks), partial(self._execute, batch), batch.fold)
        self.worker.release(tensor.name)
        self.notes += [(tensor.name, note) for note in making.notes]
        if making.findings:
            self.findings[tensor.name] = making.findings
        if heeded := making.heeded:
            self.heeded[tensor.name] = heeded
        if self.measure:
            self.figures[tensor.name] = making.figures
        facts = {
            "figures": asdict(making.figures) if self.measure else {},
            "findings": [asdict(finding) for finding in making.findings],
            "heeded": [asdict(one) for one in heeded],
            "notes": making.notes,
        }
        self.output.finished(tensor.name, making.checksum, facts)
        self.progress.advance(self.left.pop(tensor.name))
        self.progress.tensor_done(tensor.name)

    def _execute(self, batch: Batch, i: int) -> Any:
        return self.worker.execute(batch.tasks[i], batch.known)

    def _put(self, tensor: PlannedTensor, start: int, raw: NDArray[np.uint8]) -> None:
        self.writer.write(tensor.name, start * tensor.type.row_bytes(tensor.n), raw)

    def _is_adapted(self, tensor: PlannedTensor) -> bool:
        """Whether adapters change the first input of a tensor."""
        first = tensor.inputs[0]
        return self.opened.sources[first.source].changed_by_adapter(first.tensor)

    def _advance(self, tensor: str, seconds: float) -> None:
        """Tell of work on a tensor, of no more than was planned for it."""
        units = min(round(seconds * TICKS), self.left.get(tensor, 0))
        if not units:
            return
        self.left[tensor] -= units
        self.progress.advance(units)

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
        yield Step(-(-nbytes // _DIGEST_STEP), task, fold, ordered=True)
        self.digests[path] = digest.hexdigest()
