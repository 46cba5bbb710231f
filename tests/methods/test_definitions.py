"""What is settled here and left open, unguarded or to chance in mergekit (see docs/methods.md)."""

from __future__ import annotations

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import RecipeError
from ggufmerge.methods import method
from ggufmerge.methods.api import problem
from ggufmerge.methods.spec import Chunk


def random(count, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def notes(name, x, has_base, parameters):
    """The notes of a run over the stack x, read in one chunk per pass."""
    chosen = method(name)
    p = problem(chosen, x.shape, has_base, parameters)
    passes = chosen.passes(p)
    try:
        reading = next(passes)
        while True:
            part = reading.map(x, Chunk(0, 0, x.shape[1], 0))
            reading = passes.send(reading.fold(reading.initial, part))
    except StopIteration as end:
        return chosen.notes(p, end.value)


@pytest.mark.parametrize("name", ["linear", "multislerp", "karcher"])
def test_weights_that_sum_to_zero_are_refused(name):
    """There is nothing to divide by; mergekit gives infinities."""
    weight = [0.0, 0.0, 0.0] if name == "karcher" else [0.1, 0.2, -0.3]
    with pytest.raises(RecipeError, match="sum to zero"):
        ggufmerge.merge(random(3, 4, 5), name, {"weight": weight})


def test_elected_weights_that_cancel_do_not_divide():
    """0.1 + 0.2 - 0.3 is 5.6e-17 in floating point, and zero for the divisor of TIES."""
    d = np.array([[1.0, 1.0, -1.0]]).T * np.ones((3, 4), np.float32)
    merged = ggufmerge.merge(d, "ties", {"weight": [0.1, 0.2, -0.3]}, base=np.zeros(4))
    np.testing.assert_allclose(merged, 0.6, rtol=1e-6)


def test_sce_weighs_small_changes_like_large_ones():
    """The result scales with the differences; mergekit falls back to equal weights below a mean square of 1e-6."""
    base, d = np.zeros((6, 7)), random(3, 6, 7) * np.array([1, 2, 3], np.float32).reshape(3, 1, 1)
    small = ggufmerge.merge(d / 4096, "sce", {}, base=base)
    np.testing.assert_allclose(small * 4096, ggufmerge.merge(d, "sce", {}, base=base), rtol=1e-6)


def test_model_stock_keeps_the_base_when_the_models_disagree():
    """A negative mean cosine gives t = 0, and a note; mergekit extrapolates."""
    base, d = random(2, 5, 6)
    x = np.stack([base, base + d, base - d])
    np.testing.assert_array_equal(ggufmerge.merge(x[1:], "model_stock", {}, base=base), base)
    assert "base is kept" in notes("model_stock", x, True, {})[0]
    assert notes("model_stock", np.stack([base, base + d, base + d]), True, {}) == []


def test_multislerp_adds_what_cancels_out():
    """Three unit vectors that sum to zero have no mean direction: the weighted sum, and a note."""
    x = np.array([[[1, 0]], [[-0.5, 0.5]], [[-0.5, -0.5]]], np.float32)
    weight = [1.0, 2**0.5 / 2, 2**0.5 / 2]
    parameters = {"weight": weight, "normalize_weights": False, "eps": 1e-6}
    expected = x[0] + (x[1] + x[2]) * 2**0.5 / 2
    np.testing.assert_allclose(ggufmerge.merge(x, "multislerp", parameters), expected, atol=1e-6)
    assert "weighted sum" in notes("multislerp", x, False, parameters)[0]
    assert notes("multislerp", random(3, 4, 5), False, parameters) == []


def test_karcher_passes_over_a_model_opposite_to_the_mean():
    """Its direction is uncertain; the others decide, and the result is finite."""
    a = random(1, 30)[0]
    merged = ggufmerge.merge([a, a, -a], "karcher")
    np.testing.assert_allclose(merged, a, rtol=1e-6)


def test_karcher_with_equal_weights_is_without_weights():
    """To rounding; a heavier model draws the mean towards it."""
    x = random(3, 8, 9)
    plain = ggufmerge.merge(x, "karcher")
    np.testing.assert_allclose(ggufmerge.merge(x, "karcher", {"weight": 7.0}), plain, rtol=1e-6)
    heavy = ggufmerge.merge(x, "karcher", {"weight": [5.0, 1.0, 1.0]})
    assert np.vdot(heavy, x[0]) > np.vdot(plain, x[0])


@pytest.mark.parametrize("shape", [(40, 60), (1, 3), (2, 2), (1, 1)])
def test_arcee_fusion_takes_whole_elements_above_the_exact_threshold(shape):
    """Each element is the base's or the other's, by naive quartiles of the naive importance."""
    base, other = random(2, *shape)
    p, q = (np.exp(v.astype(np.float64)) for v in (other, base))
    p, q = (v / v.sum(axis=1, keepdims=True) + 1e-8 for v in (p, q))
    importance = np.abs(other - base) * np.sum(p * np.log(p / q), axis=1, keepdims=True)
    ordered = np.sort(importance.reshape(-1))
    first, median, third = (ordered[(ordered.size - 1) * k // 4] for k in (1, 2, 3))
    taken = importance >= median + 1.5 * (third - first)
    merged = ggufmerge.merge([other], "arcee_fusion", base=base)
    np.testing.assert_array_equal(merged, np.where(taken, other, base))


def test_a_single_row_is_one_vector_to_nuslerp():
    """Whether rows or columns are asked for: a 1-D tensor has only itself."""
    x = random(2, 30)
    whole = ggufmerge.merge(x, "nuslerp", {"weight": [0.3, 0.5]})
    for columns in (False, True):
        parameters = {"weight": [0.3, 0.5], "nuslerp_flatten": False, "nuslerp_row_wise": columns}
        np.testing.assert_array_equal(ggufmerge.merge(x, "nuslerp", parameters), whole)


def test_a_switch_that_would_not_be_read_is_refused():
    """nuslerp_row_wise has a meaning only beside nuslerp_flatten: false."""
    with pytest.raises(RecipeError, match="nuslerp_flatten: false"):
        ggufmerge.merge(random(2, 4, 5), "nuslerp", {"weight": [0.3, 0.5], "nuslerp_row_wise": True})
