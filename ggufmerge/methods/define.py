"""A merge method from a plain function: `merge_method`, for what needs no more than the rows at hand.

    @merge_method
    def median(models: Array, base: Array) -> Array:
        "the middle one of the values of the models"
        return np.median(models, axis=0)

A method that needs to know a whole tensor first, or that says which tensors it leaves untouched, is a `Method` (see
`spec.py`). The idea is mergekit's `easy_define`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints, overload

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import PluginError
from ggufmerge.methods.parameters import REQUIRED, Parameter
from ggufmerge.methods.spec import Base, Chunk, Method, Problem, Stack

Array = NDArray[np.float32]
Merge = Callable[..., NDArray[Any]]


@dataclass(frozen=True)
class Between:
    """The bounds of a parameter, both inclusive; None for none: `Annotated[float, Between(0, 1)]`."""

    low: float | None = None
    high: float | None = None


class FunctionMethod(Method[None]):
    """A method that a function describes and computes; calling it calls the function."""

    def __init__(self, function: Merge, name: str, reference: str, advice: str, min_models: int) -> None:
        self.function, self.name, self.reference, self.advice = function, name, reference, advice
        self.min_models = min_models
        self.example_models = max(2, min_models)
        self.summary = (inspect.getdoc(function) or "").partition("\n")[0]
        arrays, options = _signature(function, name)
        self.base = Base.MODEL
        if len(arrays) == 2:
            self.base = Base.REQUIRED if arrays[1].default is inspect.Parameter.empty else Base.OPTIONAL
        hints = get_type_hints(function, include_extras=True)
        self.parameters = tuple(_parameter(option, hints.get(option.name)) for option in options)

    def __call__(self, *arrays: Any, **options: Any) -> NDArray[Any]:
        return self.function(*arrays, **options)

    def combine(self, x: Stack, p: Problem, statistics: None, chunk: Chunk, out: Array) -> None:
        arrays: list[Any] = [x[int(p.has_base) :]]
        if self.base is not Base.MODEL:
            arrays.append(x[0] if p.has_base else None)
        options = {_keyword(self.function, name): value for name, value in {**p.shared, **p.models}.items()}
        result = np.asarray(self.function(*arrays, **options))
        if result.shape != out.shape:
            raise PluginError(
                f"{self.name}: its function gives an array of shape {result.shape} for models of shape {out.shape}"
            )
        out[:] = result


@overload
def merge_method(function: Merge) -> FunctionMethod: ...


@overload
def merge_method(
    *, name: str | None = None, reference: str = "", advice: str = "", min_models: int = 1
) -> Callable[[Merge], FunctionMethod]: ...


def merge_method(
    function: Merge | None = None,
    *,
    name: str | None = None,
    reference: str = "",
    advice: str = "",
    min_models: int = 1,
) -> FunctionMethod | Callable[[Merge], FunctionMethod]:
    """Make a merge method of an annotated function, as a decorator.

    The function is given some rows of one tensor at a time, the same ones of all models, from any thread, and returns
    the merged rows. A row of the result may depend on the same row of the models only.

    function(models, base, *, parameters...):
        models: float32 [models, rows, n], in the order of the recipe, without the base.
        base: float32 [rows, n]. A function without it takes `base_model` as one more model; one with `base=None` works
            with a base and without.
        parameters: keywords of the type float, int, bool or Literal["...", ...]; `list[float]` for one value per model,
            which comes as float64 [models], NaN for None. `Annotated[float, Between(0, 1), "what it does"]` says more.
            An underscore at the end of a name is not part of the parameter's: `lambda_`.
    name: of the method, by default that of the function; its summary is the first line of the docstring.
    min_models: how many models it takes at least, the base not counted.
    TypeError for a function that cannot be one.
    """

    def made(function: Merge) -> FunctionMethod:
        return FunctionMethod(function, name or function.__name__, reference, advice, min_models)

    return made if function is None else made(function)


def _signature(function: Merge, name: str) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
    """The arrays that a function takes, and its options."""
    every = list(inspect.signature(function).parameters.values())
    arrays = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    options = [p for p in every if p.kind is p.KEYWORD_ONLY]
    if not 1 <= len(arrays) <= 2 or len(arrays) + len(options) != len(every):
        raise TypeError(f"{name} takes (models), (models, base) or (models, base=None), and parameters behind a *")
    return arrays, options


def _keyword(function: Merge, parameter: str) -> str:
    return parameter if parameter in inspect.signature(function).parameters else f"{parameter}_"


def _parameter(option: inspect.Parameter, hint: Any) -> Parameter:
    """The parameter that an option of a function is."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    doc = next((note for note in notes if isinstance(note, str)), "")
    bounds = next((note for note in notes if isinstance(note, Between)), Between())
    name = option.name.removesuffix("_")
    default = REQUIRED if option.default is option.empty else option.default
    scope: Literal["model", "shared"] = "model" if kind == list[float] else "shared"
    choices: tuple[str, ...] = get_args(kind) if get_origin(kind) is Literal else ()
    type_ = float if scope == "model" else str if choices else kind
    if type_ not in (float, int, bool) and not (choices and all(isinstance(choice, str) for choice in choices)):
        raise TypeError(f'{option.name} is a float, an int, a bool, a Literal["...", ...] or a list[float], not {kind}')
    example = choices[0] if choices else "true" if type_ is bool else "1"
    found = Parameter(name, scope, type_, doc, default, bounds.low, bounds.high, choices, example=example)
    if default is not REQUIRED:
        found.parse(default)
    return found
