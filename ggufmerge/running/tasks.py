"""The work of a plan as data: tasks, what they have to know, and what comes of them. All of it pickles.

A `Task` names a piece of the work on one tensor. `running.worker` carries it out, in this process or in another one
that has the plan; `running.making` says which tasks a tensor needs, and folds their results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ggufmerge.methods.chunks import chunks_of
from ggufmerge.methods.spec import Chunk
from ggufmerge.planning.plan import PlannedTensor, Rounding
from ggufmerge.running.encode import Figures

Kind = Literal["copy", "pass", "survey", "write"]


@dataclass(frozen=True)
class Task:
    """A piece of the work on the tensor of this name.

    kind: "copy" takes over stored bytes, with `Written` as result; "pass" maps rows for the method (a partial result);
        "survey" writes a sample (a `Finding`); "write" merges or converts rows and encodes them (`Written`).
    chunk: the rows, counted from the first one of the matrix.  expert: which matrix, in a stack that is merged matrix
        by matrix.  number: of the pass.
    """

    tensor: str
    kind: Kind
    chunk: Chunk
    expert: int = 0
    number: int = 0


@dataclass(frozen=True)
class Known:
    """What earlier work on a matrix has found out, as far as tasks need it.

    gathered: what each pass of the method has gathered.
    rounding, reference: of the survey: the encoder to write with, and the number of the input whose change is rounded.
    """

    gathered: tuple[Any, ...] = ()
    rounding: Rounding = "nearest"
    reference: int = 0


@dataclass(frozen=True)
class Written:
    """Rows of a tensor in their type.

    start: the number of the first row in the tensor.  checksum: CRC-32 of the bytes.  figures: what encoding them cost.
    raw: the bytes, when the worker had nowhere to put them.
    """

    start: int
    checksum: int
    nbytes: int
    figures: Figures = field(default_factory=Figures)
    raw: bytes | None = None


def written_at_a_time(tensor: PlannedTensor, values: int) -> list[Chunk]:
    """The rows that are written at a time, the same for every run with chunks of so many values."""
    return chunks_of(tensor.rows, tensor.n, values, tensor.rows // (tensor.matrices or 1))
