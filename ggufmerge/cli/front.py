"""How a command line becomes a call: our own commands and those that other programs have in their place, one line for
each mistake, and pages of help.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ggufmerge.cli import complaints, facts, habits
from ggufmerge.cli import help as pages
from ggufmerge.cli.completion import whole_words
from ggufmerge.cli.habits import UsageError
from ggufmerge.errors import GgufmergeError

_VOICE = ("--quiet", "-q", "--verbose", "-v", "--log")
_Misuse: type[Any] = typer.BadParameter.__mro__[1]  # typer brings its own click, or uses the one that is there


class Command(TyperCommand):
    """A command: takes other programs' words for its options, and answers wrong ones in a line."""

    @property
    def more_words(self) -> tuple[str, ...]:
        """Arguments of the line of usage that are no parameters."""
        return ("[OUTPUT]",) if self.name in habits.OUTPUT_AT else ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        switches: dict[str, bool] = {}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "option":
                value = not getattr(parameter, "is_flag", False)
                switches |= dict.fromkeys((*parameter.opts, *parameter.secondary_opts), value)
        words = habits.translate(self.name or "", args, habits.Switches(switches), _note)
        _check_paths(words, self.get_params(ctx), pages.usage(self, ctx))
        try:
            rest = super().parse_args(ctx, words)
        except _Misuse as error:
            raise UsageError(_line(error, self, ctx, switches)) from None
        _check_type(ctx.params.get("out_type"))
        if "--output" in switches and isinstance(output := ctx.params.get("output"), Path):
            check_name(output, shards=any(ctx.params.get(name) for name in ("max_size", "max_tensors", "keep_split")))
        return rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _Misuse as error:
            raise UsageError(_line(error, self, ctx, {})) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(pages.page(self, ctx))


class Group(TyperGroup):
    """Commands below a word, those of the program below none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit(0)
        try:
            return super().parse_args(ctx, args)
        except _Misuse as error:
            raise UsageError(_line(error, self, ctx, {"--help": False, "--version": False})) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _Misuse as error:  # no command stands behind `--`
            raise UsageError(_line(error, self, ctx, {})) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if self.get_command(ctx, word) is not None or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        place = "" if ctx.parent is None else str(self.name)
        if place == "" and word == "help":
            return self._help(ctx, args[1:])
        small = word.lower()
        if self.get_command(ctx, small) is not None:
            return super().resolve_command(ctx, [small, *args[1:]])
        told = habits.TOLD_COMMAND.get(place, {})
        if small in told:
            raise UsageError(f"there is no command {small}: {told[small]}")
        if place == "" and (same := habits.SAME_COMMAND.get(small)):
            return super().resolve_command(ctx, [*same, *args[1:]])
        raise UsageError(_no_command(self, ctx, word))

    def _help(self, ctx: Any, words: Sequence[str]) -> Any:
        """`help`, and `help COMMAND`, which is `COMMAND --help`."""
        if not words:
            typer.echo(ctx.get_help())
            ctx.exit(0)
        return self.resolve_command(ctx, [*words, "--help"])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if ctx.parent is not None:
            formatter.write(pages.page(self, ctx))
            return
        shown = {name for name, command in self.commands.items() if not command.hidden}
        formatter.write(pages.front_page(shown, homepage()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As typer's, except that a mistake of usage is an error as any other."""
        try:
            with whole_words():
                result = super().main(args, "ggufmerge", complete_var, False, windows_expand_args, **extra)
        except UsageError as error:
            complaints.show(f"error: {error}")
            if (told := facts.error(error.lines)) is not None:
                typer.echo(told)
            sys.exit(2)
        if not standalone_mode:
            return result
        sys.exit(result if isinstance(result, int) else 0)


def check_name(output: Path, *, shards: bool = False) -> None:
    """GgufmergeError when a result, which is one GGUF file, is asked for as a folder or as a file of another format.

    shards: several files are asked for, of which `output` may be what their names begin with.
    """
    if output.is_dir():
        raise GgufmergeError(f"{output}: this is a folder, and the result is one file: -o {output / 'merged.gguf'}")
    suffix = output.suffix.lower()
    if not output.name or shards or suffix == ".gguf" or (suffix and suffix not in _OTHER_FORMATS):
        return
    better = output.with_suffix(".gguf") if suffix else output.with_name(f"{output.name}.gguf")
    raise GgufmergeError(f"{output}: the result is one GGUF file, and its name ends in .gguf: -o {better}")


def check_recipe_name(recipe: Path) -> None:
    """GgufmergeError for the name of a recipe that is to be written which is none: so no model is replaced by one."""
    if recipe.suffix.lower() not in (".yaml", ".yml"):
        raise GgufmergeError(f"{recipe}: the name of a recipe ends in .yaml: {recipe.with_name(recipe.name + '.yaml')}")


def check_report_name(report: Path) -> None:
    """GgufmergeError for the name of a report that no browser takes for a page: so no model is replaced by one."""
    if report.suffix.lower() not in (".html", ".htm"):
        raise GgufmergeError(f"{report}: the name of a report ends in .html: {report.with_name(report.name + '.html')}")


def _check_paths(words: Sequence[str], parameters: Iterable[Any], usage: str) -> None:
    """GgufmergeError for a path or an argument that is empty, as an unset variable of the shell makes it: Python takes
    an empty path for the working folder.
    """
    options = {name: p for p in parameters if p.param_type_name == "option" for name in p.opts}
    rest = iter(words)
    for word in rest:
        if word == "--":
            break
        name, equals, value = word.partition("=")
        option = options.get(name)
        if option is None and not word.strip():
            raise GgufmergeError(f"an argument is empty, as of a variable that is not set: {usage}")
        if option is None or option.is_flag:
            continue
        value = value if equals else next(rest, "none")
        if pages.is_path(option) and not value.strip():
            what = option.metavar or "path"
            raise GgufmergeError(f"{name}: the {what} is empty; the folder that you are in is called .")


_OTHER_FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".ggml", ".onnx", ".yaml", ".yml")


def _check_type(kind: str | None) -> None:
    """GgufmergeError for a number, which most people mean as one of threads."""
    if kind is None or not (kind.isascii() and kind.isdigit()):
        return
    from ggufmerge.types import FileType

    found = FileType.numbered(kind)
    meant = f"; the type with this number is {found}: -t {found}" if found is not None else ""
    raise UsageError(f"-t {kind}: -t is --type, the type of the result; for threads: --threads {kind}{meant}")


def homepage() -> list[str]:
    """The addresses that the installed package names."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("ggufmerge").get_all("Project-URL") or []
    except PackageNotFoundError:
        return []
    return [url.partition(", ")[2] for url in urls][:1]


def _note(line: str) -> None:
    from ggufmerge.cli.terminal import complain

    complain(f"note: {line}")


def _line(error: Any, command: Any, ctx: Any, switches: dict[str, bool]) -> str:
    """What is wrong with a command line, and what to type instead."""
    kind = type(error).__name__
    see = f"see {ctx.command_path} --help"
    if kind == "NoSuchOption":
        near = _close(error.option_name, switches)
        if error.option_name in _VOICE and isinstance(command, TyperGroup):
            return f"{error.option_name} stands behind the command: {ctx.command_path} build {error.option_name} ..."
        return f"{command.name} has no option {error.option_name}: {f'did you mean {near}?' if near else see}"
    if kind == "MissingParameter" and error.param is not None:
        example = pages.first_example(command)
        what = error.param.metavar or error.param.opts[0]
        if error.param.param_type_name == "option":
            what = error.param.opts[0]
        return f"{what} is missing" + (f", as in: {example}" if example else f"; {see}")
    if isinstance(error, typer.BadParameter):
        hint = error.param_hint or (error.param.opts[-1] if error.param is not None else "")
        if error.param is not None and error.param.param_type_name == "argument":
            hint = error.param.metavar or error.param.name.upper()
        what = str(error.message).removeprefix("Value error, ")  # newer versions of typer ask pydantic
        return f"{hint}: {what}" if hint else what
    if extra := re.search(r"unexpected extra argument\S* \((.*)\)", error.message):
        return _too_many(extra[1].split(), command, ctx)
    return f"{error.message.rstrip('.')}; {see}"


def _close(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that `word` is a misspelling of; dashes in front, which all options have, are not compared."""
    plain = {choice.lstrip("-"): choice for choice in choices}
    close = difflib.get_close_matches(word.lstrip("-"), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def _too_many(words: Sequence[str], command: Any, ctx: Any) -> str:
    models = any(".gguf" in word for word in words)
    if models and command.name == "new":
        return "new asks for the models; for models that you name: " + (
            "ggufmerge merge a.gguf b.gguf --dry-run --save-recipe recipe.yaml"
        )
    if models and command.name in ("build", "plan"):
        merge = "merge" in getattr(ctx.parent.command, "commands", {})
        instead = "ggufmerge merge a.gguf b.gguf -o merged.gguf" if merge else "ggufmerge methods linear shows one"
        return f"{command.name} takes one recipe, which names the models: {instead}"
    listed = ", ".join(f'"{word}"' for word in words)
    return f"there is no place for {listed}: {pages.usage(command, ctx)}"


def _no_command(group: Any, ctx: Any, word: str) -> str:
    from ggufmerge.methods import names as method_names

    if word.lower().endswith((".yaml", ".yml")):
        return f"say what to do with {word}: ggufmerge build {word} -o merged.gguf"
    if word.lower().endswith(".gguf"):
        return f"say what to do with {word}: ggufmerge inspect {word}"
    if word.lower() in method_names() and ctx.parent is None:
        return f"{word} is a method, not a command; it is named in a recipe: ggufmerge methods {word.lower()} shows one"
    names = [name for name, command in group.commands.items() if not command.hidden]
    own = _close(word.lower(), names)
    if own is None and ctx.parent is None:
        known = _close(word.lower(), habits.SAME_COMMAND, 0.75)
        own = " ".join(habits.SAME_COMMAND[known]) if known else None
    path = ctx.command_path
    return f'there is no command "{word}": ' + (f"did you mean {path} {own}?" if own else f"{path} --help lists them")
