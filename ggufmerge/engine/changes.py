"""What of the differences between models is a change of weights, and what is rounding (`ggufmerge.noise`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.noise.change import (
    BINS,
    CLASSES,
    Estimate,
    Rounding,
    Stored,
    add_pairs,
    cosine,
    estimate,
    exact,
    same_sign,
)
from ggufmerge.noise.steps import GROUP, groups_of
from ggufmerge.sources.model import SourceTensor
from ggufmerge.sources.rounding import fill_steps
from ggufmerge.types import TensorType

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]


# Relative error of a change no larger than the noise: the estimate takes changes to be normally distributed. Those of
# two fine-tunes of SmolLM2-135M, which are not, it found 3 to 6 % too small in Q8_0, Q4_0 and Q4_K_M (docs/diff.md).
_MODEL = 0.07


@dataclass(frozen=True)
class Beside:
    """A difference between two models beside the rounding of both. Sizes are RMS over that of the one it starts from,
    infinite when that is zero.

    seen: of the difference.
    noise: of the rounding errors that are in it.
    change: of the change that is likely to be behind it; NaN when it is too small to be seen.
    error: standard error of `change`, with what is not known of how real changes are distributed (`_MODEL`).
    limit: what a change would have to be at least to be seen, where it is not; else NaN.
    signal_to_noise: change / noise, infinite without noise; NaN like `change`.
    identical_blocks: share of the blocks of which all values are the same.
    """

    seen: float
    noise: float
    change: float
    error: float
    limit: float
    signal_to_noise: float
    identical_blocks: float


@dataclass(frozen=True)
class Signal:
    """The changes of some weights.

    difference: from the first model to the second.  changes: from the base to each model; empty without one.
    cosines: of each two of these changes, freed of the rounding that they have in common; NaN where one of them cannot
        be seen.
    same_signs: share of the weights that both move in the same direction, as normally distributed changes of this
        cosine do.
    """

    difference: Beside
    changes: tuple[Beside, ...]
    cosines: tuple[tuple[float, ...], ...]
    same_signs: tuple[tuple[float, ...], ...]


class Pairs:
    """Which models are compared: the first with the second, or all that are tuned from a base with it and each other.

    models: numbers of the models, in the order in which they were given.  base: that of the base, None without one.
    pairs: numbers of two models each.
    """

    def __init__(self, models: Sequence[int], base: int | None) -> None:
        self.models, self.base = tuple(models), base
        between = list(combinations(self.models, 2))
        self.pairs = between if base is None else between + [(base, model) for model in self.models]

    def signal(self, found: Found) -> Signal:
        """What was found, in words of models."""
        shown = {pair: _beside(found, i, pair[0]) for i, pair in enumerate(self.pairs)}
        estimates = dict(zip(self.pairs, found.estimates, strict=True))

        def alike(a: int, b: int) -> float:
            assert self.base is not None
            if a == b:
                one = estimates[self.base, a]
                return 1.0 if one.change and one.visible else math.nan
            return cosine(estimates[self.base, a], estimates[self.base, b], estimates[min(a, b), max(a, b)])

        tuned = self.models if self.base is not None else ()
        cosines = tuple(tuple(alike(a, b) for b in tuned) for a in tuned)
        return Signal(
            difference=shown[self.models[0], self.models[1]],
            changes=tuple(shown[self.base, model] for model in tuned if self.base is not None),
            cosines=cosines,
            same_signs=tuple(tuple(same_sign(c) for c in row) for row in cosines),
        )


@dataclass(frozen=True)
class Found:
    """Of some weights, to be added up.

    estimates: of each pair.  blocks: float64 [pairs, 2], identical ones and all.  energies: float64 [models], sums of
    the squares of the weights.
    """

    estimates: tuple[Estimate, ...]
    blocks: Sums
    energies: Sums

    def __add__(self, other: Found) -> Found:
        both = zip(self.estimates, other.estimates, strict=True)
        return Found(tuple(a + b for a, b in both), self.blocks + other.blocks, self.energies + other.energies)

    @classmethod
    def nothing(cls, pairs: int, models: int) -> Found:
        return cls((Estimate(),) * pairs, np.zeros((pairs, 2)), np.zeros(models))


class Gathering:
    """Sums over one tensor while its rows stream by. inputs: by the numbers of `pairs`; None for a row of zeros that
    stands for no model."""

    def __init__(self, inputs: Sequence[SourceTensor | None], matrices: Sequence[str | None], pairs: Pairs) -> None:
        self._inputs, self._pairs = inputs, pairs.pairs
        self._index = np.array(self._pairs, np.int64)
        self._roundings = [
            Rounding(reader.type, matrix, reader.rank > 0) if reader else Rounding(TensorType.F32)
            for reader, matrix in zip(inputs, matrices, strict=True)
        ]
        self._blocks = np.array([self._block(a, b) for a, b in self._pairs], np.int64)
        self._sums = np.zeros((len(self._pairs), CLASSES, BINS, 4))
        self._same = np.zeros((len(self._pairs), 2))
        self._squares = np.zeros((2, len(inputs)))  # of the values, and of their steps

    def _block(self, a: int, b: int) -> int:
        """How many groups a block of both has."""
        first, second = (self._roundings[i].kind for i in (a, b))
        reader = self._inputs[a]
        fits = reader is not None and groups_of(reader.n) * GROUP == reader.n
        return max(first.block_size // GROUP, 1) if first == second and fits else 1

    def partial(self, start: int, x: Floats) -> tuple[Sums, Sums, Sums]:
        """Of rows [start, start + k) of all models, float32 [models, k, n]; a thread's part of the work."""
        models, rows, n = x.shape
        steps = np.zeros((models, rows, groups_of(n)), np.float32)
        for i, reader in enumerate(self._inputs):
            if reader is not None:
                fill_steps(reader, start, x[i], steps[i])
        sums, same = np.zeros_like(self._sums), np.zeros_like(self._same)
        add_pairs(x, steps, self._index, self._blocks, sums, same)
        size = n // max(steps.shape[2], 1)
        squares = [[float(np.vdot(x[i], x[i])), size * float(steps[i].sum(dtype=np.float64))] for i in range(models)]
        return sums, same, np.array(squares).T

    def fold(self, part: tuple[Sums, Sums, Sums]) -> None:
        """Add a part."""
        self._sums += part[0]
        self._same += part[1]
        self._squares += part[2]

    def found(self) -> Found:
        """Of the whole tensor."""
        stored = [Stored(r, *self._squares[:, i].tolist()) for i, r in enumerate(self._roundings)]
        estimates = []
        for (a, b), sums in zip(self._pairs, self._sums, strict=True):
            first, second = self._inputs[a], self._inputs[b]
            shared = first is not None and second is not None and first.same_data(second)
            estimates.append(exact(sums) if shared else estimate(sums, stored[a], stored[b]))
        return Found(tuple(estimates), self._same, self._squares[0])


def _beside(found: Found, pair: int, start: int) -> Beside:
    one, energy = found.estimates[pair], float(found.energies[start])
    same, blocks = found.blocks[pair].tolist()

    def relative(square: float) -> float:
        return math.sqrt(square / energy) if energy else (math.inf if square else 0.0)

    change = relative(one.change) if one.visible else math.nan
    noise = relative(one.noise)
    return Beside(
        seen=relative(one.seen),
        noise=noise,
        change=change,
        error=math.hypot(change * one.error / (2 * one.change), _MODEL * min(change, noise)) if one.change else 0.0,
        limit=math.nan if one.visible else relative(max(one.needed, one.change)),
        signal_to_noise=change / noise if noise else (math.inf if change else math.nan),
        identical_blocks=same / blocks if blocks else 1.0,
    )
