"""Parameter settings: scalars, gradients and filters, against a second, tiny implementation of the rules."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufmerge.recipe.settings import Rule, at, matches, parse

NAMES = ("token_embd.weight", "blk.3.attn_q.weight", "blk.3.ffn_down.weight", "output.weight")
NUMBERS = st.one_of(st.integers(-4, 4), st.floats(-4, 4))
GRADIENTS = st.lists(NUMBERS, min_size=1, max_size=7)
FILTERS = st.sampled_from([None, "*", "attn", "self_attn", "mlp", "ffn_down", "weight", "lm_head", "absent"])
RULES = st.lists(st.tuples(FILTERS, st.one_of(NUMBERS, GRADIENTS)), min_size=1, max_size=4)


def layer(i: int, layers: int) -> float:
    """The position of a layer as the planner counts it."""
    return i / (layers - 1) if layers > 1 else 1.0


def interpolated(anchors: list[float], i: int, layers: int) -> float:
    """The gradient in exact arithmetic."""
    x = Fraction(i, layers - 1) * (len(anchors) - 1) if layers > 1 else Fraction(len(anchors) - 1)
    whole = int(x)
    left, right = Fraction(anchors[whole]), Fraction(anchors[min(whole + 1, len(anchors) - 1)])
    return float(left + (right - left) * (x - whole))


@given(RULES, st.sampled_from(NAMES), st.integers(1, 40), st.data())
def test_resolution_equals_a_second_implementation(rules, name, layers, data):
    """The first rule whose filter is a part of one of the names decides; its gradient is linear between anchors."""
    i = data.draw(st.integers(0, layers - 1))
    hugging_face = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.3.attn_q.weight": "model.layers.3.self_attn.q_proj.weight",
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
        "output.weight": "lm_head.weight",
    }[name]
    written = [{"value": value} | ({} if f is None else {"filter": f}) for f, value in rules]
    expected = next((v for f, v in rules if f in (None, "*") or f in name or f in hugging_face), None)
    if isinstance(expected, list):
        expected = interpolated(expected, i, layers)
    rule = parse(written).rule_for(name, "llama")
    got = None if rule is None else at(rule.value, layer(i, layers))
    assert got == (expected if expected is None else pytest.approx(expected, rel=1e-12, abs=1e-12))


@given(st.integers(2, 130), st.data())
def test_as_many_anchors_as_layers_give_each_layer_its_own(layers, data):
    """Exactly, for numbers and for switches, although i / (layers - 1) * (layers - 1) may round below i."""
    i = data.draw(st.integers(0, layers - 1))
    numbers = tuple(0.1 * k for k in range(layers))
    assert at(numbers, layer(i, layers)) == numbers[i]
    words = tuple(f"layer {k}" for k in range(layers))
    assert at(words, layer(i, layers)) == words[i]


@pytest.mark.parametrize("layers", [1, 2, 3, 23, 24, 32])
def test_constant_gradients_are_constant(layers):
    """To the bit: t = 1 in all layers copies them unchanged, which 0.9999999999999999 would not."""
    assert {at((0.7, 0.7, 0.7), layer(i, layers)) for i in range(layers)} == {0.7}


def test_switches_are_picked_not_interpolated():
    """The anchor at or before the position decides."""
    assert [at((True, False, True), x) for x in (0, 0.3, 0.5, 0.9, 1)] == [True, True, False, False, True]


def test_scalars_are_themselves():
    """At every position."""
    assert [at(v, 0.3) for v in (0.5, 2, True, "sum", None)] == [0.5, 2, True, "sum", None]


@pytest.mark.parametrize(
    ("pattern", "tensor", "hit"),
    [
        ("ffn_down", "blk.3.ffn_down.weight", True),
        ("mlp", "blk.3.ffn_down.weight", True),
        ("mlp", "blk.3.ffn_norm.weight", False),
        ("self_attn", "blk.3.attn_q.weight", True),
        ("self_attn", "blk.3.attn_norm.weight", False),
        ("layers.3.", "blk.3.attn_norm.weight", True),
        ("layers.3.", "blk.13.attn_norm.weight", False),
        ("embed_tokens", "token_embd.weight", True),
        ("lm_head", "output.weight", True),
        ("blk.*.ffn_*.weight", "blk.3.ffn_down.weight", True),
        ("ffn_*", "blk.3.ffn_down.weight", False),
        ("*.mlp.*", "blk.3.ffn_down.weight", True),
        ("*.layers.[0-3].*", "blk.3.attn_q.weight", True),
        ("*.layers.[0-3].*", "blk.4.attn_q.weight", False),
        ("blk.?.attn_q.weight", "blk.13.attn_q.weight", False),
        ("ATTN", "blk.3.attn_q.weight", False),
    ],
)
def test_filters(pattern, tensor, hit):
    """A plain filter is a part of a name, a glob is a whole name; both vocabularies count, so does case."""
    assert matches(pattern, tensor, "llama") is hit


def test_rules_that_can_never_decide():
    """Those behind one without a filter, and those that repeat a filter."""
    setting = parse(
        [{"filter": "mlp", "value": 1}, {"filter": "mlp", "value": 2}, {"value": 3}, {"filter": "a", "value": 4}]
    )
    assert setting.unreachable() == [Rule("mlp", 2), Rule("a", 4)]
    assert parse([{"filter": "mlp", "value": 1}, {"filter": "attn", "value": 2}, {"value": 3}]).unreachable() == []


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([], "at least one value"),
        ([1, [2]], "not both"),
        ([1, {"value": 2}], "not both"),
        ({}, "needs the key value"),
        ({"filter": "mlp"}, "needs the key value"),
        ({"value": 1, "filters": "mlp"}, 'unknown key "filters"'),
        ({"value": 1, "filter": 3}, "not 3"),
        ({"value": [{"filter": "mlp", "value": 1}]}, "not both"),
        ({"value": {"value": 1}}, "neither a value"),
    ],
)
def test_refused(value, complaint):
    """With words that say what a setting is."""
    with pytest.raises(ValueError, match=complaint):
        parse(value)
