"""Correlations that are gathered text by text, against those of all inputs at once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufmerge.quants.correlations import Correlation, correlation_of_all, loadings_of
from ggufmerge.quants.sketch import Sketch, Sums, Whole

N = 96


def inputs(tokens: int, seed: int, n: int = N) -> NDArray[np.float32]:
    """Inputs of very different sizes, with some strong common causes."""
    causes = np.random.default_rng(0).standard_normal((6, n)) * np.array([3, 2, 2, 1, 1, 0.5])[:, None]
    sizes = np.exp(2 * np.random.default_rng(1).standard_normal(n))
    rng = np.random.default_rng(seed + 2)
    x = rng.standard_normal((tokens, 6)) @ causes + rng.standard_normal((tokens, n))
    return (x * sizes).astype(np.float32)


def exact(x: NDArray[np.float32]) -> NDArray[np.float64]:
    h = x.T.astype(np.float64) @ x
    root = np.sqrt(np.maximum(np.diag(h), 1e-300))
    return h / root[:, None] / root


def captured(found: Correlation, c: NDArray[np.float64]) -> float:
    """The share of the energy of correlations (without the diagonal) that an approximation has."""
    error = found.matrix() - c
    other = c - np.diag(np.diag(c))
    return 1 - float((error[np.triu_indices(len(c), 1)] ** 2).sum() / (other[np.triu_indices(len(c), 1)] ** 2).sum())


def test_a_sketch_is_about_as_good_as_the_largest_eigenvectors() -> None:
    """One pass over the inputs, in pieces, captures nearly what the best approximation of the rank does."""
    x = inputs(2000, 0)
    sketch = Sketch(N, 1, 8)
    for piece in np.array_split(x, 7):
        sketch.add([(0, piece)], 1.0)
    (found,) = sketch.correlations()
    best = captured(Correlation(loadings=loadings_of(exact(x), 8)), exact(x))
    assert found.loadings is not None
    assert found.loadings.shape == (8, N)
    assert best > 0.9
    assert captured(found, exact(x)) > best - 0.02
    assert (found.loadings.astype(np.float64) ** 2).sum(axis=0).max() <= 1 + 1e-6


def test_largest_eigenvectors_come_first() -> None:
    """Rows are orthogonal, and sorted by their length."""
    sketch = Sketch(N, 1, 8)
    sketch.add([(0, inputs(500, 0))], 1.0)
    (found,) = sketch.correlations()
    assert found.loadings is not None
    products = found.loadings @ found.loadings.T
    lengths = np.diag(products)
    assert (np.diff(lengths) <= 1e-4).all()
    assert np.abs(products - np.diag(lengths)).max() < 1e-2 * lengths.max()


def test_a_full_rank_is_exact() -> None:
    """With as many eigenvectors as inputs nothing is lost."""
    x = inputs(300, 0, 24)
    sketch = Sketch(24, 1, 24)
    for piece in np.array_split(x, 3):
        sketch.add([(0, piece)], 1.0)
    np.testing.assert_allclose(sketch.correlations()[0].matrix(), exact(x), atol=2e-3)


def test_whole_correlations_are_exact() -> None:
    """But for their rounding to 8 bits."""
    x = inputs(300, 0)
    whole = Whole(N, 1)
    for piece in np.array_split(x, 3):
        whole.add([(0, piece)], 1.0)
    np.testing.assert_allclose(whole.correlations()[0].matrix(), exact(x), atol=0.5 / 127 + 1e-5)


@pytest.mark.parametrize("kind", [lambda: Sketch(N, 2, 12), lambda: Whole(N, 2)])
def test_a_weight_is_a_number_of_repetitions(kind: type) -> None:
    """Inputs of weight 2 count as if they were there twice."""
    a, b = inputs(60, 0), inputs(60, 1)
    once, twice = kind(), kind()
    once.add([(0, a)], 1.0)
    once.add([(0, b)], 2.0)
    for x in (a, b, b):
        twice.add([(0, x)], 1.0)
    np.testing.assert_allclose(once.sums, twice.sums, rtol=1e-6)
    assert once.counts.tolist() == twice.counts.tolist() == [180, 0]
    np.testing.assert_allclose(once.correlations()[0].matrix(), twice.correlations()[0].matrix(), atol=1e-2)


def test_an_expert_without_tokens_has_no_correlations() -> None:
    """Experts are apart, and what never had an input is 0."""
    sketch = Sketch(N, 3, 8)
    x = inputs(100, 0)
    x[:, 5] = 0
    sketch.add([(0, x), (2, x[:3])], 1.0)
    first, none, few = sketch.correlations()
    assert first.loadings is not None
    assert none.loadings is not None
    assert few.loadings is not None
    assert not none.loadings.any()
    assert not first.loadings[:, 5].any()
    assert np.count_nonzero((few.loadings**2).sum(axis=1) > 1e-3) <= 3  # as many eigenvectors as tokens
    assert np.isfinite(few.loadings).all()
    assert sketch.counts.tolist() == [100, 0, 3]


def test_a_state_goes_on_as_if_nothing_had_been() -> None:
    """What is kept and put back gives the very same numbers."""
    x = inputs(200, 0)
    for kind in (lambda: Sums(N, 1), lambda: Sketch(N, 1, 8), lambda: Whole(N, 1)):
        one, other = kind(), kind()
        one.add([(0, x[:90])], 1.0)
        other.restore({key: array.copy() for key, array in one.state.items()})
        for moments in (one, other):
            moments.add([(0, x[90:])], 1.0)
        for key in one.state:
            assert np.array_equal(one.state[key], other.state[key])


def test_texts_together_have_the_correlations_of_all() -> None:
    """Those of two texts, put together by their sums of squares, are those of the texts as one."""
    a, b = inputs(400, 0, 24), 3 * inputs(300, 7, 24)[:, ::-1]
    squares = [(x.astype(np.float64) ** 2).sum(axis=0) for x in (a, b)]
    expected = exact(np.concatenate([a, b]))
    low = [Correlation(loadings=loadings_of(exact(x), 24)) for x in (a, b)]
    np.testing.assert_allclose(correlation_of_all(low, squares).matrix(), expected, atol=1e-3)
    wholes = []
    for x in (a, b):
        whole = Whole(24, 1)
        whole.add([(0, x)], 1.0)
        wholes += whole.correlations()
    np.testing.assert_allclose(correlation_of_all(wholes, squares).matrix(), expected, atol=2 / 127)
    assert correlation_of_all([low[0], wholes[1]], squares).triangle is not None
