"""Model breadcrumbs: prune each difference to the elements between its smallest and its largest.

Of n elements, the int(gamma · n) largest magnitudes go first, then as many of the smallest as it takes to leave
int(density · n); where the density asks for more than that leaves, fewer of the largest go. Density 1 prunes nothing.

Source: Davari and Belilovsky, "Model breadcrumbs" (2023, arXiv:2312.06795).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Problem
from ggufmerge.methods.task_vectors import TaskVectors
from ggufmerge.methods.ties import ByMagnitude, mostly_rounding

OF_JUMPS = 0.1  # share of the elements that jump which may be dropped as outliers


class WithoutOutliers(ByMagnitude):
    """Keep the middle of the magnitudes."""

    parameters = (
        *ByMagnitude.parameters,
        Parameter("gamma", "model", float, "share of the largest elements to drop", 0.01, low=0, high=1),
    )

    def heeded(self, p: Problem) -> str:
        dropped = (p.models["gamma"] > 0) & ~self.keeps_all(p) & ~self.keeps_none(p) & (p.models["weight"] != 0)
        return "gamma is lowered where a difference is mostly rounding" if dropped.any() else ""

    def with_signal(self, p: Problem, shares: NDArray[np.float64]) -> Problem:
        """With a gamma that is at most a tenth of the share where a difference is mostly rounding.

        Between files on nearly one grid a change of a small part of a step shows as a jump of a whole step in this part
        of the elements. So about as large a share of the elements as the change has of the square jumps; these hold all
        of the change, and are the largest.
        """
        gamma = p.models["gamma"]
        lowered = np.minimum(gamma, OF_JUMPS * shares)
        return replace(p, models={**p.models, "gamma": np.where(mostly_rounding(shares), lowered, gamma)})

    def ranks(self, p: Problem, i: int) -> tuple[int, int]:
        elements = p.shape[0] * p.shape[1]
        keep = int(p.models["density"][i] * elements)
        smallest = max(0, elements - keep - int(p.models["gamma"][i] * elements))
        return elements - smallest - keep, elements - smallest


METHODS = {
    "breadcrumbs": TaskVectors(
        "breadcrumbs",
        "drop the largest and the smallest elements of the differences, add",
        "Model breadcrumbs, arXiv:2312.06795",
        WithoutOutliers(),
        rescale=False,
        advice="Fine-tunes with a few very large changes that spoil the sum: they are dropped, as are the smallest.",
        example=(("weight", 0.5), ("density", 0.9)),
    ),
    "breadcrumbs_ties": TaskVectors(
        "breadcrumbs_ties",
        "drop the largest and the smallest elements of the differences, elect signs, add what agrees",
        "Model breadcrumbs, arXiv:2312.06795",
        WithoutOutliers(),
        vote=True,
        rescale=False,
        advice="As breadcrumbs, where the fine-tunes pull in different directions.",
        example=(("weight", 0.5), ("density", 0.9)),
    ),
}
