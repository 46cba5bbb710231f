"""What a build will cost and what prevents it, before it begins: size, time, memory, disk, what is there.

The size is that of the file, to the byte: its header is made as the build makes it. Time and memory come from the rates
that builds on this machine have measured (`running.rates`); what was never measured is a guess, and said to be one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ggufmerge.engine.documents import Documents
from ggufmerge.engine.trial import Trial, try_out
from ggufmerge.engine.worries import worries_of
from ggufmerge.errors import GgufmergeError, OutputError
from ggufmerge.files.journal import Move, Seen, State, decide
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.shards import SplitKeys
from ggufmerge.files.unfinished import Unfinished, look
from ggufmerge.files.writer import Layout, check_place, exists, partial_path, seal_of
from ggufmerge.kernels import is_prepared
from ggufmerge.planning.checks import check_space, check_targets, output_files
from ggufmerge.planning.opened import Opened, header_of
from ggufmerge.planning.plan import Plan
from ggufmerge.running.effort import digested, finish_kind, kernels_of, work_of
from ggufmerge.running.memory import buffers, mapped, total_memory
from ggufmerge.running.rates import Rates
from ggufmerge.text import size

_END = 0.3  # of the time that the program takes to start: until it is gone, which it cannot measure itself
_MATTERS = 0.1  # share of the time; what is guessed below it is not told


@dataclass(frozen=True)
class Forecast:
    """What a build will cost. sizes: bytes of each file, in order.  between: bytes of models between the documents of a
    recipe, which are there while it runs.

    seconds: of the whole command, but for `compiling`, the seconds that kernels take which were never used here.
    processor: the processor time of all threads in it.
    guessed: kinds of work that were never measured here and that matter.  threads: that the time is for.
    own, mapped: bytes of memory that it needs, and of the models' files that the system keeps as long as there is room.
    busy: how many times as long it takes if other programs go on as in the last minute; 1 on an idle machine.
    folder: where the files go, with `free` bytes.  there: what is there already, in words.
    worries: what in the plan is probably not meant, and what to do.
    trial: what would be left of the changes, None where that was not tried out.
    """

    sizes: tuple[int, ...]
    between: int
    seconds: float
    processor: float
    compiling: float
    guessed: tuple[str, ...]
    threads: int
    busy: float
    own: int
    mapped: int
    folder: str
    free: int | None
    there: tuple[str, ...]
    worries: tuple[str, ...]
    trial: Trial | None

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(self.sizes)

    def to_json(self) -> dict[str, Any]:
        return {"nbytes": self.nbytes, **asdict(replace(self, trial=None))}


def forecast(
    documents: Documents,
    output: Path | None,
    *,
    threads: int | None = None,
    chunk: int,
    split: SplitLimit | None = None,
    measure: bool = False,
    rates: Rates | None = None,
    try_changes: bool = False,
) -> Forecast:
    """Of a planned recipe. output: where it is to go; None for a place that is not known.

    try_changes: find out what would be left of the changes of a recipe of one document, if that takes no more than two
    seconds.  The rest: as in `build`.
    """
    rates = rates or Rates.load()
    trial = None
    if try_changes and len(documents.plans) == 1:
        trial = try_out(documents.final, documents.opened, rates, chunk=chunk)
    threads = threads or os.cpu_count() or 1
    parts = [
        _Part(plan, opened, rates, threads, chunk, measure)
        for plan, opened in zip(documents.plans, documents.sources, strict=True)
    ]
    sizes = result_sizes(documents.final, documents.opened, split)
    between = sum(sum(result_sizes(plan, opened)) for plan, opened in _stages(documents))
    guessed: dict[str, float] = {}
    for part in parts:
        for kind, seconds in part.guessed.items():
            guessed[kind] = guessed.get(kind, 0.0) + seconds
    total = sum(part.seconds for part in parts) + rates.of("sync") * (sum(sizes) + between)
    ending = rates.of(finish_kind(documents.final, documents.opened)) if documents.recipe is not None else 0.0
    around = rates.of("start") * (1 + _END)
    folder = (output.parent if output is not None else Path()).absolute()
    largest = max(parts, key=lambda part: part.own + part.mapped)
    return Forecast(
        sizes=tuple(sizes),
        between=between,
        seconds=around + total + ending,
        processor=around + ending + sum(part.processor for part in parts),
        compiling=sum(part.compiling for part in parts),
        guessed=tuple(kind for kind, seconds in guessed.items() if seconds > _MATTERS * total),
        threads=threads,
        busy=_busy(threads),
        own=largest.own,
        mapped=min(largest.mapped, max(0, (total_memory() or 1 << 62) - largest.own)),
        folder=str(folder),
        free=_free(folder),
        there=tuple(_there(documents, output, split, chunk)) if output is not None else (),
        worries=tuple(worry for plan, opened in _all(documents) for worry in worries_of(plan, opened, trial)),
        trial=trial,
    )


def result_sizes(plan: Plan, opened: Opened, split: SplitLimit | None = None) -> list[int]:
    """Bytes of the files that a plan is written to: of the file, or of each shard."""
    metadata, tensors = header_of(plan, opened)
    if split is None:
        return [Layout(metadata, tensors).total_bytes]
    cut = split.cut(tensors)
    return [
        Layout(
            metadata if number == 0 else type(metadata)(), part, SplitKeys(number, len(cut), len(tensors))
        ).total_bytes
        for number, part in enumerate(cut)
    ]


def check_output(documents: Documents, output: Path, *, split: SplitLimit | None, overwrite: bool, chunk: int) -> None:
    """Refuse what a build would refuse of the place of its output, without writing anything.

    PlanError and OutputError as `engine.build` raises them.
    """
    files = output_files(documents.final, output, split)
    check_targets(files, [], documents.inputs)
    for path in files:
        check_place(path)
    found = look(files[0])
    if found is not None and found.running:
        raise OutputError(f"{files[0]}: another process is writing it: wait for that, or choose another name")
    move = _move(documents, found, files, chunk, split)
    if move in (Move.START, Move.RESUME):
        for path in files:
            if not overwrite and os.path.lexists(path):
                raise exists(path)
        check_space(files, documents.nbytes)


class _Part:
    """What one document costs."""

    def __init__(self, plan: Plan, opened: Opened, rates: Rates, threads: int, chunk: int, measure: bool) -> None:
        sizes = digested(plan, opened)
        work = work_of(plan, opened, rates, chunk=chunk, measure=measure, digests=sizes)
        kernels = kernels_of(plan, opened.sources, opened.imatrix)
        loading = sum(rates.of(f"load {kind}") for kind in kernels if is_prepared(kind))
        self.compiling = sum(rates.of(f"compile {kind}") for kind in kernels if not is_prepared(kind))
        share = work.seconds / min(threads, os.cpu_count() or 1)
        # a file is digested by one thread
        alone = max(work.digests.values(), default=0.0)
        self.seconds = max(share, alone) * rates.of("stretch") + loading
        self.processor = work.seconds + loading
        self.guessed = {kind: seconds / threads for kind, seconds in work.guessed.items()}
        self.own = int(rates.of("memory")) + buffers(plan, threads, chunk)
        self.own += int(rates.of("compiling")) if self.compiling else 0
        self.mapped = mapped(plan, opened, digests=bool(sizes))


def _all(documents: Documents) -> list[tuple[Plan, Opened]]:
    return list(zip(documents.plans, documents.sources, strict=True))


def _stages(documents: Documents) -> list[tuple[Plan, Opened]]:
    return _all(documents)[:-1]


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _busy(threads: int) -> float:
    """How many times as long work takes beside what others do now."""
    cores = os.cpu_count() or 1
    try:
        others = os.getloadavg()[0]
    except (AttributeError, OSError):
        return 1.0
    return max(1.0, (others + min(threads, cores)) / cores)


def _move(
    documents: Documents, found: Unfinished | None, files: Sequence[Path], chunk: int, split: SplitLimit | None
) -> Move:
    """What a build of this output would do with what is there."""
    if found is None:
        return Move.START
    seals = [*found.record.seals, *[""] * len(files)]
    seen = [Seen(seal_of(partial_path(p), s), seal_of(p, s)) for p, s in zip(files, seals, strict=False)]
    return decide(found.record, f"{documents.identity}/{chunk}/{split}", seen).move


def _there(documents: Documents, output: Path, split: SplitLimit | None, chunk: int) -> list[str]:
    """What lies where the output is to be, a line each."""
    try:
        files = output_files(documents.final, output, split)
        for path in files:
            check_place(path)
    except GgufmergeError as error:
        return list(error.lines)
    lines = []
    present = [path for path in files if os.path.lexists(path)]
    if present:
        more = f" and {len(present) - 1} more shards" if len(present) > 1 else ""
        lines.append(f"{present[0].name}{more} exists, {size(_size(present))}: build replaces it with --overwrite only")
    found = look(files[0])
    if found is None:
        return lines
    if found.running:
        return [*lines, "another process is writing it now"]
    move = _move(documents, found, files, chunk, split)
    if move is Move.RESUME:
        lines.append(f"an unfinished build of the same: {found.progress}; build goes on with them")
    elif move is Move.START and found.record.state is not State.PUBLISHED:
        lines.append(f"an unfinished build of something else ({found.progress}); build starts over")
    elif move is not Move.START:
        lines.append("a build that is complete but for its name; build finishes it in a moment")
    return lines


def _size(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
