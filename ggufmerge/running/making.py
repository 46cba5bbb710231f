"""Makes a tensor out of tasks: which ones it needs, in which order, and what their results add up to.

A method that needs to know the whole tensor first yields passes, and each pass is a batch of tasks; where it is still
to be found out how a change is rounded, a survey follows; the last batch writes. Of a stack of experts each matrix goes
through that by itself. Batches are for whoever owns the output: `running.run` hands their tasks to threads, others may
send them to other processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ggufmerge.methods.chunks import chunks_of
from ggufmerge.methods.drive import readings
from ggufmerge.methods.spec import Chunk
from ggufmerge.planning.plan import PlannedTensor
from ggufmerge.running.encode import Figures
from ggufmerge.running.signal import Heeded, together
from ggufmerge.running.survey import Finding
from ggufmerge.running.tasks import Known, Task, Written, written_at_a_time
from ggufmerge.running.worker import Worker


@dataclass(frozen=True)
class Batch:
    """Tasks that may be carried out anywhere and in any order, all with what is known before the first of them.

    fold: takes in their results, one after the other in the order of the tasks.
    """

    tasks: Sequence[Task]
    known: Known
    fold: Callable[[Any], None]


class Making:
    """The making of one tensor. When the last batch is folded the attributes are those of the whole tensor.

    notes: decisions that only the weights could bring about.  findings: of the surveys, one for each matrix.
    checksum: of its bytes, from those of the pieces.  figures: what encoding it cost.
    """

    def __init__(
        self,
        worker: Worker,
        tensor: PlannedTensor,
        values: int,
        *,
        passed: Callable[[Chunk], None] = lambda chunk: None,
        written: Callable[[Written], None] = lambda piece: None,
    ) -> None:
        """worker: of the plan; it is asked what follows on what was found out.  values: of a chunk.

        passed, written: are told of each chunk that a pass has gone through, and of each piece of the result, in order.
        """
        self.tensor, self._worker, self._values = tensor, worker, values
        self._passed, self._written = passed, written
        self.notes: list[str] = []
        self._heeded: list[list[Heeded]] = []  # of each matrix
        self.findings: list[Finding] = []
        self.checksum, self.figures = 0, Figures()

    def batches(self) -> Generator[Batch, None, None]:
        """All that is to be done, a batch when the one before it is folded. GgufmergeError when the type cannot hold
        what was merged.
        """
        tensor = self.tensor
        if not tensor.rows * tensor.n:
            pass  # no values, so there is nothing to merge or to write
        elif tensor.action == "copy":
            chunks = written_at_a_time(tensor, self._values)
            yield Batch([Task(tensor.name, "copy", chunk) for chunk in chunks], Known(), self._add)
        else:
            for expert in range(tensor.experts if tensor.action == "merge" else 1):
                known = yield from self.prepare(expert)
                tasks = [Task(tensor.name, "write", chunk, expert) for chunk in self._chunks]
                yield Batch(tasks, known, self._add)
        self.notes += self._worker.piece(tensor.name).encoder.check(self.figures)

    def prepare(self, expert: int) -> Generator[Batch, None, Known]:
        """What is to be done before the first row of a matrix is written; gives what was found out."""
        tensor, piece = self.tensor, self._worker.piece(self.tensor.name)
        known = Known()
        if tensor.action == "merge":
            driver = readings(piece.replay(expert))
            while True:
                try:
                    reading = next(driver)
                except StopIteration as end:
                    known = Known(end.value)
                    break
                folded = iter(self._chunks)

                def fold(partial: Any, reading: Any = reading, folded: Any = folded) -> None:
                    reading.fold(partial)
                    self._passed(next(folded))

                tasks = [Task(tensor.name, "pass", chunk, expert, reading.number) for chunk in self._chunks]
                yield Batch(tasks, Known(reading.before), fold)
            self.notes += piece.notes(expert, known.gathered)
            self._heeded.append(piece.heeded(expert))
        if piece.is_surveyed:
            whole = Chunk(0, 0, piece.rows, 0)
            yield Batch([Task(tensor.name, "survey", whole, expert)], known, self.findings.append)
            finding = self.findings[-1]
            known = replace(known, rounding=finding.rounding, reference=finding.reference)
        return known

    @property
    def heeded(self) -> list[Heeded]:
        """What the method made of the rounding errors in the inputs."""
        return together(self._heeded)

    @cached_property
    def _chunks(self) -> list[Chunk]:
        """Of a matrix that is made by itself."""
        tensor = self.tensor
        rows = self._worker.piece(tensor.name).rows
        return chunks_of(rows, tensor.n, self._values, tensor.rows // (tensor.matrices or 1))

    def _add(self, piece: Written) -> None:
        self.checksum = joined(self.checksum, piece.checksum)
        self.figures.add(piece.figures)
        self._written(piece)


def joined(checksum: int, crc: int) -> int:
    """The checksum of a tensor from that of what comes before a piece and that of the piece."""
    return zlib.crc32(crc.to_bytes(4, "little"), checksum)
