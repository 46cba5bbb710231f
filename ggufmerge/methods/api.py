"""`merge`: any method on arrays in memory, for notebooks and for other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufmerge.errors import GgufmergeError, RecipeError
from ggufmerge.methods import method as find_method
from ggufmerge.methods.chunks import chunks_of
from ggufmerge.methods.drive import Replay, Statistics, readings
from ggufmerge.methods.parameters import BindError, Complaint
from ggufmerge.methods.random import stream_key
from ggufmerge.methods.spec import Base, Chunk, Method, Problem


def merge(
    tensors: Sequence[ArrayLike],
    method: str,
    parameters: Mapping[str, Any] | None = None,
    base: ArrayLike | None = None,
    seed: int = 0,
    _chunk: int | None = None,
) -> NDArray[np.float32]:
    """Merge arrays of one shape, 1-D or more, as one weight tensor; the result is float32 of that shape.

    tensors: the models other than the base, in recipe order (slerp, nearswap, arcee_fusion: the one other model).
    method: a mergekit method name, see `ggufmerge.methods.NAMES`.
    parameters: such as {"lambda": 1.0, "weight": [0.5, 0.3]}; per-model ones as one value for all or a list in the
        order of `tensors`. Values are those of recipes: a number may be a text, a switch 0 or 1.
    base: what differences are taken from. Methods without one (linear, karcher, passthrough) take it as one more model,
        the last.
    seed: of the random masks of DARE and DELLA.

    An array with more than two axes counts as rows along its last one. GgufmergeError tells what is wrong with the
    arguments, RecipeError (one of them) what is wrong with the method or its parameters.

    >>> merge([[3.0, 5.0]], "task_arithmetic", {"weight": 0.5}, base=[1.0, 1.0])
    array([2., 3.], dtype=float32)
    """
    chosen = find_method(method)
    arrays = [np.asarray(t, np.float32) for t in tensors]
    if base is not None:
        arrays.insert(len(arrays) if chosen.base is Base.MODEL else 0, np.asarray(base, np.float32))
    has_base = base is not None and chosen.base is not Base.MODEL
    _check_inputs(chosen, arrays, has_base)
    shape = arrays[0].shape
    x = np.stack([a.reshape(math.prod(shape[:-1]), shape[-1]) for a in arrays])
    p = problem(chosen, x.shape, has_base, parameters or {}, seed)
    same = chosen.untouched(p)
    return (run(chosen, p, x, _chunk) if same is None else x[same].copy()).reshape(shape)


def problem(
    method: Method, shape: tuple[int, ...], has_base: bool, parameters: Mapping[str, Any], seed: int = 0
) -> Problem:
    """The problem of merging a stack of this shape, (inputs, rows, n), with these parameters and the defaults.

    RecipeError names all that is wrong with them, one line each.
    """
    inputs, rows, n = shape
    keys = [stream_key(seed, "", str(i)) for i in range(inputs - has_base)]
    try:
        return method.bind((rows, n), inputs, has_base, parameters, np.array(keys, np.uint64))
    except BindError as error:
        raise RecipeError(*dict.fromkeys(_line(method, complaint) for complaint in error.complaints)) from None


def _line(method: Method, complaint: Complaint) -> str:
    """A complaint in words of `merge`: where a value that is missing belongs."""
    q = method.parameter(complaint.about)
    if not complaint.missing or q is None:
        return complaint.what
    models = f"model {complaint.model} " if complaint.model is not None else ""
    doc = f" ({q.doc})" if q.doc else ""
    return f'{models}{complaint.what}{doc}: give parameters={{"{q.name}": {q.example}}}'


def run(method: Method, p: Problem, x: NDArray[np.float32], elements: int | None = None) -> NDArray[np.float32]:
    """Merge the stack x, float32 [inputs, rows, n], whole or by chunks of about `elements`: float32 [rows, n]."""
    chunks = chunks_of(x.shape[1], x.shape[2], elements or x.size)
    out = np.empty(x.shape[1:], np.float32)
    if not chunks:
        return out  # there is nothing to merge
    replay = Replay(method, p)
    statistics = replay.after(_gathered(replay, x, chunks))
    assert isinstance(statistics, Statistics), "after the last pass"
    for chunk in chunks:
        method.combine(_part(x, chunk), p, statistics.value, chunk, out[chunk.row : chunk.end])
    return out


def _gathered(replay: Replay, x: NDArray[np.float32], chunks: Sequence[Chunk]) -> tuple[Any, ...]:
    """What each pass gathers of the stack."""
    driver = readings(replay)
    while True:
        try:
            reading = next(driver)
        except StopIteration as end:
            gathered: tuple[Any, ...] = end.value
            return gathered
        for chunk in chunks:
            reading.fold(reading.map(_part(x, chunk), chunk))


def _part(x: NDArray[np.float32], chunk: Chunk) -> NDArray[np.float32]:
    """The rows of a chunk of all inputs, as methods want them: float32 [inputs, rows, n] in C order."""
    return np.ascontiguousarray(x[:, chunk.row : chunk.end])


def _check_inputs(method: Method, arrays: list[NDArray[np.float32]], has_base: bool) -> None:
    try:
        method.check_base(has_base)
    except ValueError as error:
        todo = "give one of the two as base=ARRAY, and only the other one in tensors" if method.pair else ""
        raise GgufmergeError(f"{error}: {todo or 'give base=ARRAY'}") from None
    try:
        method.check_models(len(arrays) - has_base)
    except ValueError as error:
        raise GgufmergeError(str(error)) from None
    for i, array in enumerate(arrays[1:], start=1):
        if array.shape != arrays[0].shape:
            raise GgufmergeError(f"the arrays must have one shape: number {i} is {array.shape}, not {arrays[0].shape}")
    if arrays[0].ndim == 0:
        raise GgufmergeError("a single number has no rows: give arrays of one axis or more")
