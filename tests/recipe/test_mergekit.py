"""Settings mean what they mean in mergekit: its own values for filters and gradients lie in vendor/mergekit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggufmerge.recipe import load_recipe
from ggufmerge.recipe.settings import at

GOLDENS = json.loads((Path(__file__).parents[2] / "vendor/mergekit/settings.json").read_text(encoding="utf-8"))
# a method with a shared parameter of this type, and that parameter
CARRIERS = {"float": ("slerp", "t"), "bool": ("slerp", "chain"), "int": ("karcher", "max_iter")}


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: case["setting"])
def test_settings_have_mergekits_values(case):
    """At every position of models of several depths: numbers to rounding, switches exactly, and with their type."""
    method, parameter = CARRIERS[case["kind"]]
    base = "base_model: a\n" if method == "slerp" else ""
    text = f"{base}merge_method: {method}\nmodels: [{{model: b}}]\nparameters: {{{parameter}: {case['setting']}}}\n"
    setting = load_recipe(text).parameters[parameter]
    for name, expected in case["values"].items():
        rule = setting.rule_for(name, "llama")
        for i, position in enumerate(GOLDENS["positions"]):
            value = None if rule is None else at(rule.value, position)
            wanted = expected[i] if isinstance(expected, list) else expected
            assert value == (pytest.approx(wanted, rel=1e-12, abs=1e-12) if type(wanted) is float else wanted)
            assert type(value) is type(wanted)
