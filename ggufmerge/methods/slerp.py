"""Spherical linear interpolation between a base and another model, tensor by tensor, and chains of it.

For a fraction t, with θ the angle between the base's tensor a and the other's b (both as one flat vector):

    sin((1 - t) θ) / sin θ · a  +  sin(t θ) / sin θ · b

t = 0 gives the base and t = 1 the other. Nearly parallel tensors (|cos θ| > 0.9995, nearly opposite ones included) are
interpolated linearly, as mergekit does, and the report says so. A tensor with a norm of 1e-8 or less enters the cosine
as it is.

`chain: true` merges more than two models, one after the other: the result so far takes the part of a, the next model
that of b. Every step stays a linear combination of the inputs, so one Gram matrix serves the whole chain.

Source: Shoemake, "Animating rotation with quaternion curves" (SIGGRAPH 1985).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggufmerge.methods.combination import Coefficients, Combination, gram, inner_product
from ggufmerge.methods.parameters import ClashError, Parameter
from ggufmerge.methods.spec import Base, Passes, Problem

PARALLEL = 0.9995  # |cos θ| above this: lerp
NO_NORM = 1e-8  # a vector this short has no direction


class Slerp(Combination[tuple[Coefficients, list[float]]]):
    name = "slerp"
    summary = "spherical interpolation from the base to another model"
    reference = "Shoemake 1985"
    advice = (
        "Two models to blend smoothly: t 0.3 stays near base_model, 0.7 near the other. Fine-tunes of one base "
        "are so alike that it equals linear."
    )
    example = (("t", 0.5),)
    example_models = 1
    base = Base.REQUIRED
    pair = True
    parameters = (
        Parameter(
            "t", "shared", float, "how far to go from the base (0) to the other model (1)", usual=(0, 1), example="0.5"
        ),
        Parameter("chain", "shared", bool, "interpolate on to each further model in turn", False),
        Parameter("chain_t", "model", float, "`t` of this model's step in a chain; none takes `t`", None),
    )

    def check(self, p: Problem) -> None:
        if p.shared["chain"]:
            return
        if p.others != 1:
            raise ClashError(
                f"slerp goes from the base to one model, not to {p.others}: list only one, or set `chain: true` under "
                "parameters to go on to each in turn"
            )
        if not np.isnan(p.models["chain_t"]).all():
            raise ClashError("`chain_t` is read only with `chain: true`; use `t`", "chain_t")

    def untouched(self, p: Problem) -> int | None:
        reached: int | None = 0
        for k, t in enumerate(_fractions(p), start=1):
            if t == 1:
                reached = k
            elif t != 0:
                reached = None
        return reached

    def passes(self, p: Problem) -> Passes[tuple[Coefficients, list[float]]]:
        products = yield from gram(p)
        coefficients = np.zeros(p.inputs)
        coefficients[0] = 1.0
        cosines = []
        for k, t in enumerate(_fractions(p), start=1):
            step = np.zeros(p.inputs)
            step[k] = 1.0
            a, b, cosine = slerp_coefficients(
                t,
                inner_product(coefficients, coefficients, products),
                inner_product(coefficients, step, products),
                inner_product(step, step, products),
            )
            coefficients = a * coefficients + b * step
            cosines.append(cosine)
        return coefficients, cosines

    def coefficients(self, statistics: tuple[Coefficients, list[float]]) -> Coefficients:
        return statistics[0]

    def notes(self, p: Problem, statistics: tuple[Coefficients, list[float]]) -> list[str]:
        step = "step {} of the chain: " if p.shared["chain"] else ""
        return [
            step.format(k) + _NEARLY[cosine > 0].format(cosine)
            for k, cosine in enumerate(statistics[1], start=1)
            if abs(cosine) > PARALLEL
        ]


_NEARLY = {  # nearly parallel, nearly opposite
    True: "so alike (cosine {:.4f}) that slerp equals linear there; this is normal for fine-tunes of one base",
    False: "so opposite (cosine {:.4f}) that slerp is linear there, and cancels; are these fine-tunes of one base?",
}


def slerp_coefficients(t: float, aa: float, ab: float, bb: float) -> tuple[float, float, float]:
    """Coefficients of a and b, and the cosine between them, from their inner products."""
    norm_a, norm_b = math.sqrt(max(aa, 0.0)), math.sqrt(max(bb, 0.0))
    cosine = ab / (norm_a if norm_a > NO_NORM else 1.0) / (norm_b if norm_b > NO_NORM else 1.0)
    if abs(cosine) > PARALLEL:
        return 1.0 - t, t, cosine
    theta = math.acos(cosine)
    return math.sin((1.0 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta), cosine


def _fractions(p: Problem) -> NDArray[np.float64]:
    """t of each step, float64 [inputs - 1]."""
    t = p.models["chain_t"]
    return np.where(np.isnan(t), p.number("t"), t)


METHODS = {"slerp": Slerp()}
