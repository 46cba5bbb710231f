"""Which model others were tuned from: by what their files record, else by how far apart a few of their rows are.

Fine-tunes of one base lie around it: each differs from the base by less than from the others, and the differences have
little in common. That tells a base from a sister (whose differences to two tunes share half of their energy), from a
copy of one of them in another type, and from a stranger. Where weights are so coarse that rounding hides the changes,
nothing is told.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.architectures.stacks import layer_of
from ggufmerge.errors import GgufmergeError
from ggufmerge.places.inventory import FoundModel
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source

SECONDS = 5.0  # for measuring all candidates, once the given models are read
_MAX_CANDIDATES = 40
_TENSORS, _RUNS, _VALUES = 6, 4, 4096  # a sample: matrices, runs of rows in each, values of a run
_ALIKE = 0.45  # cosine of two differences; those to a sister have 0.5, those to an average of both -1
_CLOSER = 0.97  # of the distance between two models, in which their base lies from each; unrelated changes have 0.71
_STRANGERS = 0.5  # relative distance from which models are of different origin; fine-tunes differ by a few hundredths
_PARENT = re.compile(r"general\.base_model\.(\d{1,2})\.name|ggufmerge\.(?:lineage\.\d{1,2}\.)?source\.(\d{1,2})\.file")


@dataclass(frozen=True)
class Base:
    """A model that others were tuned from. reference: what a recipe writes for it.  why: in words."""

    reference: str
    why: str


def recorded_base(given: Sequence[Source], candidates: Iterable[FoundModel]) -> Base | None:
    """The candidate that all given models name as what they were made from; of several the one named first."""
    named = [_parents(source) for source in given]
    best: tuple[int, FoundModel] | None = None
    for candidate in candidates:
        words = {word(candidate.name), word(candidate.path.name if candidate.path else "")} - {""}
        places = [min((places[word] for word in words if word in places), default=None) for places in named]
        known = [place for place in places if place is not None]
        if len(known) == len(places) and (best is None or sum(known) < best[0]):
            best = (sum(known), candidate)
    if best is None:
        return None
    who = {1: "it was", 2: "both were"}.get(len(given), "all were")
    return Base(best[1].references[0], f"{who} made from it, as {'its file says' if len(given) == 1 else 'they say'}")


def _parents(source: Source) -> dict[str, int]:
    """The names of models and files that a file was made from, by what it says, with their place in the list."""
    found: dict[str, int] = {}
    for key in source.metadata:
        match = _PARENT.fullmatch(key)
        if match and (text := source.metadata.text(key)):
            found.setdefault(word(text), int(match[1] or match[2]))
    return found


def word(name: str) -> str:
    """A name without what people write differently: case, blanks, dashes."""
    return re.sub(r"[\W_]+", "", name).casefold()


def distance(given: Sequence[Source]) -> float | None:
    """The largest distance between two of these models on a sample of rows, relative to their size; None if they have
    no matrices in common.
    """
    names = _matrices(given)
    if not names:
        return None
    rows = [_sample(source, names) for source in given]
    return max((_size(a - b) for a, b in combinations(_scaled(rows), 2)), default=0.0)


def are_strangers(apart: float | None) -> bool:
    """Whether models at this distance hardly come from one base."""
    return apart is not None and apart > _STRANGERS


def measured_base(
    given: Sequence[Source], candidates: Sequence[FoundModel], *, seconds: float = SECONDS
) -> tuple[Base | None, int]:
    """The candidate around which the given models (two or more) lie, the nearest if several do; and how many
    candidates were looked at in the time there was. None when there is none, or rounding hides it.
    """
    names = _matrices(given)
    if not names or len(given) < 2:
        return None, 0
    rows = [_sample(source, names) for source in given]
    made_of = {word(path.name) for source in given for path in source.file.paths}
    deadline = time.monotonic() + seconds
    best: tuple[float, str, str] | None = None
    measured = 0
    for candidate in candidates[:_MAX_CANDIDATES]:
        if time.monotonic() > deadline:
            break
        with suppress(GgufmergeError, OSError, ValueError, KeyError), ExitStack() as stack:
            source = open_source(ModelReference(candidate.references[0]))
            stack.callback(source.close)
            measured += 1
            if made_of.intersection(_parents(source)):
                continue  # a merge of them lies among them, too
            centre, *others = _scaled([_sample(source, names), *rows])
            far = _around(centre, others)
            if far is not None and (best is None or far < best[0]):
                between = max(_size(a - b) for a, b in combinations(others, 2))
                best = (far, candidate.references[0], _found(len(given), far, between))
    return (Base(best[1], best[2]) if best else None), measured


def _found(models: int, far: float, between: float) -> str:
    who, each = ("both", "each other") if models == 2 else ("all", "each other")
    return f"the nearest relative of {who}: they differ from it by {_percent(far)}, from {each} by {_percent(between)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _around(centre: NDArray[np.float32], others: Sequence[NDArray[np.float32]]) -> float | None:
    """The largest distance of the others to `centre` if they lie around it as tunes lie around their base."""
    changes = [other - centre for other in others]
    sizes = [_size(change) for change in changes]
    if min(sizes) == 0:
        return None  # the same weights as one of them
    for (i, a), (j, b) in combinations(enumerate(changes), 2):
        apart = _size(a - b)
        cosine = float(np.vdot(a, b)) / (float(np.linalg.norm(a)) * float(np.linalg.norm(b)))
        if not abs(cosine) <= _ALIKE or not max(sizes[i], sizes[j]) < _CLOSER * apart or apart > _STRANGERS:
            return None
    return max(sizes)


def _matrices(sources: Sequence[Source]) -> list[str]:
    """The matrices to look at: of the blocks, those that all have in one shape, spread over the model."""
    first, *others = sources
    names = [
        name
        for name, tensor in first.tensors.items()
        if layer_of(name) is not None
        and len(tensor.shape) >= 2
        and min(tensor.shape[-2:]) > 1
        and (tensor.type.is_quantized or tensor.type.is_float)
        and all(name in other.tensors and other.tensors[name].shape == tensor.shape for other in others)
    ]
    step = len(names) / _TENSORS
    return list(dict.fromkeys(names[int((i + 0.5) * step)] for i in range(_TENSORS))) if names else []


def _sample(source: Source, names: Sequence[str]) -> list[NDArray[np.float32]]:
    """Rows of each of these tensors, float32 [rows, n]; the same rows of every source."""
    found = []
    for name in names:
        tensor = source.open_tensor(name)
        count = min(tensor.rows, max(1, _VALUES // tensor.n))
        starts = dict.fromkeys(int((i + 0.5) * (tensor.rows - count) / _RUNS) for i in range(_RUNS))
        parts = []
        for start in starts:
            out = np.empty((count, tensor.n), np.float32)
            tensor.read(start, out)
            parts.append(out)
        found.append(np.concatenate(parts))
    return found


def _scaled(samples: Sequence[list[NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
    """Each sample as one vector, every tensor in units of its size in the first, so that each counts alike."""
    scales: list[Any] = [float(np.sqrt(np.mean(np.square(rows)))) or 1.0 for rows in samples[0]]
    return [
        np.concatenate([(rows / scale).reshape(-1) for rows, scale in zip(sample, scales, strict=True)])
        for sample in samples
    ]


def _size(change: NDArray[np.float32]) -> float:
    """RMS, which is relative to the weights for vectors out of `_scaled`."""
    return float(np.sqrt(np.mean(np.square(change, dtype=np.float64))))
