"""`ggufmerge recipe explain` and `ggufmerge schema`: help with writing recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ggufmerge.cli.facts import begin
from ggufmerge.cli.front import Command, Group
from ggufmerge.cli.options import Json

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
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in mergekit's YAML.", show_default=False)],
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Which tensors.", show_default="all")] = "*",
    json: Json = False,
) -> None:
    from dataclasses import asdict

    from ggufmerge.cli.terminal import print_json, say, show_table, show_warnings, value_text
    from ggufmerge.engine.explain import explain as explain_recipe
    from ggufmerge.files.shards import model_name
    from ggufmerge.recipe import load_recipe

    loaded = load_recipe(recipe)
    explanations = explain_recipe(loaded, tensor)
    show_warnings(line for part in (*loaded.stages, loaded) for line in part.warnings)
    if json:
        print_json({"recipe": str(recipe), "tensors": [_facts(asdict(e)) for e in explanations]})
        return
    for e in explanations:
        how = " (the result is one of the models: copied)" if e.action == "copy" else ""
        say(f"{e.tensor}: {e.method}{how}, written as {e.type} ({e.type_why})")
        rows = [
            (
                f"{o.parameter} of {model_name(o.model)}" if o.model else o.parameter,
                value_text(o.value),
                o.where,
                o.rule,
            )
            for o in e.origins
        ]
        show_table(("parameter", "value", "from", "because"), rows)
        typer.echo()


def _facts(explanation: dict[str, Any]) -> dict[str, Any]:
    named = {"name": explanation.pop("tensor"), "why": explanation.pop("type_why")}
    explanation = {"name": named["name"], **explanation, "why": named["why"]}
    for origin in explanation["origins"]:
        if not isinstance(origin["value"], (int, float, str, bool, type(None))):
            origin["value"] = None
    return explanation
