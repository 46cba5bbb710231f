"""What a plan shows: the parameters that hold, whatever the recipe makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ggufmerge.cli import terminal
from tests.tiny import write_tiny_llama

Run = Callable[..., tuple[int, str, str]]
TWO = "base_model: base.gguf\nmodels: [{model: a.gguf, parameters: {weight: 1}}, {model: b.gguf}]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    for number, name in enumerate(("base", "a", "b")):
        write_tiny_llama(folder / f"{name}.gguf", layers=3, tune=(number, 0.02) if number else None)
    return folder


@pytest.fixture
def plan(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, dict[str, str]]]:
    """The line of what holds everywhere ("" without one), and what happens to each kind of tensor."""
    monkeypatch.chdir(folder)

    def call(recipe: str) -> tuple[str, dict[str, str]]:
        Path("r.yaml").write_text(recipe)
        code, out, err = run("plan", "r.yaml")
        assert code == 0, err
        everywhere = re.search(r"^everywhere: (.*)$", out, re.MULTILINE)
        rows = re.findall(r"^(?:\d+ x )?(\S+\.weight) +[\d x]+? +F32 +(.*)$", out, re.MULTILINE)
        return everywhere[1] if everywhere else "", dict(rows)

    return call


def test_what_is_at_its_default_in_some_tensors_is_shown_in_all(plan) -> None:
    """A density of 0.5 for one kind of tensor, and of 1, the default, for the rest."""
    recipe = (
        f"merge_method: ties\n{TWO}parameters: {{weight: 1, density: [{{filter: mlp, value: 0.5}}, {{value: 1}}]}}\n"
    )
    everywhere, rows = plan(recipe)
    assert everywhere == "weight 1"
    assert rows["blk.*.ffn_up.weight"] == "merged: density 0.5"
    assert rows["blk.*.attn_q.weight"] == "merged: density 1"


@pytest.mark.parametrize(
    ("recipe", "parameter"),
    [
        (f"merge_method: ties\n{TWO}parameters: {{weight: 1, lambda: FILTERED}}\n", "lambda"),
        (f"merge_method: dare_ties\n{TWO}parameters: {{weight: 1, density: FILTERED}}\n", "density"),
        (
            f"merge_method: sce\n{TWO}parameters: {{select_topk: FILTERED}}\n".replace(", parameters: {weight: 1}", ""),
            "select_topk",
        ),
        ("merge_method: slerp\nbase_model: base.gguf\nmodels: [{model: a.gguf}]\nparameters: {t: FILTERED}\n", "t"),
    ],
)
def test_filtered_parameters_are_shown_where_they_differ(plan, recipe: str, parameter: str) -> None:
    """Whatever the default is, and whether tensors or models have them."""
    _, rows = plan(recipe.replace("FILTERED", "[{filter: mlp, value: 0.25}, {value: 0.75}]"))
    assert f"{parameter} 0.25" in rows["blk.*.ffn_up.weight"]
    assert f"{parameter} 0.75" in rows["blk.*.attn_q.weight"]


def test_switches_that_filters_turn_are_shown(plan) -> None:
    """Words and switches as well as numbers."""
    models = "models: [{model: a.gguf}, {model: b.gguf}]\n"
    switch = "nuslerp_flatten: [{filter: mlp, value: false}, {value: true}]"
    _, rows = plan(f"merge_method: nuslerp\nbase_model: base.gguf\n{models}parameters: {{weight: 1, {switch}}}\n")
    assert "nuslerp_flatten no" in rows["blk.*.ffn_up.weight"]
    assert "nuslerp_flatten yes" in rows["blk.*.attn_q.weight"]


def test_methods_with_different_numbers_of_models_are_shown(plan) -> None:
    """TIES has a weight for one model beside its base, linear one for each of the two; each line says by what."""
    _, rows = plan(
        "merge_method: [{filter: mlp, value: ties}, {value: linear}]\nbase_model: base.gguf\n"
        "models: [{model: base.gguf, parameters: {weight: 0.25}}, {model: a.gguf, parameters: {weight: 0.75}}]\n"
        "parameters: {density: 0.5}\n"
    )
    assert rows["blk.*.ffn_up.weight"] == "merged by ties: weight 0.75, density 0.5"
    assert rows["blk.*.attn_q.weight"] == "merged by linear: weight #0 0.25 #1 0.75"


def test_methods_by_layer_have_lines_of_their_own(plan) -> None:
    """Though the tensors are of one kind."""
    _, rows = plan(
        "merge_method: [{filter: blk.0., value: ties}, {value: linear}]\nbase_model: base.gguf\n"
        "models: [{model: base.gguf, parameters: {weight: 0.25}}, {model: a.gguf, parameters: {weight: 0.75}}]\n"
        "parameters: {density: 0.5}\n"
    )
    assert rows["blk.0.ffn_up.weight"] == "merged by ties: weight 0.75, density 0.5"
    assert rows["blk.*.ffn_up.weight"] == "merged by linear: weight #0 0.25 #1 0.75"


@pytest.mark.parametrize(
    ("gradient", "shown"),
    [("[0.1, 0.5, 0.9]", "0.1..0.9"), ("[0.9, 0.1]", "0.9..0.1"), ("[0.1, 0.9, 0.5]", "0.1..0.9"), ("0.5", "0.5")],
)
def test_a_gradient_is_shown_by_its_ends(plan, gradient: str, shown: str) -> None:
    """Of one that turns round, the smallest and the largest value."""
    _, rows = plan(
        "merge_method: slerp\nbase_model: base.gguf\nmodels: [{model: a.gguf}]\n"
        f"parameters: {{t: [{{filter: blk, value: {gradient}}}, {{value: 0.125}}]}}\n"
    )
    assert rows["blk.*.attn_q.weight"] == f"merged: t {shown}"
    assert rows["output.weight"] == "merged: t 0.125"


def test_a_base_for_some_slices_only_is_shown(plan) -> None:
    """A method that takes differences where there is a base, and none elsewhere."""
    slices = [
        "{sources: [{model: base.gguf, layer_range: [0, 1]}, {model: a.gguf, layer_range: [0, 1]}, "
        "{model: b.gguf, layer_range: [0, 1]}], base_model: base.gguf, parameters: {weight: 0.5}}",
        "{sources: [{model: a.gguf, layer_range: [1, 3]}, {model: b.gguf, layer_range: [1, 3]}], "
        "parameters: {weight: 1}}",
    ]
    everywhere, rows = plan(f"merge_method: nuslerp\nslices: [{', '.join(slices)}]\n")
    assert "weight" not in everywhere
    assert rows["blk.0.attn_q.weight"] == "merged: weight 0.5"
    assert rows["blk.*.attn_q.weight"] == "merged from #1 #2: weight 1"


def test_the_file_keeps_its_name_where_the_table_is_too_wide(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the user knows a model by; the name in the metadata loses its middle first."""
    names = [f"Storyteller-135M-Instruct-{which}.gguf" for which in "ab"]
    for name in names:
        write_tiny_llama(tmp_path / name, metadata={"general.name": "Storyteller of the Long Name " * 3})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "console", lambda **_: Console(force_terminal=True, width=80, color_system=None))
    Path("r.yaml").write_text(f"merge_method: linear\nmodels: [{{model: {names[0]}}}, {{model: {names[1]}}}]\n")
    out = run("plan", "r.yaml")[1]
    assert all(re.search(rf"^#\d  {re.escape(name)}  Story", out, re.MULTILINE) for name in names)
    assert max(map(len, out.splitlines())) <= 80


def test_a_plan_shows_what_would_be_left_of_the_changes(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `change`, and as `kept` in JSON; where it was not tried out, a note says that the build measures it."""
    for number, name in enumerate(("base", "a", "b")):
        tune = (number, 0.02) if number else None
        write_tiny_llama(tmp_path / f"{name}.gguf", layers=2, embed=256, ff=256, type="Q8_0", tune=tune)
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"merge_method: task_arithmetic\n{TWO}parameters: {{weight: 1}}\n")
    monkeypatch.setattr("ggufmerge.engine.trial.is_prepared", lambda kind: True)
    monkeypatch.setattr("ggufmerge.engine.trial._SECONDS", 1e9)
    out = run("plan", "r.yaml")[1]
    assert re.search(
        r"^change   Q8_0: about \d+ % of the change would survive.* \(2 of 16 tensors tried\)$", out, re.MULTILINE
    )
    assert "the build measures it" not in out
    assert json.loads(run("plan", "r.yaml", "--json")[1])["kept"][0]["type"] == "Q8_0"
    monkeypatch.setattr("ggufmerge.engine.trial.is_prepared", lambda kind: False)
    out = run("plan", "r.yaml")[1]
    assert "the build measures it" in out
    assert "\nchange " not in out
    assert json.loads(run("plan", "r.yaml", "--json")[1])["kept"] is None
