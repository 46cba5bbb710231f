"""`ggufmerge new`: a recipe by question and answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ggufmerge.cli.options import Overwrite

if TYPE_CHECKING:
    from ggufmerge.engine.propose import Proposal
    from ggufmerge.places.inventory import FoundModel

HELP = """Write a recipe by asking: which models, which method, which type.

[bold]Examples[/bold]

  ggufmerge new

  ggufmerge new both.yaml --folder ~/gguf

  printf '1 2\\n\\n\\n\\n' | ggufmerge new both.yaml

Enter takes what is proposed. Nothing is written before the last answer, and no file is overwritten.
"""

Answer = TypeVar("Answer")


def new(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="The recipe to write.", show_default="recipe.yaml")
    ] = Path("recipe.yaml"),
    folder: Annotated[
        list[Path] | None,
        typer.Option("--folder", metavar="FOLDER", help="Offer the models in this folder, too; may be repeated."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    from ggufmerge.cli.facts import space
    from ggufmerge.cli.front import check_recipe_name
    from ggufmerge.cli.terminal import console, say, show_warnings, tell
    from ggufmerge.engine.propose import propose_merge
    from ggufmerge.errors import PlanError
    from ggufmerge.files import check_target
    from ggufmerge.files.absent import absent
    from ggufmerge.files.writer import write_new
    from ggufmerge.places.inventory import known_models

    if recipe.name:  # what names no file is told of below
        check_recipe_name(recipe)
    check_target(recipe, overwrite=overwrite)
    for place in folder or ():
        if not place.is_dir():
            raise PlanError(f"{place}: {absent(place, ('/',))}")
    with console(stderr=True).status("looking for models"):
        found = [m for m in known_models(folder or ()) if m.kind == "adapter" or m.family]
    if len(found) < 2:
        raise PlanError("there are fewer than two models here: give the folders where they are with --folder FOLDER")
    _show(found)
    models = _ask("which of them, by number (two or more, such as 1 2)", lambda text: _chosen(text, found))
    names = [model.references[0] for model in models]

    def proposed(base: str | None, find_base: bool, method: str | None, out_type: str | None) -> Proposal:
        with console(stderr=True).status("looking at the models"):
            return propose_merge(names, base=base, find_base=find_base, method=method, out_type=out_type)

    first = proposed(None, True, None, None)
    show_warnings(first.warnings)
    base = first.find("base")
    space()
    tell([str(base) if base else "base: none was found"], "  ")
    alone = all(model.kind == "adapter" for model in models[1:])
    wanted, find_base = None, True
    if not alone:
        answer = _ask(
            "base, by number, name, or none",
            lambda text: _base(text, found, names),
            default="none" if base is None else base.value,
        )
        wanted, find_base = (answer or None), False
    if alone or wanted == (base.value if base else None):
        second, wanted, find_base = first, None, True  # nothing else was said, so its reasons hold
    else:
        second = proposed(wanted, find_base, None, None)
    space()
    tell([str(second.choice("method"))], "  ")
    method = None
    if not alone:
        standard = second.choice("method").value
        method = _ask("method", lambda text: _method(text, second.find("base") is not None), default=standard)
    third = second if alone or method == standard else proposed(wanted, find_base, method, None)
    space()
    tell([str(third.choice("type"))], "  ")
    standard_type = third.choice("type").value
    out_type = _ask("type of the result", _type, default=standard_type)
    final = third if out_type == standard_type else proposed(wanted, find_base, method, out_type)
    write_new(recipe, text_of(final, recipe).encode(), overwrite=overwrite)
    space()
    tell([f"{recipe}: written"])
    say(f"  ggufmerge plan {recipe}", "    shows what it does to each tensor")
    say(f"  ggufmerge build {recipe} -o {final.output}", "    merges the models")


def text_of(proposal: Proposal, recipe: Path) -> str:
    """The recipe with comments: why it is so, what its numbers mean, and what to do with it."""
    from ggufmerge.methods import method as find_method

    method = find_method(proposal.recipe.methods[0])
    given = dict.fromkeys(proposal.recipe.parameters)
    given |= dict.fromkeys(name for model in proposal.recipe.models or () for name in model.parameters)
    docs = [f"# {q.name}: {q.doc}\n" for q in method.parameters if q.name in given]
    more = [q.name for q in method.parameters if q.name not in given]
    if more:
        docs.append(f"# other parameters of {method.name}: {', '.join(more)}\n")
    usage = f"# ggufmerge plan {recipe.name}\n# ggufmerge build {recipe.name} -o {proposal.output}\n"
    return usage + "".join(docs) + proposal.text(recipe.parent)


def _show(found: Sequence[FoundModel]) -> None:
    from ggufmerge.cli.terminal import say, show_table
    from ggufmerge.places.inventory import families
    from ggufmerge.text import size

    letters: dict[str, str] = {}
    for group in families(found):
        if len(group) > 1:
            letters[group[0].family] = chr(ord("A") + len(letters)) if len(letters) < 26 else "*"
    rows = []
    for number, model in enumerate(found, start=1):
        what = f"{model.architecture} {model.kind}"
        letter = letters.get(model.family, "")
        rows.append((str(number), model.references[0], what, model.file_type, size(model.nbytes), letter))
    show_table(("", "model", "what", "type", "size", "with"), rows)
    say("models with the same letter can be merged with each other")


def _ask(question: str, read: Callable[[str], Answer], default: str = "") -> Answer:
    """The answer to a question, which is asked again until `read` takes it (GgufmergeError says why not)."""
    from ggufmerge.cli.terminal import ask, complain
    from ggufmerge.errors import GgufmergeError, PlanError

    while True:
        shown = f"{question} [{default}]: " if default else f"{question}: "
        try:
            text = ask(shown).strip() or default
        except (EOFError, RuntimeError):  # the latter where standard input is closed
            typer.echo()
            raise PlanError("the answers ended before the recipe was complete; nothing was written") from None
        try:
            return read(text)
        except GgufmergeError as error:
            for line in error.lines:
                complain(line)


def _chosen(text: str, found: Sequence[FoundModel]) -> list[FoundModel]:
    from ggufmerge.errors import PlanError

    words = text.replace(",", " ").split()
    chosen = [_numbered(word, found) for word in dict.fromkeys(words)]
    if len(chosen) < 2:
        raise PlanError("two or more are needed: write their numbers, such as 1 2")
    models = [model for model in chosen if model.kind != "adapter"]
    others = [model for model in models if model.family != models[0].family]
    if others:
        raise PlanError(
            f"{others[0].references[0]} cannot be merged with {models[0].references[0]} as it is: architecture, shapes "
            "or vocabulary differ; choose models with the same letter"
        )
    # the model that adapters are for comes first
    return [*models, *(model for model in chosen if model.kind == "adapter")]


def _numbered(word: str, found: Sequence[FoundModel]) -> FoundModel:
    from ggufmerge.errors import PlanError

    if word.isascii() and word.isdigit() and 1 <= int(word) <= len(found):
        return found[int(word) - 1]
    named = [model for model in found if word in model.references]
    if named:
        return named[0]
    raise PlanError(f'"{word}" is none of the numbers 1 to {len(found)}')


def _base(text: str, found: Sequence[FoundModel], names: Sequence[str]) -> str:
    """The reference of the base; empty for none."""
    from ggufmerge.errors import PlanError

    if text.lower() in ("none", "no", "-"):
        return ""
    base = _numbered(text, found)
    if base.kind == "adapter":
        raise PlanError(f"{base.references[0]} is an adapter and cannot be the base")
    if base.references[0] in names and len(names) < 3:
        raise PlanError(f"{base.references[0]} is one of the two models: a base is a third one, or none")
    return base.references[0]


def _method(text: str, has_base: bool) -> str:
    from ggufmerge.errors import PlanError
    from ggufmerge.methods import method as find_method
    from ggufmerge.methods.spec import Base

    method = find_method(text)
    if method.base is Base.REQUIRED and not has_base and method.max_models is None and text != "slerp":
        raise PlanError(f"{method.name} takes differences from a base, and there is none: linear and slerp need none")
    if method.base is Base.MODEL and has_base:
        raise PlanError(f"{method.name} takes no base; with one there are task_arithmetic, ties, dare_ties, ...")
    return method.name


def _type(text: str) -> str:
    from ggufmerge.types import FileType

    return str(FileType.parse(text))
