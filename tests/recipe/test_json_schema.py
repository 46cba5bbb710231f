"""The JSON schema and the loader take the same recipes, as far as a schema can tell."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ggufmerge.errors import RecipeError
from ggufmerge.methods import NAMES, method
from ggufmerge.methods.parameters import Parameter
from ggufmerge.methods.spec import Base
from ggufmerge.recipe import load_recipe
from ggufmerge.recipe.json_schema import json_schema
from ggufmerge.recipe.load import INERT
from ggufmerge.types import FileType

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
PATHS = st.sampled_from(["a.gguf", "b.gguf+l.gguf=0.5"])
MODELS = st.one_of(
    PATHS,
    st.builds(
        lambda path, lora: {"model": path, "lora": lora}, PATHS, st.sampled_from(["l", [{"path": "l"}], [], None])
    ),
    st.just({"model": {"path": "a.gguf", "revision": None}, "lora": [{"path": "l.gguf", "strength": -0.5}, "m.gguf"]}),
)
FILTERS = st.sampled_from(["mlp", "blk.*.attn_?.weight", "*", None])
ROWS = st.one_of(
    st.none(),
    MODELS,
    st.just({"kind": "zero"}),
    st.builds(lambda model: {"kind": "model_token", "model": model, "token": "<s>"}, MODELS),
    st.builds(lambda model: {"kind": "model_token", "model": model, "token_id": 3}, MODELS),
)
TOKENIZERS = st.fixed_dictionaries(
    {},
    optional={
        "source": st.one_of(st.sampled_from(["base", "union", None]), MODELS),
        "tokens": st.dictionaries(
            st.text("ab", min_size=1, max_size=2),
            st.fixed_dictionaries({}, optional={"source": ROWS, "force": st.booleans()}),
            max_size=2,
        ),
        "pad_to_multiple_of": st.sampled_from([None, 1, 64, 1 << 20]),
    },
)
KEYS = {
    "base_model": st.one_of(st.none(), MODELS),
    "dtype": st.sampled_from([None, "float32", "bf16", "torch.float16"]),
    "out_dtype": st.sampled_from(["half", "bfloat16"]),
    "tokenizer_source": st.one_of(st.sampled_from([None, "base", "union"]), MODELS),
    "tokenizer": st.one_of(st.none(), TOKENIZERS),
    "chat_template": st.sampled_from([None, "auto", "chatml", "{{ messages }}"]),
    "name": st.sampled_from([None, "a name"]),
    "out_type": st.sampled_from([None, "q4_k_m", *FileType]),
    "tensor_types": st.dictionaries(st.just("ffn"), st.just("Q8_0"), max_size=1),
    "like": st.sampled_from([None, "like.gguf"]),
    "imatrix": st.sampled_from(["i.gguf", ["i.gguf", "j.gguf"], []]),
    "rounding": st.sampled_from([None, "auto", "stochastic", "nearest"]),
    "noise_aware": st.sampled_from(["auto", "off", False]),
    "exclude": st.sampled_from(["mlp", ["mlp"], []]),
    "graft": st.lists(st.fixed_dictionaries({"model": MODELS, "tensors": st.just(["blk.0.*"])}), max_size=1),
    "seed": st.sampled_from([0, 7, 2**64 - 1]),
    "metadata": st.dictionaries(
        st.just("general.x"), st.sampled_from(["x", True, -(2**63), 2**64 - 1, 0.5, ["a", "b"]]), max_size=1
    ),
    **{word: st.just(True) for word in INERT},
}


def scalars(q: Parameter) -> st.SearchStrategy[Any]:
    """Values that a parameter may have, in all forms; now and then one that it may not have."""
    if q.type is bool:
        found: list[Any] = [True, False, 0, 1, 2]
    elif q.type is str:
        found = [*q.choices, "nothing"]
    else:
        found = [q.low or 0, q.high or 2, 1, "1", " 5e-1 ", 0.5, 7, -1, "x", True]
    return st.sampled_from([*found, *[None] * (q.default is None)])


def given_parameters(name: str, scope: str) -> st.SearchStrategy[dict[str, Any]]:
    def setting(q: Parameter) -> st.SearchStrategy[Any]:
        value = st.one_of(scalars(q), scalars(q), st.lists(scalars(q), min_size=1, max_size=2))
        rule = st.fixed_dictionaries({"value": value}, optional={"filter": FILTERS})
        return st.one_of(value, value, rule, st.lists(rule, min_size=1, max_size=2))

    of_scope = {q.name: setting(q) for q in method(name).parameters if scope in (q.scope, "")}
    return st.one_of(st.none(), st.fixed_dictionaries({}, optional=of_scope))  # type: ignore[return-value]


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Recipes of all keys and forms, most of which load."""
    name = draw(st.sampled_from(NAMES))
    chosen = draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=4, unique=True))
    recipe = {key: draw(KEYS[key]) for key in chosen}
    recipe["merge_method"] = draw(st.sampled_from([name, [{"filter": "mlp", "value": name}, {"value": name}]]))
    if method(name).base is Base.REQUIRED:
        recipe["base_model"] = draw(MODELS)
    if draw(st.booleans()):
        recipe["parameters"] = draw(given_parameters(name, ""))

    def model() -> dict[str, Any]:
        entry = {"model": draw(MODELS)}
        return entry | ({"parameters": draw(given_parameters(name, "model"))} if draw(st.booleans()) else {})

    if draw(st.booleans()):
        return recipe | {"models": [model() for _ in range(draw(st.integers(1, 2)))]}
    piece: dict[str, Any] = {"sources": [model() | {"layer_range": [0, 4]}]}
    if draw(st.booleans()):
        piece["parameters"] = draw(given_parameters(name, ""))
    return recipe | {"slices": [piece], **draw(st.sampled_from([{}, {"models": None}]))}


def loads(recipe: dict[str, Any]) -> bool:
    """Whether a recipe loads, and all its words have an effect: an editor marks those that have none, too."""
    try:
        return not any("has no effect" in line for line in load_recipe(recipe).warnings)
    except RecipeError:
        return False


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(recipes())
def test_a_recipe_that_loads_is_valid(recipe: dict[str, Any]) -> None:
    """Whatever the form of its values; and without one that loads there is nothing to see, so most do."""
    loaded = loads(recipe)
    event(f"loads: {loaded}")
    if loaded:
        assert not [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(recipe)]


WHOLE: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base.gguf",
    "slices": [
        {
            "sources": [
                {"model": "a.gguf", "layer_range": [0, 4], "parameters": {"weight": [0.5, 1], "density": 0.5}},
                {"model": {"model": "b.gguf", "lora": [{"path": "l.gguf", "strength": 0.5}]}, "layer_range": [0, 4]},
            ],
            "parameters": {"weight": {"filter": "mlp", "value": 0.5}},
        }
    ],
    "parameters": {"normalize": True, "consensus": "sum", "lambda": 1.0},
    "dtype": "float32",
    "tokenizer": {
        "source": "union",
        "tokens": {"a": {"source": {"kind": "model_token", "model": "a.gguf", "token_id": 1}, "force": True}},
        "pad_to_multiple_of": 64,
    },
    "chat_template": "auto",
    "name": "name",
    "tensor_types": {"ffn": "Q8_0"},
    "like": "like.gguf",
    "imatrix": ["i.gguf"],
    "rounding": "nearest",
    "noise_aware": "off",
    "exclude": ["attn"],
    "graft": [{"model": "a.gguf", "tensors": ["blk.0.*"]}],
    "seed": 1,
    "metadata": {"general.x": ["a"]},
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, item in items for place in places(item, (*at, key))]


def changed(at: tuple[Any, ...], wrong: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(WHOLE)
    owner: Any = recipe
    for key in at[:-1]:
        owner = owner[key]
    owner[at[-1]] = wrong
    return recipe


def test_the_whole_recipe_is_right() -> None:
    """The one that the mistakes below are made in."""
    assert loads(WHOLE)
    assert VALIDATOR.is_valid(WHOLE)


# what a schema cannot tell: whether the method needs a base; names of types are in any case, and have aliases
NO_TYPES = [(("base_model",), None), (("tensor_types", "ffn"), "word")]


@pytest.mark.parametrize("at", places(WHOLE), ids=lambda at: ".".join(map(str, at)))
def test_a_value_of_the_wrong_type_is_refused_by_both(at: tuple[Any, ...]) -> None:
    """At each place of a recipe: what is no value anywhere, and what stands for a text, a number or a list."""
    for wrong in ({"x": 1}, [[1]], 1.5, "word", True, None):
        if (at, wrong) not in NO_TYPES:
            recipe = changed(at, wrong)
            assert VALIDATOR.is_valid(recipe) == loads(recipe), wrong


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (("seed",), 2**64),
        (("seed",), -1),
        (("tokenizer", "pad_to_multiple_of"), (1 << 20) + 1),
        (("tokenizer", "pad_to_multiple_of"), 0),
        (("slices", 0, "sources", 0, "layer_range"), [0, 4, 8]),
        (("slices", 0, "sources", 0, "layer_range", 0), -1),
        (("slices", 0, "sources", 0, "parameters", "density"), 1.5),
        (("slices", 0, "sources", 0, "parameters", "densty"), 0.5),
        (("slices", 0, "sources"), []),
        (("parameters", "consensus"), "summ"),
        (("sede",), 1),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_both(at: tuple[Any, ...], wrong: Any) -> None:
    """The bounds of keys and of parameters, and names that are misspelt."""
    assert not loads(changed(at, wrong))
    assert not VALIDATOR.is_valid(changed(at, wrong))
