"""Carries out tasks: the passes of methods, surveys, and the reading, merging, encoding and copying of rows.

A worker knows a plan and has its sources open; whatever else a task needs comes with it as data (`running.tasks`). So
any worker of a plan can carry out any task of it, in any order, and gives the same result.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from ggufmerge.methods import method as find_method
from ggufmerge.methods.drive import Replay, Statistics
from ggufmerge.methods.random import stream_key
from ggufmerge.methods.spec import Chunk, Method, Pass, Problem, Stack
from ggufmerge.planning.actions import reference_types
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Input, Plan, PlannedTensor
from ggufmerge.planning.resolve import problem_of
from ggufmerge.quants.calibrated.moments import Moments, moments_of
from ggufmerge.quants.correlations import Correlation
from ggufmerge.running.effort import merge_kind, read_kind, write_kind
from ggufmerge.running.encode import Figures, Scratch, TensorEncoder
from ggufmerge.running.rates import Meter
from ggufmerge.running.signal import Heeded, heeded_values, shares_of_change, signal_runs
from ggufmerge.running.survey import Finding, Sample, is_surveyed, sample_runs, survey, wider_types
from ggufmerge.running.tasks import Known, Task, Written
from ggufmerge.sources import TensorReader
from ggufmerge.sources.rounding import matrix_of
from ggufmerge.types import TensorType

# (tensor, number of its first row, uint8 [rows, row bytes]): the array is overwritten when the next rows are encoded
Put = Callable[[PlannedTensor, int, NDArray[np.uint8]], None]

_OPEN = 64  # tensors that a worker keeps open, when nobody tells it that they are finished
_MATRICES = 2  # of one tensor whose passes are remembered


class Worker:
    """Carries out the tasks of one plan; several threads may call `execute` at once."""

    def __init__(
        self,
        plan: Plan,
        opened: Opened,
        *,
        put: Put | None = None,
        meter: Meter | None = None,
        measure: bool = False,
        keep: int = _OPEN,
    ) -> None:
        """opened: the plan's sources; in another process than the one that made the plan, `Opened.from_plan(plan)`.

        put: takes the bytes of rows; without it they come back as `Written.raw`.
        meter: is told what the work takes.  measure: as in `run`.
        keep: how many tensors stay open while none is released.
        """
        self.plan, self.opened, self.measure = plan, opened, measure
        self.meter = meter or Meter()
        self.scratch = Scratch()
        self.put = put
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self._keep = keep
        self._pieces: OrderedDict[str, Workpiece] = OrderedDict()
        self._lock = threading.Lock()
        self._moments: OrderedDict[tuple[int, bytes], Moments] = OrderedDict()
        self._lock_of_moments = threading.Lock()

    def execute(self, task: Task, known: Known | None = None) -> Any:
        """The result of a task; known: what the tasks before it have found out, nothing for the first ones."""
        piece, known = self.piece(task.tensor), known or Known()
        match task.kind:
            case "copy":
                result: Any = piece.copy(task.chunk)
            case "pass":
                result = piece.gather(task, known)
            case "survey":
                result = piece.survey(task.expert, known)
            case "write":
                result = piece.write(task, known)
            case _:
                assert_never(task.kind)
        self.meter.look_at_waiting()
        return result

    def piece(self, tensor: str) -> Workpiece:
        """The tensor of this name, opened."""
        with self._lock:
            piece = self._pieces.get(tensor)
            if piece is None:
                piece = self._pieces[tensor] = Workpiece(self, self._tensors[tensor])
                while len(self._pieces) > self._keep:
                    self._pieces.popitem(last=False)
            self._pieces.move_to_end(tensor)
            return piece

    def release(self, tensor: str) -> None:
        """Let go of a tensor that is finished; it would be opened again if there were another task."""
        with self._lock:
            self._pieces.pop(tensor, None)

    def moments(self, weights: NDArray[np.float32], correlations: Sequence[Correlation], matrix: int) -> Moments:
        """Of the inputs of one matrix of a tensor, from the importance of each, float32 [matrices, n], and how they go
        together.
        """
        key = id(correlations[matrix]), weights[matrix].tobytes()
        with self._lock_of_moments:  # what several matrices have in common is computed once
            if key not in self._moments:
                self._moments[key] = moments_of(weights[matrix], correlations[matrix])
                while len(self._moments) > _MATRICES:
                    self._moments.popitem(last=False)
            self._moments.move_to_end(key)
            return self._moments[key]

    @cached_property
    def fingerprints(self) -> list[str]:
        """Of each source: random streams are keyed by them."""
        return self.opened.fingerprints()

    @cached_property
    def wider_types(self) -> dict[str, dict[str, TensorType]]:
        """As in `survey.wider_types`."""
        return wider_types(self.plan, self.opened)


class Workpiece:
    """A tensor of the result while it is worked on: readers of its inputs, and how it is merged and encoded."""

    def __init__(self, worker: Worker, tensor: PlannedTensor) -> None:
        self.tensor = tensor
        self.inputs = worker.opened.inputs(tensor)
        self._worker, self._meter, self._scratch = worker, worker.meter, worker.scratch
        self._sources, self._imatrix = worker.opened.sources, worker.opened.imatrix
        self._replays: OrderedDict[int, tuple[Replay, list[Heeded]]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def encoder(self) -> TensorEncoder:
        """What writes the tensor; of copied ones it has nothing to write."""
        tensor, seed = self.tensor, self._worker.plan.seed
        if tensor.action == "copy":
            return TensorEncoder(tensor, seed, self._scratch)
        weights = self._imatrix.get(tensor.name, tensor.n, tensor.matrices) if self._imatrix else None
        # what the values are divided by before they are quantized
        scales = self._sources[tensor.scale.source].scales(tensor.scale.tensor) if tensor.scale else None
        moments = None
        if tensor.calibrated and self._imatrix is not None:
            correlations = self._imatrix.correlation(tensor.name, tensor.n, tensor.matrices)
            assert correlations is not None, "as the plan has found"
            assert weights is not None, "which correlations come with"
            moments = partial(self._worker.moments, weights, correlations)
        measure = self._worker.measure
        return TensorEncoder(
            tensor, seed, self._scratch, weights=weights, moments=moments, scales=scales, measure=measure
        )

    @cached_property
    def method(self) -> Method:
        return find_method(self.tensor.method)

    def replay(self, expert: int) -> Replay:
        """The passes that the method needs for a matrix."""
        with self._lock:
            return self._prepared(expert)[0]

    def heeded(self, expert: int) -> list[Heeded]:
        """What the method made of the rounding errors in the inputs of a matrix."""
        with self._lock:
            return self._prepared(expert)[1]

    def _prepared(self, expert: int) -> tuple[Replay, list[Heeded]]:
        found = self._replays.get(expert)
        if found is None:
            problem, heeded = self._with_signal(expert, self._problem(expert))
            found = self._replays[expert] = Replay(self.method, problem), heeded
            if len(self._replays) > _MATRICES:
                self._replays.popitem(last=False)
        self._replays.move_to_end(expert)
        return found

    def notes(self, expert: int, gathered: Sequence[Any]) -> list[str]:
        """What the method has to say of a matrix after its passes."""
        replay = self.replay(expert)
        return self.method.notes(replay.problem, _statistics(replay, gathered))

    @property
    def rows(self) -> int:
        """Of each of the matrices that are made one by one."""
        return self.tensor.rows // (self.tensor.experts if self.tensor.action == "merge" else 1)

    @property
    def is_surveyed(self) -> bool:
        """Whether a sample of each matrix is written before the whole is."""
        tensor = self.tensor
        if not is_surveyed(tensor, adapted=self._is_adapted(tensor.inputs[0])):
            return False
        return not any(source.gathered for source in self.inputs) and bool(self._runs)

    def copy(self, chunk: Chunk) -> Written:
        """Take over stored rows as they are."""
        tensor = self.tensor
        self._meter.note("tasks", 1, 0)
        with self._meter.measure(f"copy {tensor.type}", chunk.rows * tensor.type.row_bytes(tensor.n)):
            return self._put(chunk.row, self.inputs[0].intact_rows(chunk.row, chunk.end), Figures())

    def gather(self, task: Task, known: Known) -> Any:
        """The partial result of a pass of the method."""
        tensor, chunk = self.tensor, task.chunk
        current = self.replay(task.expert).after(known.gathered[: task.number])
        assert isinstance(current, Pass), "as whoever made the task has found"
        x = self._stack(task.expert, chunk)
        self._meter.note(f"reads {tensor.method}", 0, chunk.rows * tensor.n)
        self._meter.note("tasks", 1, 0)
        with self._meter.measure(f"pass {tensor.method}", x.size):
            return current.map(x, chunk)

    def survey(self, expert: int, known: Known) -> Finding:
        """Write a sample of a matrix."""
        tensor = self.tensor
        types = reference_types(tensor, self._sources)
        # of several models that are one file with different adapters the first one's reference is that of all
        distinct = [i for i in types if not any(self.inputs[i].same_data(self.inputs[j]) for j in types if j < i)]
        width = tensor.type.row_bytes(tensor.n)

        def samples() -> Iterator[Sample]:
            for start, stop in self._runs:
                chunk = Chunk(0, start, stop - start, start * tensor.n)
                yield self._sample(expert, chunk, known, distinct).copy()

        def wider() -> dict[str, TensorType]:
            types = {file_type: kinds[tensor.name] for file_type, kinds in self._worker.wider_types.items()}
            return {file_type: kind for file_type, kind in types.items() if kind.row_bytes(tensor.n) > width}

        with self._meter.measure(f"survey {tensor.type}", 1):
            return survey(tensor, self.encoder, self.rows * tensor.n, samples(), types, wider)

    def write(self, task: Task, known: Known) -> Written:
        """Merge or convert rows and encode them."""
        tensor, rounding, reference = self.tensor, known.rounding, known.reference
        # blocks that no adapter reaches keep their bytes, which takes the base of an adapted input to see
        spared = tensor.keeps_type and self._is_adapted(tensor.inputs[reference])
        wanted = [reference] if rounding != "nearest" or spared else []
        sample = self._sample(task.expert, task.chunk, known, wanted)
        self._meter.note("tasks", 1, 0)
        kind = write_kind(tensor, self._imatrix, rounding=rounding, measure=self._worker.measure)
        with self._meter.measure(kind, sample.rows.size):
            raw, figures = self.encoder.encode(
                sample.start,
                sample.rows,
                stored=sample.stored,
                base=sample.references.get(reference),
                blocks=sample.blocks.get(reference),
                rounding=rounding,
            )
        with self._meter.measure("put", raw.nbytes):
            return self._put(sample.start, raw, figures)

    @cached_property
    def _runs(self) -> tuple[tuple[int, int], ...]:
        """The rows of a matrix that a survey begins with."""
        tensor = self.tensor
        return sample_runs(self.rows, tensor.n, tensor.rows // (tensor.matrices or 1))

    @cached_property
    def _storing(self) -> list[tuple[int, TensorReader]]:
        """The inputs, with their numbers, that have the tensor's type, where writing their values anew may round."""
        tensor = self.tensor
        if not tensor.type.is_quantized and tensor.offset == 0:
            return []
        return [(i, s) for i, s in enumerate(self.inputs) if s.stores(tensor.type, self.encoder.scales)]

    def _problem(self, expert: int) -> Problem:
        """What is to be merged: the tensor, or one matrix of a stack of experts."""
        tensor, fingerprints = self.tensor, self._worker.fingerprints
        name = f"{tensor.name}#{expert}" if tensor.experts > 1 else tensor.name
        models = tensor.inputs[1:] if tensor.has_base else tensor.inputs
        keys = [int(stream_key(self._worker.plan.seed, name, fingerprints[i.source])) for i in models]
        return problem_of(tensor, keys)

    def _with_signal(self, expert: int, problem: Problem) -> tuple[Problem, list[Heeded]]:
        """The problem of a matrix as the method solves it beside the rounding errors of its inputs."""
        tensor, sources = self.tensor, [self._sources[given.source] for given in self.tensor.inputs]
        if not tensor.noise_aware:
            return problem, []
        matrices = [matrix_of(source.metadata) for source in sources]
        runs = signal_runs(expert * self.rows, self.rows, tensor.n)
        shares = shares_of_change(self.inputs, matrices, runs)
        used = self.method.with_signal(problem, shares)
        return used, heeded_values(problem, used, [source.label for source in sources[1:]], shares)

    def _sample(self, expert: int, chunk: Chunk, known: Known, wanted: Sequence[int]) -> Sample:
        """Rows of a matrix as they are to be written, and what the inputs of these numbers are without adapters."""
        if self.tensor.action == "convert":
            return self._converted(chunk)
        return self._merged(expert, chunk, known, wanted)

    def _converted(self, chunk: Chunk) -> Sample:
        """Rows of the only input, and what they are without adapters if it has some."""
        [source] = self.inputs
        rows = self._read(chunk.row, chunk.end)[0]
        if not self._is_adapted(self.tensor.inputs[0]):
            return Sample(chunk.row, rows, {})
        base = self._without_adapters(0, chunk.row, chunk.end)
        if not self._holds(source):
            return Sample(chunk.row, rows, {0: base})
        # weights that no adapter reaches and whose type stays keep their bytes
        raw = source.raw_rows(chunk.row, chunk.end)
        return Sample(chunk.row, rows, {0: base}, {0: raw}, [(base, raw)])

    def _merged(self, expert: int, chunk: Chunk, known: Known, wanted: Sequence[int]) -> Sample:
        tensor = self.tensor
        replay = self.replay(expert)
        statistics = _statistics(replay, known.gathered)
        out = self._scratch.array("out", (chunk.rows, tensor.n), np.float32)
        start = expert * self.rows + chunk.row
        stop = start + chunk.rows
        x = self._stack(expert, chunk)
        with self._meter.measure(merge_kind(tensor), x.size):
            self.method.combine(x, replay.problem, statistics, chunk, out)
        self._meter.note(f"reads {tensor.method}", out.size, out.size)
        blocks = {i: source.raw_rows(start, stop) for i, source in self._storing}
        same = [(x[i], raw) for i, raw in blocks.items()]
        bases = {}
        for i in wanted:
            source = self.inputs[i]
            if not self._is_adapted(tensor.inputs[i]):
                bases[i] = x[i]
                continue
            bases[i] = self._without_adapters(i, start, stop)
            if tensor.offset:
                bases[i] -= np.float32(tensor.offset)
            if self._holds(source):
                blocks[i] = source.raw_rows(start, stop)
                same.append((bases[i], blocks[i]))
        return Sample(start, out, bases, blocks, same)

    def _stack(self, expert: int, chunk: Chunk) -> Stack:
        """A chunk of all inputs as the method sees it, float32 [inputs, rows, n], in the thread's own buffer."""
        first = expert * self.rows
        x = self._read(first + chunk.row, first + chunk.end)
        if self.tensor.offset:
            x -= np.float32(self.tensor.offset)
        return x

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of all inputs, float32 [inputs, rows, n], in the thread's own buffer."""
        inputs = self.inputs
        x: NDArray[np.float32] = self._scratch.array("in", (len(inputs), stop - start, inputs[0].n), np.float32)
        for i, source in enumerate(inputs):
            # one base with several adapters is dequantized once
            twin = next((j for j in range(i) if inputs[j].same_data(source)), None)
            if twin is None:
                with self._meter.measure(read_kind(source), x[i].size):
                    source.dequantize(start, x[i])
            else:
                x[i] = x[twin]
        for i, source in enumerate(inputs):
            if source.rank and not source.gathered:
                with self._meter.measure("adapt", x[i].size * source.rank):
                    source.adapt(start, x[i])
            else:
                source.adapt(start, x[i])
        return x

    def _is_adapted(self, given: Input) -> bool:
        """Whether adapters change an input."""
        return self._sources[given.source].changed_by_adapter(given.tensor)

    def _holds(self, source: TensorReader) -> bool:
        """Whether the stored bytes of an input are of the tensor's type, whatever adapters add to them."""
        return source.holds(self.tensor.type, self.encoder.scales)

    def _without_adapters(self, number: int, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of an input as its file holds them, float32 [rows, n], in the thread's own buffer."""
        source = self.inputs[number]
        base: NDArray[np.float32] = self._scratch.array(f"base {number}", (stop - start, source.n), np.float32)
        source.dequantize(start, base)
        return base

    def _put(self, start: int, raw: NDArray[np.uint8], figures: Figures) -> Written:
        put = self._worker.put
        if put is not None:
            put(self.tensor, start, raw)
        kept = raw.tobytes() if put is None else None
        return Written(start, zlib.crc32(raw.data), raw.nbytes, figures, kept)


def _statistics(replay: Replay, gathered: Sequence[Any]) -> Any:
    found = replay.after(gathered)
    assert isinstance(found, Statistics), "after the last pass"
    return found.value
