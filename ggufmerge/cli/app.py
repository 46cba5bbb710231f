"""The typer application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from ggufmerge.cli.bake import HELP as BAKE_HELP
from ggufmerge.cli.bake import bake
from ggufmerge.cli.build import BUILD_HELP, PLAN_HELP, build, plan
from ggufmerge.cli.calibrate import HELP as CALIBRATE_HELP
from ggufmerge.cli.calibrate import calibrate
from ggufmerge.cli.diff import HELP as DIFF_HELP
from ggufmerge.cli.diff import diff
from ggufmerge.cli.docs import HELP as DOCS_HELP
from ggufmerge.cli.docs import docs
from ggufmerge.cli.evaluate import HELP as EVAL_HELP
from ggufmerge.cli.evaluate import evaluate
from ggufmerge.cli.extract import HELP as EXTRACT_HELP
from ggufmerge.cli.extract import extract_lora
from ggufmerge.cli.facts import begin
from ggufmerge.cli.front import Command, Group
from ggufmerge.cli.inspect import HELP as INSPECT_HELP
from ggufmerge.cli.inspect import inspect
from ggufmerge.cli.merge import HELP as MERGE_HELP
from ggufmerge.cli.merge import merge
from ggufmerge.cli.methods import HELP as METHODS_HELP
from ggufmerge.cli.methods import methods
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
from ggufmerge.cli.types import HELP as TYPES_HELP
from ggufmerge.cli.types import types
from ggufmerge.cli.version import HELP as VERSION_HELP
from ggufmerge.cli.version import show_version, version
from ggufmerge.cli.voice import voiced

app = typer.Typer(
    name="ggufmerge",
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    context: typer.Context,
    told: Annotated[
        bool, typer.Option("--version", "-V", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    begin(context.invoked_subcommand or "")


app.command(cls=Command, help=MERGE_HELP)(voiced(merge))
app.command(cls=Command, help=NEW_HELP)(new)
app.command(cls=Command, help=BUILD_HELP)(voiced(build))
app.command(cls=Command, help=PLAN_HELP)(plan)
app.command(cls=Command, help=QUANTIZE_HELP)(voiced(quantize))
app.command(cls=Command, help=BAKE_HELP)(voiced(bake))
app.command("extract-lora", cls=Command, help=EXTRACT_HELP)(voiced(extract_lora))
app.command(cls=Command, help=SPLIT_HELP)(split)
app.command(cls=Command, help=JOIN_HELP)(join)
app.command(cls=Command, help=PUSH_HELP)(push)
app.command(cls=Command, help=MODELS_HELP)(models)
app.command(cls=Command, help=METHODS_HELP)(methods)
app.command(cls=Command, help=TYPES_HELP)(types)
app.command(cls=Command, help=INSPECT_HELP)(inspect)
app.add_typer(recipe_app, name="recipe")
app.command(cls=Command, help=SCHEMA_HELP, hidden=True)(schema)
app.command(cls=Command, help=DIFF_HELP)(diff)
app.command("eval", cls=Command, help=EVAL_HELP)(evaluate)
app.command(cls=Command, help=CALIBRATE_HELP)(calibrate)
app.command(cls=Command, help=DOCS_HELP)(docs)
app.command(cls=Command, help=VERSION_HELP, hidden=True)(version)
