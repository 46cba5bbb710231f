"""Weighted average: Σ wᵢ Wᵢ / Σ wᵢ.

Source: "Model soups" (Wortsman et al., 2022, arXiv:2203.05482).
"""

from __future__ import annotations

import math

import numpy as np

from ggufmerge.methods.combination import Combination
from ggufmerge.methods.spec import Base, Parameter, Passes, Problem


class Linear(Combination):
    name = "linear"
    summary = "weighted average of the models"
    reference = "Model soups, arXiv:2203.05482"
    base = Base.MODEL
    parameters = (
        Parameter("weight", "model", float, "share of this model; may be negative"),
        Parameter("normalize", "shared", bool, "divide by the sum of the weights", True),
    )

    def check(self, p: Problem) -> None:
        if p.shared["normalize"] and not _divisible(p):
            raise ValueError(
                "the weights sum to zero, so the average is undefined: change a weight or set `normalize: false`"
            )

    def untouched(self, p: Problem) -> int | None:
        weight = p.models["weight"]
        used = np.flatnonzero(weight)
        if len(used) == 1 and (p.shared["normalize"] or weight[used[0]] == 1):
            return int(used[0])
        return None

    def passes(self, p: Problem) -> Passes:
        weight = p.models["weight"]
        return weight / math.fsum(weight) if p.shared["normalize"] else weight
        yield


def _divisible(p: Problem) -> bool:
    """Whether the weights sum to something else than the rounding error of zero."""
    weight = p.models["weight"]
    return bool(abs(math.fsum(weight)) > 1e-12 * np.abs(weight).sum())


METHODS = {"linear": Linear()}
