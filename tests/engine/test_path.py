"""A recipe goes one way through the planner: a module is entered for what it answers, and not again and again."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.tiny import write_tiny_llama

FOLLOW = Path(__file__).parents[2] / "scripts" / "follow.py"
RECIPES = {
    "plain": "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}",
    "union": "{merge_method: linear, models: [{model: a.gguf}, {model: c.gguf}], parameters: {weight: 1}, "
    "tokenizer_source: union, chat_template: auto, out_type: Q8_0}",
    "slices": "{merge_method: passthrough, slices: [{sources: [{model: a.gguf, layer_range: [0, 2]}]}, "
    "{sources: [{model: b.gguf, layer_range: [1, 2]}]}], graft: [{model: b.gguf, tensors: [output_norm]}]}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("path")
    write_tiny_llama(place / "a.gguf")
    write_tiny_llama(place / "b.gguf", tune=(1, 0.02))
    write_tiny_llama(place / "c.gguf", vocab=330, added={"<more>": 4}, tune=(1, 0.02))
    return place


@pytest.mark.parametrize("name", RECIPES)
def test_no_module_of_the_planner_is_entered_more_than_three_times(folder: Path, name: str) -> None:
    """From other modules, on the way from the front door to the plan; `scripts/follow.py RECIPE` shows the way."""
    (folder / f"{name}.yaml").write_text(RECIPES[name])
    found = runpy.run_path(str(FOLLOW))["follow"](str(folder / f"{name}.yaml"))
    entries = found.entries
    assert entries["planning/planner.py"] == 1
    assert {"engine/documents.py", "planning/models.py"} <= entries.keys()
    often = {module: count for module, count in entries.items() if count > 3}
    assert often.keys() <= {"recipe/schema.py"}  # whose validators pydantic calls one by one
    assert often.get("recipe/schema.py", 0) <= 4
    assert [function for _, _, function in found.calls].count("check_files") == 1
