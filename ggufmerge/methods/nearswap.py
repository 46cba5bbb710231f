"""NearSwap: take over the other model where it is close to the base, less and less where it is not.

    w = t / |other - base|, at most 1        result = w · other + (1 - w) · base

So every element moves towards the other model by t at most.

Source: the model card of alchemonaut/QuartetAnemoi-70B-t0.0001 (2024).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Chunk, Method, Problem, Stack

NO_DIFFERENCE = 1e-6  # differences below it count as this
NO_SHARE = 1e-3  # a share of change below it counts as this


class NearSwap(Method[None]):
    name = "nearswap"
    summary = "move each element towards the other model, by a fixed step at most"
    reference = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    advice = (
        "A model that shall stay itself and take over only what lies close by in another. t is a step in the "
        "weights' own units."
    )
    example = (("t", 0.0001),)
    example_models = 1
    max_models = 1
    pair = True
    parameters = (Parameter("t", "shared", float, "the longest step an element may take", low=0, example="0.001"),)

    def untouched(self, p: Problem) -> int | None:
        return 0 if p.shared["t"] == 0 else None

    def heeded(self, p: Problem) -> str:
        return "t is raised where a difference is mostly rounding"

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        """With t over the share.

        Between files on nearly one grid a change of a small part of a step shows as a jump of a whole step in this part
        of the elements: fewer elements have to move the further, for all of them to move as far on average.
        """
        return replace(p, shared={**p.shared, "t": p.number("t") / max(float(shares[0]), NO_SHARE)})

    def combine(self, x: Stack, p: Problem, statistics: None, chunk: Chunk, out: NDArray[np.float32]) -> None:
        step_towards(x, p.number("t"), out)


@kernel
def step_towards(x, t, out):
    """out = x[0] moved towards x[1] by the NearSwap rule."""
    for r in range(x.shape[1]):
        base, other, target = x[0, r], x[1, r], out[r]
        for j in range(target.size):
            a, b = np.float64(base[j]), np.float64(other[j])
            w = min(1.0, t / max(abs(b - a), NO_DIFFERENCE))
            target[j] = np.float32(w * b + (1.0 - w) * a)


METHODS = {"nearswap": NearSwap()}
