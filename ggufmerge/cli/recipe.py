"""`ggufmerge recipe explain` and `ggufmerge schema`: help with writing recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufmerge.cli.facts import begin
from ggufmerge.cli.front import Command, Group
from ggufmerge.cli.options import All, Json, RecipeFile, read_recipe

if TYPE_CHECKING:
    from ggufmerge.planning.explain import Explanation

SCHEMA_HELP = """Print the JSON schema of recipes, for editors that complete and check YAML.

[bold]Examples[/bold]

  ggufmerge recipe schema > ggufmerge.schema.json

With the line below at the top of a recipe, editors with a YAML language server (VS Code, Neovim, ...) use it:

  # yaml-language-server: $schema=ggufmerge.schema.json
"""

RECIPE_HELP = """Help with writing recipes.

[bold]Examples[/bold]

  ggufmerge recipe explain recipe.yaml blk.3.ffn_down

  ggufmerge recipe schema > ggufmerge.schema.json

Every method has a recipe to begin with: ggufmerge methods ties.
"""

EXPLAIN_HELP = """Show for each tensor which rule of RECIPE gave each parameter its value.

TENSOR is a filter as in recipes: a part of a name in GGUF's or Hugging Face's vocabulary, or a glob.

[bold]Examples[/bold]

  ggufmerge recipe explain recipe.yaml blk.3.ffn_down

  ggufmerge recipe explain recipe.yaml "model.layers.*.self_attn.q_proj.weight"

  ggufmerge recipe explain recipe.yaml --json

Layers to which the same holds stand together, with the first and the last value of a gradient; --all takes them apart.
"""

recipe_app = typer.Typer(cls=Group, help=RECIPE_HELP)


@recipe_app.callback()
def _recipe(context: typer.Context) -> None:
    begin(f"recipe {context.invoked_subcommand}")


@recipe_app.command(cls=Command, help=SCHEMA_HELP)
def schema() -> None:
    from ggufmerge.cli.terminal import print_plain_json
    from ggufmerge.recipe.json_schema import json_schema

    print_plain_json(json_schema())


@recipe_app.command(cls=Command, help=EXPLAIN_HELP)
def explain(
    recipe: RecipeFile,
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Which tensors.", show_default="all")] = "*",
    every: All = False,
    json: Json = False,
) -> None:
    from dataclasses import asdict

    from ggufmerge.cli.terminal import print_json, range_text, show_table, show_warnings, tell
    from ggufmerge.files.shards import model_name
    from ggufmerge.planning.explain import explain as explain_recipe

    loaded = read_recipe(recipe)
    explanations = explain_recipe(loaded, tensor)
    show_warnings(line for part in (*loaded.stages, loaded) for line in part.warnings)
    if json:
        print_json({"recipe": str(recipe), "tensors": [_facts(asdict(e)) for e in explanations]})
        return
    for name, alike in _alike(explanations, every=every).items():
        e = alike[0]
        how = " (the result is one of the models: copied)" if e.action == "copy" else ""
        title = f"{len(alike)} x {name}" if len(alike) > 1 else e.tensor
        tell([f"{title}: {e.method}{how}, written as {e.type} ({e.type_why})"])
        rows = []
        for place, o in enumerate(e.origins):
            values = list(dict.fromkeys(other.origins[place].value for other in alike))
            rules = dict.fromkeys(other.origins[place].rule for other in alike)
            rule = (o.rule if len(rules) == 1 else _without_position(o.rule)) or "without a filter"
            parameter = f"{o.parameter} of {model_name(o.model)}" if o.model else o.parameter
            rows.append((parameter, range_text(values), o.where, rule))
        show_table(("parameter", "value", "from", "because"), rows)


def _alike(explanations: Sequence[Explanation], *, every: bool) -> dict[str, list[Explanation]]:
    """Tensors that differ in nothing but their layer and its place in gradients together, by their common name."""
    from ggufmerge.architectures.stacks import kind_of

    groups: dict[Any, list[Explanation]] = {}
    for e in explanations:
        rules = tuple((o.parameter, o.model, o.where, _without_position(o.rule)) for o in e.origins)
        name = e.tensor if every else kind_of(e.tensor)
        groups.setdefault((name, e.action, e.method, e.type, e.type_why, rules), []).append(e)
    found: dict[str, list[Explanation]] = {}
    for (name, *_), alike in groups.items():
        found[name if name not in found else f"{name} ({alike[0].tensor}, ...)"] = alike
    return found


def _without_position(rule: str) -> str:
    return re.sub(r"(gradient \[.*\]) at [\d.e+-]+", r"\1", rule)


def _facts(explanation: dict[str, Any]) -> dict[str, Any]:
    named = {"name": explanation.pop("tensor"), "why": explanation.pop("type_why")}
    explanation = {"name": named["name"], **explanation, "why": named["why"]}
    for origin in explanation["origins"]:
        if not isinstance(origin["value"], (int, float, str, bool, type(None))):
            origin["value"] = None
    return explanation
