"""The parameters of merge methods: which values they take, and what is said of all others.

Recipes, plans and `merge` have their values checked by `Parameter.parse` and `Method.bind` and nowhere else. What these
say is the same everywhere; the callers add where the value was written, and where one that is missing belongs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ggufmerge.errors import close_to
from ggufmerge.text import human_number, shown

Value = float | bool | int | str | None

REQUIRED: Any = object()  # a parameter without a default
LEFT_OUT: Any = object()  # in a list of values, one for each model: this model has none


@dataclass(frozen=True)
class Parameter:
    """A number or switch that a recipe may set.

    scope: "shared" has one value per output tensor; "model" has one per model that is not the base (per input for
    methods with `Base.MODEL`).
    low, high: inclusive bounds, None when unbounded.  usual: the range that makes sense where no bound is.
    together: of a per-model parameter: its default holds only where no model has a value; one that is left out while
    others have theirs was forgotten.
    example: a value for messages.
    """

    name: str
    scope: Literal["shared", "model"]
    type: type[float] | type[bool] | type[int] | type[str]
    doc: str
    default: Value = REQUIRED
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    usual: tuple[float, float] | None = None
    together: bool = False
    example: str = "1"

    def parse(self, value: Any, *, anchor: bool = False) -> Value:
        """A value in the parameter's own type; ValueError says what is wrong with it.

        As in mergekit a number may be written as a text ("0.5") and a switch as 0 or 1. None is a value only where it
        is the default, and means just that.
        anchor: it is one of a gradient's, which are neither None nor of a parameter that takes whole numbers.
        """
        if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
            value = value.item()
        if anchor and self.type is int:
            raise ValueError(f'"{self.name}" is a whole number, which has no gradient')
        if value is None and self.default is None and not anchor:
            return None
        if self.type is bool:
            return self._switch(value)
        if self.type is str:
            return self._word(value)
        return self._number(value)

    def doubt(self, value: Value) -> str:
        """What to ask about a value that is allowed but makes no sense; "" for any other."""
        if self.usual is None or isinstance(value, str) or value is None:
            return ""
        low, high = self.usual
        if low <= value <= high:
            return ""
        percent = _percent(value, low, high) if value >= 10 else ""
        return f'"{self.name}" is {value:g}, but makes sense from {low:g} to {high:g}: {self.doc}{percent}'

    def _switch(self, value: Any) -> bool:
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f'"{self.name}" is true or false, not {shown(value)}')
        return bool(value)

    def _word(self, value: Any) -> str:
        if isinstance(value, str) and value in self.choices:
            return value
        near = close_to(value, self.choices) if isinstance(value, str) else None
        hint = "" if near is None else f': did you mean "{near}"?'
        raise ValueError(f'"{self.name}" is one of {", ".join(self.choices)}, not {shown(value)}{hint}')

    def _number(self, value: Any) -> float | int:
        try:
            if not isinstance(value, int | float | str) or isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (ValueError, OverflowError):
            meant = human_number(value) if isinstance(value, str) else None
            todo = "" if meant is None else f": write {meant:g}"
            raise ValueError(f'"{self.name}" is a number, not {shown(value)}{todo}') from None
        if not math.isfinite(number):
            raise ValueError(f'"{self.name}" is a finite number, not {shown(value)}')
        low, high = self.low, self.high
        if (low is not None and number < low) or (high is not None and number > high):
            raise ValueError(f'"{self.name}" is {self._bounds()}, not {shown(value)}{_percent(number, low, high)}')
        if self.type is not int:
            return number
        if number != int(number):
            raise ValueError(f'"{self.name}" is a whole number, not {shown(value)}')
        return int(number)

    def _bounds(self) -> str:
        if self.high is None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.low is None else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Complaint:
    """What is wrong with the values that a method was given.

    about: the parameter to blame, "" for the number of models.
    model: whose value it is, as a position among the models that are not the base; None when it is that of all.
    missing: the value is needed and not there. Of a model's own, `what` then follows the name of the model, and in any
    case it is followed by what to write.
    """

    what: str
    about: str = ""
    model: int | None = None
    missing: bool = False


class BindError(ValueError):
    """Values that a method cannot merge with; `complaints` says all that is wrong with them."""

    def __init__(self, *complaints: Complaint) -> None:
        super().__init__("; ".join(complaint.what for complaint in complaints))
        self.complaints = complaints


class ClashError(ValueError):
    """Parameter values that cannot be used together. about: the parameter to blame, "" for the number of models."""

    def __init__(self, what: str, about: str = "") -> None:
        super().__init__(what)
        self.about = about


class ScopeError(ValueError):
    """A value for each model, of a parameter that all models share."""


def _percent(value: float, low: float | None, high: float | None) -> str:
    """For a percentage where a share is wanted: how it is written."""
    return f"; for {value:g} % write {value / 100:g}" if (low, high) == (0, 1) and 1 < value <= 100 else ""
