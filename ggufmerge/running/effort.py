"""What a plan is made of, as work: how many values of each kind are read, merged and written.

`Work` is what the rates of a machine (`running.rates`) turn into seconds: before a build, to say how long it will take,
and while it runs, to say how much of it is done. A tensor's weight in the progress is its share of the processor time,
not of the bytes, for a tensor that is copied takes a hundredth of the time of one that is searched for its best scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggufmerge.chat.templates import TEMPLATE
from ggufmerge.planning.opened import Opened, watched
from ggufmerge.planning.plan import Plan, PlannedTensor, Rounding
from ggufmerge.planning.provenance import digest_key
from ggufmerge.quants.importance import Imatrix
from ggufmerge.running.rates import Rates
from ggufmerge.running.survey import is_surveyed
from ggufmerge.sources import Source, TensorReader

_ROWS = "read rows"  # gathered from several models, as a changed vocabulary needs it
TICKS = 1_000_000  # of progress in a second of work


@dataclass(frozen=True)
class TensorWork:
    """What one tensor takes, in seconds of processor time.

    surveyed: before it is written.  pass_: of one reading of it by its method, of `passes` that are expected.
    last: of the reading that writes it.
    """

    surveyed: float = 0.0
    pass_: float = 0.0
    passes: float = 0.0
    last: float = 0.0

    @property
    def seconds(self) -> float:
        return self.surveyed + self.passes * self.pass_ + self.last


@dataclass
class Work:
    """The work of a plan: of each tensor, and the seconds that each file takes to be digested.

    guessed: what of it belongs to kinds of work that this machine has never measured, in seconds.
    """

    tensors: dict[str, TensorWork] = field(default_factory=dict)
    digests: dict[Path, float] = field(default_factory=dict)
    guessed: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Processor time of all of it."""
        return sum(t.seconds for t in self.tensors.values()) + sum(self.digests.values())

    @property
    def ticks(self) -> int:
        """All of it in units of progress."""
        return sum(map(self.ticks_of, self.tensors)) + sum(round(seconds * TICKS) for seconds in self.digests.values())

    def ticks_of(self, tensor: str) -> int:
        return max(1, round(self.tensors[tensor].seconds * TICKS))


def work_of(
    plan: Plan, opened: Opened, rates: Rates, *, chunk: int, measure: bool = False, digests: Mapping[Path, int] = {}
) -> Work:
    """The work of a plan at these rates. digests: sizes of the files that are digested.  The rest: as in `run`."""
    work = Work()
    for tensor in plan.tensors:
        work.tensors[tensor.name] = _tensor(tensor, opened, rates, chunk, measure, work.guessed)
    for path, size in digests.items():
        work.digests[path] = _take(rates, "digest", size, work.guessed)
    return work


def digested(plan: Plan, opened: Opened) -> dict[Path, int]:
    """The files whose digests a result will carry, with their sizes."""
    if plan.metadata.get(digest_key(0)) is None:
        return {}
    watch = watched(opened.sources)
    return {path: watch.size(path) for path in watch.paths}


def is_one_tensor(tensor: PlannedTensor, opened: Opened) -> bool:
    """Whether a tensor has several inputs that are all the same stored weights, changed by no adapter."""
    if len(tensor.inputs) < 2 or any(opened.sources[i.source].moves(i.tensor) for i in tensor.inputs):
        return False
    stored = {(t.path, t.name) for i in tensor.inputs for t in [opened.sources[i.source].file.tensors[i.tensor]]}
    return len(stored) == 1 and not rank_of(tensor, opened.sources)


def write_kind(tensor: PlannedTensor, imatrix: Imatrix | None, *, rounding: Rounding, measure: bool) -> str:
    """What writing this tensor is called."""
    words = [_encoding(tensor, imatrix)]
    words += ["by chance"] if rounding == "stochastic" else []
    words += ["measured"] if measure else []
    return " ".join(words)


def _encoding(tensor: PlannedTensor, imatrix: Imatrix | None) -> str:
    """What quantizing a tensor is called, with an importance matrix or without."""
    weighted = imatrix is not None and tensor.name in imatrix
    words = f"write {tensor.type} weighted" if weighted else f"write {tensor.type}"
    return f"{words} calibrated" if tensor.calibrated else words


def rank_of(tensor: PlannedTensor, sources: Sequence[Source]) -> int:
    """Of all adapters that change the inputs of a tensor, together."""
    changed = (i for i in tensor.inputs if sources[i.source].changed_by_adapter(i.tensor))
    return sum(sources[i.source].open_tensor(i.tensor).rank for i in changed)


def read_kind(source: TensorReader) -> str:
    """What dequantizing an input is called; `_reads` knows it from the plan."""
    return _ROWS if source.gathered else f"read {source.type}"


def finish_kind(plan: Plan, opened: Opened) -> str:
    """What is done with a finished file is called: how a model is prompted is found out by trying its template."""
    text = plan.metadata.get(TEMPLATE, opened.sources[0].metadata.text(TEMPLATE))
    return "finish template" if text or TEMPLATE in plan.taken else "finish plain"


def merge_kind(tensor: PlannedTensor) -> str:
    return f"merge {tensor.method}"


def kernels_of(plan: Plan, sources: Sequence[Source], imatrix: Imatrix | None) -> list[str]:
    """What kernels a plan needs, in the order in which `run` prepares them."""
    made = [t for t in plan.tensors if t.action != "copy"]
    kinds = [f"read {sources[i.source].file.tensors[i.tensor].type}" for t in made for i in t.inputs]
    kinds += [_encoding(t, imatrix) for t in made]
    kinds += ["survey"]
    kinds += ["signal"] if any(t.noise_aware for t in plan.tensors) else []
    kinds += [f"merge {t.method}" for t in plan.tensors if t.action == "merge"]
    if any(sources[i.source].changed_by_adapter(i.tensor) for t in made for i in t.inputs):
        kinds.append("adapt")
    return list(dict.fromkeys(kinds))


def _take(rates: Rates, kind: str, units: float, guessed: dict[str, float]) -> float:
    seconds = rates.of(kind) * units
    if not rates.is_measured(kind):
        guessed[kind] = guessed.get(kind, 0.0) + seconds
    return seconds


def _tensor(
    tensor: PlannedTensor, opened: Opened, rates: Rates, chunk: int, measure: bool, guessed: dict[str, float]
) -> TensorWork:
    values = tensor.rows * tensor.n
    chunks = max(1, -(-values // chunk), tensor.matrices or 1)

    def take(kind: str, units: float) -> float:
        return _take(rates, kind, units, guessed)

    last = take("task", chunks)
    if tensor.action == "copy":
        return TensorWork(last=last + take(f"copy {tensor.type}", tensor.nbytes))
    read = sum(take(kind, values) for kind in _reads(tensor, opened))
    rank = rank_of(tensor, opened.sources)
    read += take("adapt", values * rank) if rank else 0.0
    likely: Rounding = "stochastic" if tensor.rounding == "stochastic" or _may_be_by_chance(tensor) else "nearest"
    written = take(write_kind(tensor, opened.imatrix, rounding=likely, measure=measure), values)
    written += take("put", tensor.nbytes)
    surveyed = 0.0
    if is_surveyed(tensor, adapted=rank > 0):
        surveyed = take(f"survey {tensor.type}", tensor.experts)
    if tensor.action == "convert":
        return TensorWork(surveyed, last=last + read + written)
    size = values * len(tensor.inputs)
    passes = max(0.0, rates.of(f"reads {tensor.method}") - 1.0)
    a_pass = read + take(f"pass {tensor.method}", size) + take("task", chunks) if passes else 0.0
    return TensorWork(surveyed, a_pass, passes, last + read + written + take(merge_kind(tensor), size))


def _reads(tensor: PlannedTensor, opened: Opened) -> Iterator[str]:
    """A kind for each input that is dequantized; one file with several adapters is so once."""
    seen = set()
    for given in tensor.inputs:
        if opened.sources[given.source].moves(given.tensor):
            yield _ROWS
            continue
        stored = opened.sources[given.source].file.tensors[given.tensor]
        place = (stored.path, stored.name)
        if place not in seen:
            seen.add(place)
            yield f"read {stored.type}"


def _may_be_by_chance(tensor: PlannedTensor) -> bool:
    """Whether a survey will probably choose to round stochastically: coarse grids that are kept."""
    return tensor.rounding == "auto" and tensor.keeps_type and tensor.type.bits_per_weight < 6
