"""A merge method: the middle of what the models changed."""

from typing import Annotated

import numpy as np

from ggufmerge import Between, merge_method


@merge_method(advice="Three or more fine-tunes of one base, when a single one should not decide.", min_models=2)
def middle(
    models: np.ndarray,  # float32 [models, rows, n]
    base: np.ndarray,  # float32 [rows, n]
    *,
    weight: list[float] = 1.0,  # one for each model
    share: Annotated[float, Between(0, 1), "how far to go from the base (0) to the middle (1)"] = 1.0,
) -> np.ndarray:
    """the median of the models' weighted differences from the base"""
    changes = (models - base) * np.asarray(weight)[:, None, None]
    return base + share * np.median(changes, axis=0)
