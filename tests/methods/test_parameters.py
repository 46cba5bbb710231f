"""The parameters of methods are checked in one place: `merge` and recipes take the same values and say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ggufmerge
from ggufmerge.errors import RecipeError
from ggufmerge.methods import NAMES, method
from ggufmerge.methods.parameters import LEFT_OUT, REQUIRED, BindError, Parameter
from ggufmerge.methods.spec import Base, Method
from ggufmerge.recipe import load_recipe

A = np.arange(6, dtype=np.float32).reshape(2, 3)
PARAMETERS = [(name, q) for name in NAMES for q in method(name).parameters]
ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 101),
    st.floats(-2, 101),
    st.sampled_from(["0.5", "0,5", "50%", "sum", "x"]),
)


def said_by_recipe(name: str, parameter: Parameter, value: Any) -> str:
    """What a recipe with this value is told, without the place; "" when it is right."""
    chosen = method(name)
    recipe: dict[str, Any] = {"merge_method": name, "models": [{"model": "a"}]}
    recipe |= {"base_model": "base"} if chosen.base is Base.REQUIRED else {}
    if parameter.scope == "model":
        recipe["models"][0]["parameters"] = {parameter.name: value}
    else:
        recipe["parameters"] = {parameter.name: value}
    try:
        load_recipe(recipe)
    except RecipeError as error:
        [line] = error.lines
        return line.split(": ", 1)[1]
    return ""


def said_by_bind(name: str, parameter: Parameter, value: Any) -> list[str]:
    """What is said of this value by `Method.bind`, which `merge` uses; nothing of other parameters."""
    chosen = method(name)
    has_base = chosen.base is not Base.MODEL
    count = max(chosen.min_models, 1)
    try:
        chosen.bind((2, 3), count + has_base, has_base, {parameter.name: value})
    except BindError as error:
        return [c.what for c in error.complaints if c.about == parameter.name and f'"{parameter.name}" ' in c.what]
    return []


@given(st.sampled_from(PARAMETERS), ANY)
def test_recipes_and_arrays_take_the_same_values(which: tuple[str, Parameter], value: Any) -> None:
    """And refuse the others in the same words."""
    name, parameter = which
    said = said_by_recipe(name, parameter, value)
    assert said_by_bind(name, parameter, value) == ([said] if said else [])


def test_a_text_or_a_switch_written_as_a_number_is_read_as_in_a_recipe() -> None:
    """ "0.5" is 0.5, 1 is true, and None is the default where that is none."""
    half = ggufmerge.merge([A, 3 * A], "linear", {"weight": ["0.5", np.float32(0.5)], "normalize": 0})
    np.testing.assert_array_equal(half, 2 * A)
    np.testing.assert_array_equal(ggufmerge.merge([A], "passthrough", {"scale": None}), A)
    with pytest.raises(RecipeError, match='"weight" is a number, not None'):
        ggufmerge.merge([A], "linear", {"weight": None})


def test_all_that_is_wrong_is_said_at_once() -> None:
    """One line for each of the complaints."""
    with pytest.raises(RecipeError) as info:
        ggufmerge.merge([A, A], "ties", {"weight": [1, "x"], "density": 2, "lamda": 1}, base=A)
    assert info.value.lines == (
        'ties has no parameter "lamda": did you mean "lambda"?',
        '"weight" is a number, not "x"',
        '"density" is 0 to 1, not 2; for 2 % write 0.02',
    )


def bound(chosen: Method, models: int, values: dict[str, Any]) -> dict[str, Any]:
    p = chosen.bind((2, 3), models, False, values)
    return {**p.shared, **{name: own.tolist() for name, own in p.models.items()}}


def test_a_model_that_is_left_out_has_the_default() -> None:
    """But not beside others that have a value, where the parameter says so; nor where there is no default."""
    assert bound(method("linear"), 2, {})["weight"] == [1, 1]
    assert bound(method("karcher"), 2, {"weight": [LEFT_OUT, 3]})["weight"] == [1, 3]
    with pytest.raises(BindError) as info:
        bound(method("linear"), 2, {"weight": [LEFT_OUT, 3]})
    assert [(c.model, c.missing, c.what) for c in info.value.complaints] == [
        (0, True, "has no weight, though another model has one")
    ]


def test_one_of_a_gradients_values_is_a_number() -> None:
    """None is between nothing, and a whole number has no fractions."""
    scale = Parameter("scale", "model", float, "a factor", None)
    rounds = Parameter("rounds", "shared", int, "how often", REQUIRED)
    assert scale.parse("0.5", anchor=True) == 0.5
    with pytest.raises(ValueError, match='"scale" is a number, not None'):
        scale.parse(None, anchor=True)
    with pytest.raises(ValueError, match="which has no gradient"):
        rounds.parse(3, anchor=True)
