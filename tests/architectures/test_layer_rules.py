"""What is known of layers by their places, against what llama.cpp says of a tiny model of each architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufmerge.architectures.layer_rules import layer_rules
from ggufmerge.architectures.layers import PER_LAYER, PER_LAYER_ANYWHERE, Changed, Layers
from ggufmerge.architectures.rules import ExpertStep, Further, Lead, Recurrent, Rule, SharedCache, Window
from tests.architecture_models import TinyModel, tiny_models

PATTERN = "attention.sliding_window_pattern"
# architectures whose windows follow from something that belongs to a layer, or are in all of them
WINDOWS_ELSEWHERE = {
    "deepseek4": "each layer has a window",
    "lfm2": "layers without keys and values have it, and are no attention",
}


def layers_of(model: TinyModel) -> Layers:
    """The layers of a tiny model."""
    return Layers(model.architecture, model.layers, model.metadata)


def of_kind(model: TinyModel, kind: type[Rule]) -> list[Rule]:
    """The rules of a model that are of one kind."""
    return [rule for rule in layer_rules(model.architecture) if isinstance(rule, kind)]


def bits(text: str) -> list[bool]:
    """What llama.cpp said of each layer."""
    return [letter == "1" for letter in text]


@pytest.mark.parametrize("name", tiny_models())
def test_layers_that_predict_further_tokens_are_those_behind_the_others(name: str):
    """`n_layer()` of llama.cpp counts the others."""
    model = tiny_models()[name]
    (rule,) = of_kind(model, Further)
    assert rule.of(layers_of(model)) == [i >= model.kinds["n_layer"] for i in range(model.layers)]


@pytest.mark.parametrize("name", tiny_models())
def test_windows_are_where_llama_cpp_has_them(name: str):
    """Where there is no rule, and no list, there is none."""
    model = tiny_models()[name]
    if isinstance(model.metadata.get(f"{model.architecture}.{PATTERN}"), list):
        given = layers_of(model).values(PATTERN) or []
        assert bits(model.kinds["swa"])[: len(given)] == list(map(bool, given))[: model.layers]
    rules = of_kind(model, Window)
    if rules:
        assert [rule.of(layers_of(model)) for rule in rules] == [bits(model.kinds["swa"])]
    elif f"{model.architecture}.{PATTERN}" not in model.metadata and model.architecture not in WINDOWS_ELSEWHERE:
        assert not any(bits(model.kinds["swa"]))


@pytest.mark.parametrize("name", [name for name, model in tiny_models().items() if of_kind(model, Recurrent)])
def test_linear_attention_is_where_llama_cpp_has_it(name: str):
    """In the models that count them."""
    model = tiny_models()[name]
    (rule,) = of_kind(model, Recurrent)
    assert rule.of(layers_of(model)) == bits(model.kinds["recr"])
    assert any(bits(model.kinds["recr"]))


@pytest.mark.parametrize("name", tiny_models())
def test_recurrent_layers_without_a_rule_are_told_by_what_a_layer_has(name: str):
    """By heads of its own (`head_count_kv`), or all of them are recurrent."""
    model = tiny_models()[name]
    found = set(bits(model.kinds["recr"])[: model.kinds["n_layer"]])
    if len(found) == 2 and not of_kind(model, Recurrent):
        layers = layers_of(model)
        assert layers.values("attention.head_count_kv") or layers.values("attention.head_count")


@pytest.mark.parametrize("name", tiny_models())
def test_leading_layers_without_experts_are_as_many_as_llama_cpp_has(name: str):
    """`n_layer_dense_lead`, which only models with a rule have, and those without any experts."""
    model = tiny_models()[name]
    rules = [rule for rule in of_kind(model, Lead) if rule.reads == ("leading_dense_block_count",)]
    lead = model.kinds["dense_lead"]
    if rules:
        assert rules[0].of(layers_of(model)) == [i < lead for i in range(model.layers)]
    else:
        assert lead in (0, model.layers)


@pytest.mark.parametrize("name", [name for name, model in tiny_models().items() if of_kind(model, ExpertStep)])
def test_experts_are_in_the_layers_that_have_their_tensors(name: str):
    """Of the models that have them in each n-th layer."""
    model = tiny_models()[name]
    (rule,) = of_kind(model, ExpertStep)
    having = [f"blk.{i}.ffn_gate_inp.weight" in model.tensors for i in range(model.layers)]
    assert rule.of(layers_of(model)) == having


@pytest.mark.parametrize("name", tiny_models())
def test_layers_without_keys_of_their_own_have_a_rule(name: str):
    """Or no attention at all."""
    model = tiny_models()[name]
    own = bits(model.kinds["has_kv"])
    for i, has in enumerate(own):
        assert has or of_kind(model, SharedCache) or bits(model.kinds["recr"])[i] or model.architecture == "gemma3n"


def moved(model: TinyModel, order: Sequence[int]) -> dict[str, Any]:
    """The metadata of other layers: their number, and values of single layers with them."""
    layers = layers_of(model)
    changes: dict[str, Any] = {layers.key("block_count"): len(order)}
    for key in [*map(layers.key, PER_LAYER), *PER_LAYER_ANYWHERE]:
        values = model.metadata.get(key)
        if isinstance(values, list):
            changes[key] = [values[i] for i in order if i < len(values)]
    return changes


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_what_rules_write_gives_layers_what_they_are_to_have(data: st.DataObject):
    """Also when all rules of an architecture have written what they need."""
    model = tiny_models()[data.draw(st.sampled_from(sorted(tiny_models())))]
    places = st.integers(0, model.layers - 1)
    order = data.draw(st.one_of(st.lists(places, min_size=1, max_size=16), st.lists(places, min_size=1).map(sorted)))
    changes = moved(model, order)
    kept: list[tuple[Rule, list[Any]]] = []
    for rule in layer_rules(model.architecture):
        wanted = [rule.of(layers_of(model))[i] for i in order]
        result = Layers(model.architecture, len(order), Changed(model.metadata, changes))
        if rule.of(result) == wanted:
            kept.append((rule, wanted))
        elif (written := rule.kept(result, wanted)) is not None:
            changes |= written
            kept.append((rule, wanted))
    result = Layers(model.architecture, len(order), Changed(model.metadata, changes))
    for rule, wanted in kept:
        assert rule.of(result) == wanted, rule
