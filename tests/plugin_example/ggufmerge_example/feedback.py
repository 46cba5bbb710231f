"""An encoder: changes are rounded at random, so that the sum of each group of weights stays the same, to one step."""

import numpy as np

from ggufmerge.quants.encoders import Encoder
from ggufmerge.quants.units import units


class Feedback(Encoder):
    name = "feedback"
    needs_grid = True  # only for changes of weights that lie on the grid of their type already

    def targets(self, codec, piece):
        if piece.base is None or piece.blocks is None:  # not a change of anything, or not of blocks of this type
            return piece.rows
        rows, n = piece.rows.shape
        steps = np.abs(units(piece.blocks, codec.type)) * codec.grid.spacing
        group = n // steps.shape[1]
        step = np.repeat(steps, group, axis=1)
        change = np.divide(piece.rows - piece.base, step, out=np.zeros_like(step), where=step > 0)
        luck = np.empty(rows * n, np.uint32)
        piece.chance(luck)  # the same for the same weights, however rows are cut
        start = luck.reshape(rows, -1, group)[:, :, :1] / 2**32
        sums = np.floor(np.cumsum(change.reshape(rows, -1, group), axis=2) + start)
        moved = np.diff(sums, axis=2, prepend=0).reshape(rows, n)
        return np.where(step > 0, piece.base + step * moved, piece.rows).astype(np.float32)


feedback = Feedback()
