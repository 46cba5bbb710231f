"""DELLA: a mask whose probabilities follow the rank of the magnitudes in each row."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ggufmerge
from ggufmerge.errors import RecipeError
from ggufmerge.methods.della import rank
from ggufmerge.methods.random import stream_key, words
from tests.methods import naive

ROWS, N = (40, 100) if numba.config.DISABLE_JIT else (4000, 250)


def probabilities(d, density, epsilon):
    """Of survival: ranks within rows, equal magnitudes by position."""
    ranks = np.argsort(np.argsort(np.abs(d), axis=-1, kind="stable"), axis=-1, kind="stable")
    if d.shape[-1] == 1:
        return np.full(d.shape, density)
    return density - epsilon + 2 * epsilon * ranks / (d.shape[-1] - 1)


@settings(deadline=None)
@given(bits=arrays(np.uint32, st.integers(0, 200), elements=st.integers(0, 2**31 - 1) | st.integers(0, 3)))
def test_rank_is_the_place_in_a_stable_sort(bits):
    """Whatever the values."""
    ranks = np.empty(len(bits), np.uint32)
    rank(bits, ranks, np.empty((2, len(bits)), np.uint64))
    expected = np.empty(len(bits), np.uint32)
    expected[np.argsort(bits, kind="stable")] = np.arange(len(bits))
    np.testing.assert_array_equal(ranks, expected)


@settings(deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.just(2), st.integers(1, 4), st.integers(1, 9)), elements=st.integers(-4, 4)),
    density=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    rescale_by=st.sampled_from(["l1", "density"]),
)
def test_equals_naive_with_the_same_words(x, density, rescale_by):
    """Given the random words, each element survives by its probability; l1 restores the norm, density the mean."""
    d = x[1] - x[0]
    chance = probabilities(d, density, 0.15)
    mask = words(stream_key(3, "", "0"), 0, d.size).reshape(d.shape) < np.rint(chance * 2.0**32)
    if density in (0, 1):
        expected = density * d
    elif rescale_by == "l1":
        expected = naive.rescaled(d, d * mask)
    else:
        expected = d * mask / chance
    parameters = {"weight": 0.5, "density": density, "rescale_by": rescale_by}
    merged = ggufmerge.merge([x[1]], "della_linear", parameters, base=x[0], seed=3)
    np.testing.assert_allclose(merged, x[0] + 0.5 * expected, rtol=1e-6, atol=1e-5)


def test_large_elements_survive_more_often():
    """The share of survivors of each rank lies within 5 standard deviations of its probability."""
    d = np.random.default_rng(0).standard_normal((ROWS, N)).astype(np.float32)
    parameters = {"weight": 1.0, "density": 0.6, "epsilon": 0.3, "rescale": False}
    kept = ggufmerge.merge([d], "della_linear", parameters, base=np.zeros_like(d)) != 0
    by_rank = np.take_along_axis(kept, np.argsort(np.abs(d), axis=1), axis=1).mean(axis=0)
    expected = 0.3 + 0.6 * np.arange(N) / (N - 1)
    assert (np.abs(by_rank - expected) < 5 * np.sqrt(expected * (1 - expected) / ROWS)).all()


def test_keeps_the_l1_norm():
    """Rescaling restores Σ |d|, to float32 rounding."""
    d = np.random.default_rng(1).standard_normal((ROWS, N)).astype(np.float32)
    kept = ggufmerge.merge([d], "della_linear", {"weight": 1.0, "density": 0.3}, base=np.zeros_like(d))
    assert np.abs(kept, dtype=np.float64).sum() == pytest.approx(np.abs(d, dtype=np.float64).sum(), rel=1e-6)


def test_density_scaling_is_right_on_average():
    """Dividing each survivor by its probability leaves the mean of every rank alone."""
    d = np.broadcast_to(np.linspace(1, 2, N, dtype=np.float32), (ROWS, N))
    parameters = {"weight": 1.0, "density": 0.5, "epsilon": 0.2, "rescale_by": "density"}
    kept = ggufmerge.merge([d], "della_linear", parameters, base=np.zeros((ROWS, N)))
    chance = 0.3 + 0.4 * np.arange(N) / (N - 1)
    error = d[0] * np.sqrt((1 - chance) / chance / ROWS)
    assert (np.abs(kept.mean(axis=0, dtype=np.float64) - d[0]) < 5 * error).all()


@pytest.mark.parametrize("density", [0.9, 0.1])
def test_impossible_probabilities_are_refused(density):
    """The error says how far epsilon may reach."""
    x = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(RecipeError, match=r"set `epsilon` below 0\.1"):
        ggufmerge.merge([x[1]], "della", {"weight": 1.0, "density": density}, base=x[0])
