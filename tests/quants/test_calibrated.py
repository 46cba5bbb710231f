"""Calibrated rounding: ordinary blocks whose errors, weighed by the moments of the inputs, are smaller than ggml's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ggufmerge.quants import codec
from ggufmerge.quants.calibrated.forms import FORMS
from ggufmerge.quants.calibrated.kernels import round_groups
from ggufmerge.quants.calibrated.moments import FactoredMoments, Moments, WholeMoments, moments_of
from ggufmerge.quants.calibrated.rounding import encode_calibrated
from ggufmerge.quants.correlations import Correlation, loadings_of, triangle_of
from ggufmerge.quants.lanes import LANES
from ggufmerge.quants.units import units
from ggufmerge.types import TensorType
from tests.quants.laws import INTERPRETED

SHRINKAGE, DAMPING = 0.2, 0.003
# without a compiler a few types on a few columns
KINDS = [TensorType.Q4_0, TensorType.Q4_K, TensorType.NVFP4] if INTERPRETED else list(FORMS)
PASSES = (0, 1) if INTERPRETED else (0, 1, 2)


def columns(kind: TensorType) -> int:
    return max(64, kind.block_size) if INTERPRETED else 512


def inputs(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares, float32 [n], and correlations, float32 [n, n], of inputs that have a few directions in common."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(6, n)) * rng.uniform(0.5, 2, (6, 1))
    x = (rng.normal(size=(400, 6)) @ common + rng.normal(size=(400, n))) * np.exp(rng.normal(size=n) * 0.5)
    h = x.T @ x / len(x)
    root = np.sqrt(np.diag(h))
    return np.diag(h).astype(np.float32), (h / root / root[:, None]).astype(np.float32)


def regularized(power: np.ndarray, c: np.ndarray) -> np.ndarray:
    root = np.sqrt(power.astype(np.float64))
    h = c * root * root[:, None] * (1 - SHRINKAGE)
    h[np.diag_indices(len(h))] = power + DAMPING * power.astype(np.float64).mean()
    return h


def loss(w: np.ndarray, q: np.ndarray, h: np.ndarray) -> float:
    e = w.astype(np.float64) - q
    return float(((e @ h) * e).sum())


def written(kind: TensorType, w: np.ndarray, moments: Moments, **how: int) -> tuple[np.ndarray, np.ndarray]:
    """The blocks and what they hold."""
    raw = np.zeros((len(w), kind.row_bytes(w.shape[1])), np.uint8)
    encode_calibrated(codec(kind), w, moments, raw, **how)
    back = np.empty_like(w)
    codec(kind).dequantize(raw, back)
    return raw, back


def weights(k: int, n: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (k, n)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("rank", [4, 5, 64])
def test_the_few_numbers_of_low_rank_say_what_the_whole_matrix_says(rank: int) -> None:
    """The state of `FactoredMoments` gives the same targets and weights as an elimination of all of H."""
    power, c = inputs(64)
    loadings = loadings_of(c, rank)
    whole = Correlation(loadings=loadings).matrix()
    low = FactoredMoments(power, loadings, shrinkage=SHRINKAGE, damping=DAMPING)
    full = WholeMoments(power, whole, shrinkage=SHRINKAGE, damping=DAMPING)
    np.testing.assert_allclose(low.weights, full.weights, rtol=1e-5)
    np.testing.assert_allclose(low.diagonal, full.diagonal, rtol=1e-5)
    errors = np.random.default_rng(2).normal(size=64).astype(np.float32)
    state = low.factors[:32].T @ errors[:32]
    np.testing.assert_allclose(low.ahead(32, 64) @ state, full.ahead(32, 64) @ errors[:32], rtol=2e-3, atol=1e-4)
    within, full_within = low.within(32, 64), full.within(32, 64)
    np.testing.assert_allclose(np.tril(within, -1), np.tril(full_within, -1), rtol=2e-3, atol=1e-5)


def test_the_elimination_is_that_of_a_cholesky_factor() -> None:
    """H = A^T D A with A of unit lower triangle, as numpy finds it from the reversed matrix."""
    power, c = inputs(48)
    moments = WholeMoments(power, c, shrinkage=SHRINKAGE, damping=DAMPING)
    a = np.eye(48)
    for i in range(48):
        a[i, :i] = moments.ahead(i, i + 1)[0]
    h = regularized(power, c)
    np.testing.assert_allclose(a.T @ np.diag(moments.weights.astype(np.float64)) @ a, h, rtol=1e-4, atol=1e-4)
    factor = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    np.testing.assert_allclose(moments.weights, np.diag(factor) ** 2, rtol=1e-5)


def test_a_group_is_rounded_as_a_plain_loop_rounds_it() -> None:
    """The kernel's twin: one column after the other, each scale tried, the best kept."""
    rng = np.random.default_rng(3)
    n, levels = 8, np.arange(-8, 8, dtype=np.float32)
    targets, present = (rng.normal(size=(n, LANES)).astype(np.float32) for _ in range(2))
    within = np.tril(rng.normal(size=(n, n)) * 0.2, -1).astype(np.float32)
    cost = rng.uniform(0.5, 2, n).astype(np.float32)
    scales = rng.uniform(0.05, 0.4, (3, LANES)).astype(np.float32)
    lows = rng.normal(size=(3, LANES)).astype(np.float32) * np.float32(0.1)
    values, moved, chosen = np.empty(n * LANES, np.float32), np.empty(n * LANES, np.float32), np.empty(LANES, np.int64)
    round_groups(
        targets.reshape(-1), present.reshape(-1), within, cost, scales, lows, levels, True, values, moved, chosen
    )
    for lane in range(LANES):
        found = []
        for d, m in zip(scales[:, lane], lows[:, lane], strict=True):
            q, total = np.empty(n), 0.0
            for i in range(n):
                t = targets[i, lane] - within[i, :i] @ (q[:i] - present[:i, lane])
                q[i] = np.clip(np.rint((t - m) / d), -8, 7) * d + m
                total += cost[i] * ((t - q[i]) ** 2 - (t - present[i, lane]) ** 2)
            found.append((total, q))
        best = min(range(3), key=lambda c: found[c][0])
        assert chosen[lane] == best
        np.testing.assert_allclose(values.reshape(n, LANES)[:, lane], found[best][1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved, values - present.reshape(-1), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_loses_less_than_ggml_with_the_same_importance(kind: TensorType) -> None:
    """The loss by the moments is below that of ggml's search, and each pass of descent lowers it."""
    n = columns(kind)
    power, c = inputs(n)
    w, h = weights(LANES, n), regularized(power, c)
    raw, plain = np.empty((len(w), kind.row_bytes(n)), np.uint8), np.empty_like(w)
    codec(kind).encode(w, raw, power)
    codec(kind).dequantize(raw, plain)
    moments = moments_of(power, Correlation(triangle=triangle_of(c)))
    losses = [loss(w, written(kind, w, moments, passes=passes)[1], h) for passes in PASSES]
    assert losses[0] < 0.8 * loss(w, plain, h)
    assert all(b <= a * (1 + 1e-4) for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_do_not_depend_on_the_ones_beside_them(kind: TensorType) -> None:
    """Cut into other pieces, the rows of a matrix have the same bytes."""
    n = max(64, kind.block_size)
    power, c = inputs(n)
    w = weights(LANES + 9, n)
    moments = moments_of(power, Correlation(loadings=loadings_of(c, 16)))
    whole = written(kind, w, moments)[0]
    parts = [written(kind, np.ascontiguousarray(w[a:b]), moments)[0] for a, b in ((0, 5), (5, 36), (36, len(w)))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kind", FORMS, ids=str)
def test_the_scales_of_blocks_are_read_and_written(kind: TensorType) -> None:
    """What is read and written again leaves the bytes alone, and is worth what `units` reads."""
    form, w = FORMS[kind], weights(7, kind.block_size)
    raw = np.empty((7, kind.block_bytes), np.uint8)
    codec(kind).encode(w, raw)
    scales = form.read(raw)
    again = raw.copy()
    form.write(again, scales)
    np.testing.assert_array_equal(again, raw)
    worth = form.worth(scales, scales.numbers, scales.lows)[0]
    np.testing.assert_array_equal(worth.T, units(raw, kind))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_zeros_and_silent_inputs_are_written(kind: TensorType) -> None:
    """Rows of zeros stay zeros; columns whose input was always 0 do no harm, as their weights may be anything."""
    n = max(64, kind.block_size)
    power, c = inputs(n)
    power[:40], c[:40], c[:, :40] = 0, 0, 0
    c[np.diag_indices(n)] = 1
    w = weights(6, n)
    w[2] = 0
    for correlation in (Correlation(loadings=loadings_of(c, 8)), Correlation(triangle=triangle_of(c))):
        back = written(kind, w, moments_of(power, correlation))[1]
        assert np.isfinite(back).all()
        assert np.abs(back[2]).max() < 1e-3
        assert np.abs(back[:2] - w[:2]).max() < 1


def test_correlations_survive_their_stored_forms() -> None:
    """A triangle gives the matrix back to half a step of 1/127; enough loadings give it back whole."""
    _, c = inputs(40)
    assert np.abs(Correlation(triangle=triangle_of(c)).matrix() - c).max() <= 0.5 / 127 + 1e-6
    assert Correlation(triangle=triangle_of(c)).n == 40
    np.testing.assert_allclose(Correlation(loadings=loadings_of(c, 40)).matrix(), c, atol=1e-5)
    assert (loadings_of(c, 7) ** 2).sum(axis=0).max() <= 1 + 1e-6
