"""What encoding did to values, as sums over them."""

from __future__ import annotations

import numpy as np

from ggufmerge.kernels import kernel


@kernel
def squares(rows, back):
    """Sums over all values of (rows - back)^2 and of rows^2, in float64."""
    error = energy = 0.0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            x = np.float64(rows[i, j])
            d = x - np.float64(back[i, j])
            error += d * d
            energy += x * x
    return error, energy


@kernel
def kept_change(base, rows, back):
    """Sums over all values of (back - base) * (rows - base) and of (rows - base)^2, in float64."""
    kept = change = 0.0
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            old = np.float64(base[i, j])
            wanted = np.float64(rows[i, j]) - old
            kept += wanted * (np.float64(back[i, j]) - old)
            change += wanted * wanted
    return kept, change


@kernel
def block_sums(base, rows, back, plain):
    """float64 [6, blocks]: of each row the sums of (back - base) * change, change^2, (back - rows)^2, (plain - base)^2
    and base^2, where change = rows - base, and the number of its values. All arguments are float32 [blocks, values].
    """
    sums = np.zeros((6, rows.shape[0]))
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            old = np.float64(base[i, j])
            new = np.float64(rows[i, j])
            found = np.float64(back[i, j])
            bare = np.float64(plain[i, j])
            sums[0, i] += (found - old) * (new - old)
            sums[1, i] += (new - old) * (new - old)
            sums[2, i] += (found - new) * (found - new)
            sums[3, i] += (bare - old) * (bare - old)
            sums[4, i] += old * old
        sums[5, i] = rows.shape[1]
    return sums
