"""Task arithmetic, TIES and DARE: against naive NumPy, and by the laws of their masks."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ggufmerge
from ggufmerge.methods.random import stream_key, words
from tests.methods import naive

SIZE = 1 << 12 if numba.config.DISABLE_JIT else 1 << 20
# Exact in float32, with many equal magnitudes. Votes can end in a tie, so weights are powers of two and the naive side
# multiplies like the kernels: a rounding must not decide what an exact tie decides.
eighths = st.integers(-8, 8).map(lambda v: v / 8)


def close(merged, expected):
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-6 * max(1e-3, np.abs(expected).max()))


@st.composite
def problems(draw):
    """(base, models, weights, densities), small tensors with equal magnitudes, zeros and negative weights."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 7)))
    models = draw(st.integers(1, 4))
    x = draw(arrays(np.float32, (models + 1, *shape), elements=eighths))
    weights = draw(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0]), min_size=models, max_size=models))
    densities = draw(st.lists(st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.9, 1.0]), min_size=models, max_size=models))
    return x[0], list(x[1:]), weights, densities


@settings(deadline=None)
@given(problem=problems(), normalize=st.booleans(), scale=st.sampled_from([0.0, 0.5, 1.0, -2.0]))
def test_task_arithmetic_equals_naive(problem, normalize, scale):
    """base + λ Σ wᵢ dᵢ, over Σ wᵢ when normalized."""
    base, models, weight, _ = problem
    merged = ggufmerge.merge(
        models, "task_arithmetic", {"weight": weight, "normalize": normalize, "lambda": scale}, base=base
    )
    close(merged, naive.task_vectors(base, [m - base for m in models], weight, scale, normalize))


@settings(deadline=None)
@given(
    problem=problems(),
    normalize=st.booleans(),
    rescale=st.sampled_from([None, "l1", "density"]),
    consensus=st.sampled_from(["sum", "count"]),
    scale=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_ties_equals_naive(problem, normalize, rescale, consensus, scale):
    """Trim, elect, add; equal magnitudes survive by falling index."""
    base, models, weight, density = problem
    parameters = {
        "weight": weight,
        "density": density,
        "lambda": scale,
        "normalize": normalize,
        "rescale": rescale is not None,
        "rescale_by": rescale or "l1",
        "consensus": consensus,
    }
    kept = []
    for m, share in zip(models, density, strict=True):
        d = m - base
        trimmed = naive.trim(d, share)
        if rescale == "l1":
            trimmed = naive.rescaled(d, trimmed)
        elif rescale == "density" and share > 0:
            trimmed = trimmed * (1 / share)
        kept.append(trimmed)
    expected = naive.task_vectors(base, kept, weight, scale, normalize, vote=True, count=consensus == "count")
    close(ggufmerge.merge(models, "ties", parameters, base=base), expected)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale_by", ["l1", "density"])
@settings(deadline=None, max_examples=30)
@given(problem=problems(), seed=st.integers(0, 9))
def test_dare_equals_naive_with_the_same_mask(method, rescale_by, problem, seed):
    """Given the mask, DARE is masking, rescaling and adding, with or without the vote."""
    base, models, weight, density = problem
    kept = []
    for i, (m, share) in enumerate(zip(models, density, strict=True)):
        mask = words(stream_key(seed, "", str(i)), 0, base.size).reshape(base.shape) < share * 2.0**32
        d = m - base
        if rescale_by == "l1":
            kept.append(naive.rescaled(d, d * mask))
        else:
            kept.append(d * mask * (1 / share if share > 0 else 1))
    expected = naive.task_vectors(base, kept, weight, vote=method == "dare_ties")
    parameters = {"weight": weight, "density": density, "rescale_by": rescale_by}
    close(ggufmerge.merge(models, method, parameters, base=base, seed=seed), expected)


def dare(models, density, seed=0, **parameters):
    """DARE over a base of zeros: the merged difference itself."""
    weight = parameters.pop("weight", [1.0] * len(models))
    base = np.zeros_like(models[0])
    return ggufmerge.merge(
        models, "dare_linear", {"weight": weight, "density": density, **parameters}, base=base, seed=seed
    )


@pytest.mark.parametrize("density", [0.05, 0.5, 0.93])
def test_dare_keeps_the_share_it_was_told(density):
    """The number of survivors lies within 5 standard deviations of the binomial mean, for every quarter of the rows."""
    kept = dare([np.ones((64, SIZE // 64), np.float32)], density, rescale=False) != 0
    for part in (kept, kept[:16], kept[48:], kept[:, ::4]):
        deviation = np.sqrt(part.size * density * (1 - density))
        assert abs(part.sum() - part.size * density) < 5 * deviation


def test_dare_keeps_the_l1_norm():
    """Rescaling restores Σ |d|, to float32 rounding."""
    d = np.random.default_rng(1).standard_normal((64, SIZE // 64)).astype(np.float32)
    kept = dare([d], 0.3)
    assert np.abs(kept, dtype=np.float64).sum() == pytest.approx(np.abs(d, dtype=np.float64).sum(), rel=1e-6)
    assert np.count_nonzero(kept) < 0.35 * d.size


def test_dare_masks_of_models_rows_and_seeds_are_independent():
    """Correlations of masks lie within 5 standard errors of zero."""
    ones = np.ones((2, SIZE // 2), np.float32)
    a = dare([ones, ones], 0.5, rescale=False, weight=[1.0, 0.0]) - 0.5
    b = dare([ones, ones], 0.5, rescale=False, weight=[0.0, 1.0]) - 0.5
    c = dare([ones, ones], 0.5, seed=1, rescale=False, weight=[1.0, 0.0]) - 0.5
    for u, v in ((a, b), (a, c), (a[0], a[1]), (a, np.roll(a, 1))):
        assert abs(4 * np.mean(u * v, dtype=np.float64)) < 5 / np.sqrt(u.size)


def test_dare_is_the_same_every_time():
    """One seed, one result; another seed, another."""
    d = np.random.default_rng(2).standard_normal((8, 100)).astype(np.float32)
    np.testing.assert_array_equal(dare([d], 0.5), dare([d], 0.5))
    assert (dare([d], 0.5) != dare([d], 0.5, seed=1)).any()


def test_dare_with_density_one_is_task_arithmetic():
    """To the bit: nothing is dropped, nothing rescaled."""
    x = np.random.default_rng(3).standard_normal((3, 9, 31)).astype(np.float32)
    weight = {"weight": [0.4, -0.3], "lambda": 0.7}
    plain = ggufmerge.merge(x[1:], "task_arithmetic", weight, base=x[0])
    np.testing.assert_array_equal(ggufmerge.merge(x[1:], "dare_linear", weight, base=x[0]), plain)
