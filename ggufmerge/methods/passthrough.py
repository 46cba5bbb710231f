"""One model's weights as they are, or scaled: the building block of layer stacks ("frankenmerges")."""

from __future__ import annotations

import numpy as np

from ggufmerge.methods.combination import Coefficients, Combination
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Base, Problem


class Passthrough(Combination[Coefficients]):
    name = "passthrough"
    summary = "one model's weights, unchanged or scaled"
    advice = (
        "Layers to stack, leave out or repeat (slices), or a model that a recipe only changes the types or metadata of."
    )
    example_models = 1
    base = Base.MODEL
    max_models = 1
    parameters = (Parameter("scale", "model", float, "factor on the weights; none leaves them alone", None),)

    def untouched(self, p: Problem) -> int | None:
        return 0 if _scale(p) == 1 else None

    def statistics(self, p: Problem) -> Coefficients:
        return np.array([_scale(p)])


def _scale(p: Problem) -> float:
    """The factor; 1 when none was given (None, which a float64 array holds as NaN)."""
    scale = float(p.models["scale"][0])
    return 1.0 if np.isnan(scale) else scale


METHODS = {"passthrough": Passthrough()}
