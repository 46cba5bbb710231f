"""SLERP: against naive NumPy, its geometry, and chains."""

from __future__ import annotations

import numpy as np
import pytest

import ggufmerge
from ggufmerge.errors import RecipeError
from ggufmerge.methods import method
from ggufmerge.methods.api import problem
from tests.methods import naive


def random(count, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def slerp(x, t, **parameters):
    return ggufmerge.merge(x[1:], "slerp", {"t": t, **parameters}, base=x[0])


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, -0.3, 1.2])
def test_equals_naive(t):
    """The formula on the flattened tensors."""
    x = random(2, 13, 21)
    np.testing.assert_allclose(slerp(x, t), naive.slerp(*x, t), rtol=1e-6, atol=1e-7)


def test_keeps_the_norm_of_vectors_of_one_length():
    """The path from one point of a sphere to another stays on the sphere."""
    x = random(2, 400)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for t in (0.2, 0.5, 0.7):
        assert np.linalg.norm(slerp(x, t)) == pytest.approx(1, rel=1e-6)


def test_there_and_back_is_the_same_way():
    """From a to b by t is from b to a by 1 - t."""
    x = random(2, 13, 21)
    np.testing.assert_allclose(slerp(x, 0.3), slerp(x[::-1], 0.7), rtol=1e-6, atol=1e-7)


def statistics(x, **parameters):
    """The method, its problem and what its pass gathers, read in one chunk."""
    from ggufmerge.methods.spec import Chunk

    chosen = method("slerp")
    p = problem(chosen, x.shape, True, parameters)
    passes = chosen.passes(p)
    reading = next(passes)
    with pytest.raises(StopIteration) as end:
        passes.send(reading.fold(reading.initial, reading.map(x, Chunk(0, 0, x.shape[1], 0))))
    return chosen, p, end.value.value


def test_near_parallel_tensors_are_lerped_and_noted():
    """Beyond a cosine of 0.9995, and said so in the report; not below."""
    x = random(2, 4, 50)
    chosen, p, found = statistics(x, t=0.3)
    assert chosen.notes(p, found) == []
    x[1] = x[0] + np.float32(0.01) * x[1]
    chosen, p, found = statistics(x, t=0.3)
    (note,) = chosen.notes(p, found)
    assert "lerp" in note
    np.testing.assert_allclose(slerp(x, 0.3), 0.7 * x[0] + 0.3 * x[1], rtol=1e-6, atol=1e-7)


def test_a_chain_is_slerp_after_slerp():
    """Each model in turn, with its own t or the shared one; only the rounding between the steps is spared."""
    x = random(4, 11, 17)
    chain = slerp(x, 0.4, chain=True, chain_t=[0.5, None, 0.7])
    step = naive.slerp(x[0], x[1], 0.5)
    step = naive.slerp(step, x[2], 0.4)
    np.testing.assert_allclose(chain, naive.slerp(step, x[3], 0.7), rtol=2e-6, atol=2e-7)


def test_a_chain_of_one_is_slerp():
    """To the bit."""
    x = random(2, 11, 17)
    np.testing.assert_array_equal(slerp(x, 0.4, chain=True), slerp(x, 0.4))


def test_more_models_need_chain():
    """The error names the way out."""
    with pytest.raises(RecipeError, match="chain: true"):
        slerp(random(3, 4, 5), 0.4)


def test_a_fraction_per_model_needs_chain():
    """mergekit reads one t for a tensor; a second one would be ignored."""
    with pytest.raises(RecipeError, match="chain_t"):
        slerp(random(2, 4, 5), 0.4, chain_t=[0.3])


def test_a_tensor_of_zeros_has_no_direction():
    """Its cosine counts as 0, so the coefficients are those of a right angle."""
    x = random(2, 30)
    x[1] = 0
    np.testing.assert_allclose(slerp(x, 0.5), np.sqrt(0.5) * x[0], rtol=1e-6)
