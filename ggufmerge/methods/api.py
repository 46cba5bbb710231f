"""`merge`: any method on arrays in memory, for notebooks and for other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufmerge.errors import GgufmergeError, RecipeError, nearest
from ggufmerge.methods import method as find_method
from ggufmerge.methods.chunks import chunks_of
from ggufmerge.methods.drive import Replay, Statistics, readings
from ggufmerge.methods.random import stream_key
from ggufmerge.methods.spec import REQUIRED, Base, Chunk, Method, Parameter, Problem, Value


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
        order of `tensors`.
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
    """The problem of merging a stack of this shape, (inputs, rows, n), with these parameters and the defaults."""
    names = [q.name for q in method.parameters]
    for name in parameters:
        if name not in names:
            raise RecipeError(f'{method.name} has no parameter "{name}": {nearest(name, names)}')
    inputs, rows, n = shape
    models = inputs - has_base
    shared: dict[str, Value] = {}
    per_model: dict[str, NDArray[np.float64]] = {}
    for q in method.parameters:
        given = parameters.get(q.name, q.default)
        if given is REQUIRED:
            example = f'parameters={{"{q.name}": {q.example}}}'
            raise RecipeError(f'{method.name} needs the parameter "{q.name}" ({q.doc}): give {example}')
        if q.scope == "shared":
            shared[q.name] = _value(method, q, given)
            continue
        values = given if isinstance(given, (list, tuple, np.ndarray)) else [given] * models
        if len(values) != models:
            raise RecipeError(f'{method.name}: "{q.name}" has {len(values)} values for {models} models')
        per_model[q.name] = np.array([_value(method, q, v) for v in values], np.float64)
    keys = np.array([stream_key(seed, "", str(i)) for i in range(models)], np.uint64)
    p = Problem((rows, n), inputs, has_base, shared, per_model, keys)
    try:
        method.check(p)
    except ValueError as error:
        raise RecipeError(f"{method.name}: {error}") from None
    return p


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
    models = len(arrays) - has_base
    if method.base is Base.REQUIRED and not has_base:
        if method.pair:
            todo = "give one of the two as base=ARRAY, and only the other one in tensors"
            raise GgufmergeError(f"{method.name} goes from a base to one model: {todo}")
        raise GgufmergeError(f"{method.name} takes differences from a base: give base=ARRAY")
    if models < method.min_models or (method.max_models is not None and models > method.max_models):
        wanted = f"{method.min_models} {'model' if method.max_models == 1 else 'models'}"
        if method.max_models is None:
            wanted = f"{method.min_models} or more models"
        besides = "" if method.base is Base.MODEL else " besides the base"
        raise GgufmergeError(f"{method.name} merges {wanted}{besides}, not {models}")
    for i, array in enumerate(arrays[1:], start=1):
        if array.shape != arrays[0].shape:
            raise GgufmergeError(f"the arrays must have one shape: number {i} is {array.shape}, not {arrays[0].shape}")
    if arrays[0].ndim == 0:
        raise GgufmergeError("a single number has no rows: give arrays of one axis or more")


def _value(method: Method, q: Parameter, given: Any) -> Value:
    """A parameter's value in its own type; RecipeError when it has another type or lies outside its bounds."""
    if given is None and q.default is None:
        return None
    where = f'{method.name}: "{q.name}"'
    if q.type is bool or q.type is str:
        if not isinstance(given, (bool, np.bool_) if q.type is bool else str):
            raise RecipeError(f"{where} must be {'true or false' if q.type is bool else 'a word'}, not {given!r}")
    elif isinstance(given, (bool, np.bool_)) or not isinstance(given, (int, float, np.integer, np.floating)):
        raise RecipeError(f"{where} must be a number, not {given!r}")
    elif not np.isfinite(given) or (q.type is int and given != int(given)):
        raise RecipeError(f"{where} must be {'a whole' if q.type is int else 'a finite'} number, not {given}")
    value: Value = q.type(given)
    if q.choices and value not in q.choices:
        raise RecipeError(f'{where}: unknown value "{value}": {nearest(str(value), q.choices)}')
    if isinstance(value, (int, float)) and not (
        (q.low is None or q.low <= value) and (q.high is None or value <= q.high)
    ):
        raise RecipeError(f"{where} must lie in {_interval(q)}, not {value}")
    return value


def _interval(q: Parameter) -> str:
    low = "-∞" if q.low is None else f"{q.low:g}"
    high = "∞" if q.high is None else f"{q.high:g}"
    return f"{low} … {high}"
