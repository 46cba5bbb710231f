"""The merge methods as their formulas read: whole tensors, float64, sorting where a rank is wanted.

Each function takes float32 arrays of any one shape and gives float64 of that shape.
"""

from __future__ import annotations

import numpy as np


def linear(tensors, weight, normalize=True):
    total = sum(w * x.astype(np.float64) for w, x in zip(weight, tensors, strict=True))
    return total / sum(weight) if normalize else total


def slerp(a, b, t):
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = np.sum(a * b) / (_norm(a) * _norm(b))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def _norm(x):
    norm = np.sqrt(np.sum(x * x))
    return norm if norm > 1e-8 else 1.0


def trim(d, density):
    """The k elements of largest magnitude, equal ones by index; zeros elsewhere."""
    k = max(1, int(density * d.size)) if density > 0 else 0
    keep = np.argsort(-np.abs(d).reshape(-1), kind="stable")[:k]
    out = np.zeros(d.size, d.dtype)
    out[keep] = d.reshape(-1)[keep]
    return out.reshape(d.shape)


def rescaled(d, kept):
    """kept, scaled to the L1 norm of d."""
    before, after = np.abs(d.astype(np.float64)).sum(), np.abs(kept.astype(np.float64)).sum()
    return kept * (before / after) if before >= 1e-7 and after >= 1e-7 else kept.astype(np.float64)


def task_vectors(base, kept, weight, scale=1.0, normalize=False, vote=False, count=False):
    """base + scale · consensus of the surviving differences `kept`, one array per model."""
    changes = np.stack([w * d.astype(np.float64) for w, d in zip(weight, kept, strict=True)])
    weights = np.array(weight, np.float64).reshape(-1, *[1] * base.ndim)
    agrees = np.ones(changes.shape, bool)
    if vote:
        elected = np.where((np.sign(changes) if count else changes).sum(axis=0) >= 0, 1, -1)
        agrees = np.sign(changes) == elected
    total = (changes * agrees).sum(axis=0)
    if normalize:
        divisor = (weights * agrees).sum(axis=0)
        small = 1e-12 * np.abs(weights).sum() if vote else 1e-8
        total = total / np.where(np.abs(divisor) > small, divisor, 1)
    return base.astype(np.float64) + scale * total


def philox(counter, key):
    """Philox4x32-10 of four counter words and two key words, in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3
