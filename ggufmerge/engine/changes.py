"""What of the differences between models is a change of weights, and what is rounding (`ggufmerge.noise`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ggufmerge.noise.change import cosine, same_sign
from ggufmerge.sources.rounding import Found

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
