"""`merge_method`: a function with annotations is a method like any other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pytest

from ggufmerge.errors import PluginError, RecipeError
from ggufmerge.methods.api import problem, run
from ggufmerge.methods.define import Array, Between, merge_method
from ggufmerge.methods.parameters import REQUIRED
from ggufmerge.methods.spec import Base

X = np.random.default_rng(0).standard_normal((4, 7, 5)).astype(np.float32)


@merge_method(reference="nobody", min_models=2)
def blend(
    models: Array,
    base: Array | None = None,
    *,
    lambda_: Annotated[float, Between(0), "how much"] = 0.5,
    weight: list[float],
    kind: Literal["sum", "last"] = "sum",
    times: int = 1,
    flip: bool = False,
) -> Any:
    """Blend them.

    More text.
    """
    parts = (models - (0 if base is None else base)) * np.asarray(weight)[:, None, None]
    change = parts.sum(axis=0) if kind == "sum" else parts[-1]
    return (0 if base is None else base) + (-1 if flip else 1) * lambda_ * times * change


def test_a_signature_describes_the_method() -> None:
    """Names, scopes, types, defaults, bounds and choices of parameters; the base; the words for people."""
    assert (blend.name, blend.summary, blend.reference) == ("blend", "Blend them.", "nobody")
    assert (blend.base, blend.min_models) == (Base.OPTIONAL, 2)
    found = {q.name: (q.scope, q.type, q.default, q.low, q.choices, q.doc) for q in blend.parameters}
    assert found == {
        "lambda": ("shared", float, 0.5, 0, (), "how much"),
        "weight": ("model", float, REQUIRED, None, (), ""),
        "kind": ("shared", str, "sum", None, ("sum", "last"), ""),
        "times": ("shared", int, 1, None, (), ""),
        "flip": ("shared", bool, False, None, (), ""),
    }


@pytest.mark.parametrize("has_base", [False, True])
def test_the_function_is_given_the_models_and_their_values(has_base: bool) -> None:
    """The same as calling it, however the rows are cut; with a base and without."""
    weight = [0.2, -0.5, 1.0] if has_base else [0.2, -0.5, 1.0, 3.0]
    given = {"weight": weight, "lambda": "2", "flip": 1, "times": 3}
    p = problem(blend, X.shape, has_base, given)
    models, base = (X[1:], X[0]) if has_base else (X, None)
    expected = blend(models, base, weight=weight, lambda_=2.0, flip=True, times=3)
    for rows in (1, 3, 7):
        np.testing.assert_allclose(run(blend, p, X, rows * 5), expected, rtol=1e-6)


def test_values_are_checked_as_those_of_any_method() -> None:
    """By the annotations."""
    with pytest.raises(RecipeError) as info:
        problem(blend, X.shape, True, {"lambda": -1, "kind": "first", "tmies": 2})
    assert info.value.lines[:3] == (
        'blend has no parameter "tmies": did you mean "times"?',
        '"lambda" is at least 0, not -1',
        'model 0 has no weight, which blend needs: give parameters={"weight": 1}',
    )


def one(models: Array) -> Array:
    return models[0]


def two(models: Array, base: Array) -> Array:
    return base


def test_a_function_without_a_base_takes_it_as_a_model() -> None:
    """And one with a base needs it."""
    assert merge_method(one).base is Base.MODEL
    assert merge_method(two).base is Base.REQUIRED
    assert merge_method(name="other")(two).name == "other"


def no_models() -> Any:
    """Nothing to merge."""


def a_text(models: Array, *, name: str) -> Any:
    """Which texts are meant?"""


def not_annotated(models: Array, *, weight) -> Any:  # type: ignore[no-untyped-def]
    """Of what type?"""


def open_ended(models: Array, **options: float) -> Any:
    """Misspelt names would be taken."""


@pytest.mark.parametrize("function", [no_models, a_text, not_annotated, open_ended])
def test_other_functions_are_no_methods(function: Any) -> None:
    """The author is told when the function is defined."""
    with pytest.raises(TypeError):
        merge_method(function)


def test_a_default_out_of_bounds_is_refused() -> None:
    """It would be refused in every recipe."""

    def wrong(models: Array, *, share: Annotated[float, Between(0, 1)] = 2.0) -> Array:
        return models[0]

    with pytest.raises(ValueError, match='"share" is 0 to 1, not 2'):
        merge_method(wrong)


def test_a_result_of_another_shape_is_refused() -> None:
    """NumPy would stretch it over all rows."""
    narrow = merge_method(name="narrow")(lambda models: models.mean(axis=(0, 1)))
    with pytest.raises(PluginError, match=r"narrow: its function gives an array of shape \(5,\) for models of shape"):
        run(narrow, problem(narrow, X.shape, False, {}), X)


def test_the_example_of_the_page_is_true() -> None:
    """docs/plugins.md: the function stays a function."""
    from tests.plugin_example.ggufmerge_example.middle import middle

    result = middle(np.float32([[[1, 2]], [[3, 6]]]), np.zeros((1, 2)), weight=[1, 1])
    np.testing.assert_array_equal(result, [[2, 4]])
