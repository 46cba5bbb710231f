"""`ggufmerge recipe explain` and `ggufmerge schema`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.errors import RecipeError
from tests.tiny import write_tiny_llama

RECIPE = """\
merge_method: slerp
base_model: a.gguf
models:
  - model: a.gguf
  - model: b.gguf
parameters:
  t:
    - filter: self_attn
      value: [0, 0.4]
    - value: 0.5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "a.gguf")
    write_tiny_llama(tmp_path / "b.gguf", tune=(1, 0.02))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path / "r.yaml"


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_explain_names_rule_and_line(recipe: Path) -> None:
    """For each parameter of each tensor that the filter means, in either vocabulary."""
    explained = json.loads(invoke("recipe", "explain", recipe, "layers.1.self_attn.q_proj", "--json"))["tensors"]
    assert [e["name"] for e in explained] == ["blk.1.attn_q.weight"]
    [t] = [o for o in explained[0]["origins"] if o["parameter"] == "t"]
    assert (t["value"], t["where"]) == (0.4, "r.yaml:7:3")
    assert t["rule"] == 'filter "self_attn", gradient [0, 0.4] at 1'
    [chain] = [o for o in explained[0]["origins"] if o["parameter"] == "chain"]
    assert chain["where"] == "default"


def test_explain_says_what_is_copied(recipe: Path) -> None:
    """t = 0 in layer 0: no merging, and the text says so."""
    assert "copied" in invoke("recipe", "explain", recipe, "blk.0.attn_v")


def test_explain_refuses_a_filter_that_means_nothing(recipe: Path) -> None:
    """In one line."""
    with pytest.raises(RecipeError, match='"nope" means no tensor'):
        CliRunner().invoke(app, ["recipe", "explain", str(recipe), "nope"], catch_exceptions=False)


ROOT = Path(__file__).parents[2]
GOOD = [RECIPE, *(p.read_text(encoding="utf-8") for p in sorted((ROOT / "recipes").rglob("*.yaml")))]


def test_the_schema_accepts_what_loads_and_refuses_what_does_not() -> None:
    """The recipes of the project; misspelt keys and parameters, values of the wrong kind."""
    schema = json.loads(invoke("schema"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert len(GOOD) > 4
    for text in GOOD:
        assert not list(validator.iter_errors(yaml.safe_load(text)))
    for old, new in (("merge_method", "merge_metod"), ("t:", "tt:"), ("value: 0.5", "value: x"), ("slerp", "slrp")):
        assert list(validator.iter_errors(yaml.safe_load(RECIPE.replace(old, new, 1)))), new


def test_the_schema_knows_every_key() -> None:
    """What the typed schema accepts and what the printed one lists are the same words."""
    from ggufmerge.recipe import Recipe
    from ggufmerge.recipe.json_schema import json_schema
    from ggufmerge.recipe.load import INERT

    assert set(json_schema()["properties"]) == set(Recipe.model_fields) | set(INERT)


def test_recipes_of_the_project_carry_the_schema_line() -> None:
    """So that they complete in editors; the schema they name is the one that the command prints."""
    for path in (ROOT / "recipes").rglob("*.yaml"):
        head = path.read_text(encoding="utf-8").splitlines()[0]
        assert head.startswith("# yaml-language-server: $schema="), path
        schema = path.parent / head.partition("$schema=")[2]
        assert json.loads(schema.read_text(encoding="utf-8")) == json.loads(invoke("schema"))
