"""`ggufmerge merge`: merge models without a recipe; one is made for them, shown, and built as `build` does."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ggufmerge.cli.build import build
from ggufmerge.cli.completion import complete_methods, complete_models
from ggufmerge.cli.options import model_argument

if TYPE_CHECKING:
    from ggufmerge.engine.propose import Proposal

HELP = """Merge MODELs into one GGUF file, without a recipe.

[bold]Examples[/bold]

  ggufmerge merge storyteller.gguf coder.gguf

  ggufmerge merge storyteller.gguf coder.gguf --base base.gguf --weight .6,.4 -o both.gguf

  ggufmerge merge ollama:llama3.2:3b hf:someone/tune-GGUF:Q4_K_M --ollama both

  ggufmerge merge base.gguf style-lora.gguf=0.8 facts-lora.gguf -o tuned.gguf

  ggufmerge merge a.gguf b.gguf c.gguf --method ties --set density=0.4 --dry-run --save-recipe abc.yaml

A MODEL is a path, or a name that `ggufmerge models` lists; LoRA adapters may be among them. What you do not give is
chosen for you and shown with the reason: the base that the models were tuned from, the method, and the type of the
result. Nothing is overwritten: without --output the file gets a free name.
"""


def merge(
    models: Annotated[
        list[str],
        model_argument("MODEL...", "Models and LoRA adapters, two or more, each"),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="The model that they were tuned from.",
            autocompletion=complete_models,
            show_default="found among the models of this machine",
        ),
    ] = None,
    no_base: Annotated[bool, typer.Option("--no-base", help="Look for no base: average or interpolate.")] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="METHOD",
            help="A merge method (ggufmerge methods lists them).",
            show_default="by what is known",
            autocompletion=complete_methods,
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", "-w", metavar="W,W,...", help="A weight for each model, in their order.", show_default="equal"
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A parameter of the method, such as density=0.4, or a key of recipes."
        ),
    ] = None,
    save_recipe: Annotated[
        Path | None, typer.Option("--save-recipe", metavar="FILE", help="Write the recipe that is used.")
    ] = None,
    **options: Any,
) -> None:
    """options: those of `build`, which does the work."""
    from ggufmerge.cli.facts import beside
    from ggufmerge.cli.front import check_recipe_name
    from ggufmerge.cli.terminal import console, show_warnings, tell
    from ggufmerge.engine.propose import propose_merge
    from ggufmerge.files import check_target
    from ggufmerge.files.writer import write_new
    from ggufmerge.recipe import Recipe

    given = settings(setting or ())
    keys = {name: given.pop(name) for name in list(given) if name in Recipe.model_fields}
    if save_recipe is not None:
        if save_recipe.name:  # what names no file is told of below
            check_recipe_name(save_recipe)
        check_target(save_recipe, overwrite=options["overwrite"])
    if base is not None and no_base:
        raise typer.BadParameter("give one of --base and --no-base", param_hint="--no-base")
    with console(stderr=True).status("looking at the models"):
        proposal = propose_merge(
            models,
            base=base,
            find_base=not no_base,
            method=method,
            weights=numbers(weight or ()),
            parameters=given,
            options=keys,
            out_type=options["out_type"],
        )
    show_warnings(proposal.warnings)
    won: dict[str, Any] = {name: options[name] or () for name in ("imatrix", "calibration")}
    won |= {name: options[name] and options[name].value for name in ("rounding", "noise_aware")}
    proposal = replace(proposal, recipe=proposal.recipe.with_options(**won))
    if save_recipe is not None:
        write_new(save_recipe, proposal.text(save_recipe.parent).encode(), overwrite=options["overwrite"])
    if not options["json"]:
        show_choices(proposal)
        if save_recipe is not None:
            tell([f"{save_recipe}: the recipe"])
    if options["output"] is None and not any(options.get(name) for name in ("ollama", "lmstudio", "to")):
        options["output"] = None if options["dry_run"] else proposal.output
    with beside(facts_of(proposal)):
        build(proposal.recipe, **(options | dict.fromkeys(_WON)))  # type: ignore[arg-type]


_WON = ("out_type", "imatrix", "calibration", "rounding", "noise_aware")  # options that the recipe has taken up


def show_choices(proposal: Proposal) -> None:
    """What was chosen and why, and the recipe."""
    from ggufmerge.cli.terminal import say, tell

    tell(map(str, proposal.choices), "  ")
    say("recipe:", *(f"  {line}" for line in proposal.recipe.text.splitlines()))


def facts_of(proposal: Proposal) -> dict[str, Any]:
    chosen = {c.what: {"value": c.value, "why": c.why} for c in proposal.choices}
    return {"chosen": chosen, "recipe": proposal.recipe.text}


def numbers(texts: Sequence[str]) -> list[float]:
    """The numbers of ".6,.4", given once or several times."""
    words = [word.strip() for text in texts for word in text.split(",")]
    try:
        return [float(word) for word in words]
    except ValueError:
        raise typer.BadParameter(
            f'weights are numbers, one for each model: .6,.4, not "{",".join(texts)}"', param_hint="--weight"
        ) from None


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """The parameters of "density=0.4" and the like."""
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or not name or not value:
            raise typer.BadParameter(
                f'a parameter is NAME=VALUE, such as density=0.4, not "{text}"', param_hint="--set"
            )
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _with_options_of(command: Any, other: Any, without: Sequence[str]) -> None:
    """Give a command the options of another one behind its own, in the place of its `**options`."""
    hints = get_type_hints(command, include_extras=True) | get_type_hints(other, include_extras=True)
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [p for p in inspect.signature(other).parameters.values() if p.name not in without]
    together = [p.replace(annotation=hints[p.name]) for p in [*own, *more]]
    command.__signature__ = inspect.Signature(together, return_annotation=None)
    command.__annotations__ = {p.name: p.annotation for p in together}


_with_options_of(merge, build, without=["recipe"])
