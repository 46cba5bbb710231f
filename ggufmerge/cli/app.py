"""The typer application and its commands."""

from __future__ import annotations

import typer

from ggufmerge.cli.bake import HELP as BAKE_HELP
from ggufmerge.cli.bake import bake
from ggufmerge.cli.build import BUILD_HELP, PLAN_HELP, build, plan
from ggufmerge.cli.diff import HELP as DIFF_HELP
from ggufmerge.cli.diff import diff
from ggufmerge.cli.docs import HELP as DOCS_HELP
from ggufmerge.cli.docs import docs
from ggufmerge.cli.evaluate import HELP as EVAL_HELP
from ggufmerge.cli.evaluate import evaluate
from ggufmerge.cli.extract import HELP as EXTRACT_HELP
from ggufmerge.cli.extract import extract_lora
from ggufmerge.cli.facts import begin
from ggufmerge.cli.inspect import HELP as INSPECT_HELP
from ggufmerge.cli.inspect import inspect
from ggufmerge.cli.merge import HELP as MERGE_HELP
from ggufmerge.cli.merge import merge
from ggufmerge.cli.models import HELP as MODELS_HELP
from ggufmerge.cli.models import models
from ggufmerge.cli.new import HELP as NEW_HELP
from ggufmerge.cli.new import new
from ggufmerge.cli.push import HELP as PUSH_HELP
from ggufmerge.cli.push import push
from ggufmerge.cli.quantize import HELP as QUANTIZE_HELP
from ggufmerge.cli.quantize import quantize
from ggufmerge.cli.recipe import SCHEMA_HELP, recipe_app, schema
from ggufmerge.cli.split import JOIN_HELP, SPLIT_HELP, join, split

app = typer.Typer(
    name="ggufmerge",
    help="Merge the weights of quantized GGUF language models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(context: typer.Context) -> None:
    begin(context.invoked_subcommand or "")


app.command(help=MERGE_HELP)(merge)
app.command(help=NEW_HELP)(new)
app.command(help=BUILD_HELP)(build)
app.command(help=PLAN_HELP)(plan)
app.command(help=QUANTIZE_HELP)(quantize)
app.command(help=BAKE_HELP)(bake)
app.command("extract-lora", help=EXTRACT_HELP)(extract_lora)
app.command(help=SPLIT_HELP)(split)
app.command(help=JOIN_HELP)(join)
app.command(help=PUSH_HELP)(push)
app.command(help=MODELS_HELP)(models)
app.command(help=INSPECT_HELP)(inspect)
app.add_typer(recipe_app, name="recipe")
app.command(help=SCHEMA_HELP)(schema)
app.command(help=DIFF_HELP)(diff)
app.command("eval", help=EVAL_HELP)(evaluate)
app.command(help=DOCS_HELP)(docs)
