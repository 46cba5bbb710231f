"""Plans: parameters by tensor, types, round trips; and what is decided without asking is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ggufmerge
from ggufmerge.engine import Plan, make_plan
from ggufmerge.errors import GgufmergeError, PlanError, RecipeError
from ggufmerge.recipe import load_recipe
from tests.tiny import write_tiny_llama


def plan_of(folder: Path, recipe: str, **options: str) -> Plan:
    path = folder / "plan.yaml"
    path.write_text(recipe, encoding="utf-8")
    return make_plan(load_recipe(path), **options)[0]


LINEAR = """
merge_method: linear
models:
  - model: a.f32.gguf
    parameters:
      weight: [{filter: self_attn, value: [1, 3]}, {filter: "blk.*.ffn_down.weight", value: 5}]
  - model: b.f32.gguf
    parameters: {weight: {filter: mlp, value: 7}}
parameters: {weight: 2}
"""


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("blk.0.attn_q.weight", (1, 2)),
        ("blk.1.attn_q.weight", (3, 2)),
        ("blk.1.ffn_down.weight", (5, 7)),
        ("blk.1.ffn_up.weight", (2, 7)),
        ("token_embd.weight", (2, 2)),
    ],
)
def test_the_first_filter_of_the_closest_level_decides(
    family: Path, tensor: str, expected: tuple[float, float]
) -> None:
    """Per model before global, filters in order, in both vocabularies."""
    plan = plan_of(family, LINEAR)
    assert next(t for t in plan.tensors if t.name == tensor).models["weight"] == expected


def test_a_plan_survives_json(family: Path) -> None:
    """What --json prints is the whole plan."""
    plan = plan_of(family, LINEAR, out_type="Q8_0")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_tensors_keep_the_types_of_the_base(family: Path) -> None:
    """Without out_type or dtype."""
    recipe = "{merge_method: linear, models: [{model: a.q8.gguf}, {model: b.f32.gguf}], parameters: {weight: 1}}\n"
    plan = plan_of(family, recipe)
    assert plan.file_type == "Q8_0"
    assert {str(t.type) for t in plan.tensors if len(t.shape) > 1} == {"Q8_0"}


@pytest.mark.parametrize(
    ("lines", "option", "expected"),
    [
        ("dtype: float16", None, "F16"),
        ("dtype: bfloat16\nout_dtype: float32", None, "F32"),
        ("dtype: float16\nout_type: q8_0", None, "Q8_0"),
        ("out_type: Q8_0", "q5_1", "Q5_1"),
    ],
)
def test_who_decides_the_type(family: Path, lines: str, option: str | None, expected: str) -> None:
    """The command line before out_type before out_dtype before dtype; vectors stay F32."""
    recipe = f"merge_method: linear\nmodels: [{{model: a.q8.gguf}}, {{model: b.q8.gguf}}]\n{lines}\n"
    plan = plan_of(family, recipe + "parameters: {weight: 1}\n", **({"out_type": option} if option else {}))
    assert plan.file_type == expected
    types = {t.name: t.type for t in plan.tensors}
    assert types["blk.0.ffn_up.weight"] == expected
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_a_tied_model_lends_its_embedding_as_head(tmp_path: Path) -> None:
    """When another model has a head of its own; the plan says so."""
    write_tiny_llama(tmp_path / "tied.gguf", tied=True)
    write_tiny_llama(tmp_path / "own.gguf", tune=(1, 0.02))
    both = "{merge_method: linear, models: [{model: tied.gguf}, {model: own.gguf}], parameters: {weight: 1}}\n"
    head = next(t for t in plan_of(tmp_path, both).tensors if t.name == "output.weight")
    assert [i.tensor for i in head.inputs] == ["token_embd.weight", "output.weight"]
    assert "tied" in head.decisions[0]
    alone = "{merge_method: passthrough, models: [{model: tied.gguf}]}\n"
    assert "output.weight" not in {t.name for t in plan_of(tmp_path, alone).tensors}


def test_a_filter_that_matches_nothing_is_an_error(family: Path) -> None:
    """It suggests what names look like; a word of another architecture is only a warning, and so is one beside others
    that hold: mergekit looks at the next entry.
    """
    recipe = "merge_method: linear\nmodels: [{model: a.q8.gguf}, {model: b.q8.gguf}]\n"
    with pytest.raises(RecipeError, match='filter "atn" of weight matches no tensor'):
        plan_of(family, recipe + "parameters: {weight: [{filter: atn, value: 1}]}\n")
    plan = plan_of(family, recipe + "parameters: {weight: [{filter: modelnorm, value: 1}, {value: 2}]}\n")
    assert [w for w in plan.warnings if 'the filter "modelnorm" of weight matches no tensor and' in w]
    plan = plan_of(family, recipe + "parameters: {weight: [{filter: q_norm, value: 1}, {value: 2}]}\n")
    assert any("q_norm" in w for w in plan.warnings)


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        (
            "merge_method: slerp\nbase_model: a.q8.gguf\nmodels: [{model: b.q8.gguf}]",
            "no t is given",
        ),
        (
            "merge_method: linear\nmodels: [{model: a.q8.gguf}, {model: b.q8.gguf, parameters: {weight: 1}}]",
            "a.q8.gguf has no weight, though another model has one",
        ),
        (
            "merge_method: passthrough\nmodels: [{model: a.q8.gguf}, {model: b.q8.gguf}]",
            "takes at most 1 model, not 2",
        ),
        (
            "merge_method: slerp\nbase_model: a.q8.gguf\nparameters: {t: 1}\nmodels: [{model: a.q8.gguf}]",
            "needs at least 1 model besides",
        ),
        (
            "merge_method: linear\nmodels: [{model: a.q8.gguf}, {model: b.q8.gguf, parameters: {weight: -1}}]\n"
            "parameters: {weight: 1}",
            "weights sum to zero",
        ),
    ],
)
def test_recipes_that_cannot_be_carried_out(family: Path, recipe: str, complaint: str) -> None:
    """Each says what is missing and where."""
    with pytest.raises(GgufmergeError, match=complaint):
        plan_of(family, recipe + "\n")


@pytest.mark.parametrize("option", ["imatrix", "calibration"])
@pytest.mark.parametrize("plan", [make_plan, ggufmerge.plan, partial(ggufmerge.build, output="out.gguf")])
def test_files_that_win_over_a_recipe_reach_every_plan(family: Path, option: str, plan: Callable[..., Any]) -> None:
    """However it is asked for: one that is not there is told of under the option's name."""
    path = family / "plan.yaml"
    path.write_text(LINEAR, encoding="utf-8")
    with pytest.raises(GgufmergeError, match=rf"{option}.*missing\.gguf"):
        plan(load_recipe(path), **{option: ["missing.gguf"]})


def test_types_that_need_an_imatrix_are_refused_in_the_plan(tmp_path: Path) -> None:
    """Before any work: no matrix can be given to a merge yet."""
    for name, tune in (("a", None), ("b", (1, 0.02))):
        write_tiny_llama(tmp_path / f"{name}.gguf", embed=256, ff=256, tune=tune)
    recipe = "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}\n"
    with pytest.raises(PlanError, match="importance matrix"):
        plan_of(tmp_path, recipe, out_type="IQ2_XXS")
