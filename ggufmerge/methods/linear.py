"""Weighted average: Σ wᵢ Wᵢ / Σ wᵢ.

Source: "Model soups" (Wortsman et al., 2022, arXiv:2203.05482).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.methods.combination import Coefficients, Combination
from ggufmerge.methods.parameters import ClashError, Parameter
from ggufmerge.methods.spec import Base, Problem
from ggufmerge.methods.sums import exact_sum


class Linear(Combination[Coefficients]):
    name = "linear"
    summary = "weighted average of the models"
    reference = "Model soups, arXiv:2203.05482"
    advice = "Fine-tunes of one base without the base at hand, or checkpoints of one training. The safest first try."
    example = (("weight", 0.5),)
    base = Base.MODEL
    parameters = (
        Parameter("weight", "model", float, "share of this model; may be negative", 1.0, together=True),
        Parameter("normalize", "shared", bool, "divide by the sum of the weights", True),
    )

    def check(self, p: Problem) -> None:
        if p.shared["normalize"]:
            check_divisible(p.models["weight"], "normalize")

    def untouched(self, p: Problem) -> int | None:
        weight = p.models["weight"]
        used = np.flatnonzero(weight)
        if len(used) == 1 and (p.shared["normalize"] or weight[used[0]] == 1):
            return int(used[0])
        return None

    def statistics(self, p: Problem) -> Coefficients:
        weight = p.models["weight"]
        return weight / exact_sum(weight) if p.shared["normalize"] else weight


def check_divisible(weight: NDArray[np.float64], switch: str | None) -> None:
    """ClashError when the weights sum to zero, but for rounding. switch: the parameter that turns the division off."""
    if abs(exact_sum(weight)) <= 1e-12 * np.abs(weight).sum():
        way_out = f" or set `{switch}: false`" if switch else ""
        raise ClashError(f"the weights sum to zero, so the average is undefined: change a weight{way_out}", "weight")


METHODS = {"linear": Linear()}
