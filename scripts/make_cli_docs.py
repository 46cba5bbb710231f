"""Write docs/cli.md, the reference of all commands, from the commands themselves.

    python scripts/make_cli_docs.py

Run it after every change of a command, an option or a help text; tests/cli/test_docs_pages.py fails until it was run.

Commands are read as they are registered with typer, from names that typer documents, and not from the parsers it makes
of them, which change between its versions.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.text import Text
from typer.models import ArgumentInfo, OptionInfo

from ggufmerge.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# All commands

This page is made from the program by `scripts/make_cli_docs.py`. `ggufmerge COMMAND --help` prints the same.
"""


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    name: str
    info: Any  # ArgumentInfo or OptionInfo
    type: Any  # of one value
    many: bool
    required: bool
    default: Any

    def argument(self) -> str:
        text = self.info.metavar or self.name.upper()
        if text.startswith("["):
            return text
        text = f"{text}..." if self.many and not text.endswith("...") else text
        return text if self.required else f"[{text}]"

    def option(self) -> str:
        # in an annotation, the first name takes the place of typer's `default`
        declared = [d for d in (self.info.default, *(self.info.param_decls or ())) if isinstance(d, str)]
        declared = declared or [f"--{self.name.replace('_', '-')}"]
        names = ", ".join(f"`{name}`" for text in declared for name in text.split("/"))
        if self.type is bool:
            return names
        words = [str(member.value) for member in self.type] if _is_enum(self.type) else []
        kind = {int: "NUMBER", float: "NUMBER", Path: "FILE"}.get(self.type, "TEXT")
        return f"{names} `{_cell(self.info.metavar or '|'.join(words) or kind)}`"

    def help(self) -> str:
        text = _plain(self.info.help or "")
        shown = self.info.show_default
        if isinstance(shown, str):
            return f"{text} Default: {shown}."
        if self.required or not shown or self.type is bool or self.default in (None, "", (), []):
            return text
        return f"{text} Default: {getattr(self.default, 'value', self.default)}."


@dataclass(frozen=True)
class Command:
    name: str
    panel: str
    help: str
    parameters: tuple[Parameter, ...]


def page() -> str:
    """The whole page: a table of the commands, then a section for each, in the program's own order."""
    commands = list(_commands(app, ()))
    lines = [HEAD]
    for panel in dict.fromkeys(command.panel for command in commands):
        lines += [f"| {panel or 'command'} | what it does |", "|---|---|"]
        lines += [
            f"| [`{command.name}`](#{command.name.replace(' ', '-')}) | {_cell(command.help.split(chr(10) * 2)[0])} |"
            for command in commands
            if command.panel == panel
        ]
        lines.append("")
    return "\n".join([*lines, *map(_section, commands)]).rstrip() + "\n"


def _commands(group: typer.Typer, words: tuple[str, ...]) -> Iterator[Command]:
    """Those of a group, then those of the groups in it under both names; hidden ones are left out."""
    for command in group.registered_commands:
        function = command.callback
        if command.hidden or function is None:
            continue
        name = command.name or function.__name__.replace("_", "-")
        text = _plain(command.help or inspect.getdoc(function) or "")
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        known = [p for p in map(_parameter, parameters) if p is not None and not p.info.hidden]
        yield Command(" ".join((*words, name)), _named(command.rich_help_panel), text, tuple(known))
    for inner in group.registered_groups:
        if inner.typer_instance is not None and inner.hidden is not True:
            yield from _commands(inner.typer_instance, (*words, str(inner.name)))


def _parameter(parameter: inspect.Parameter) -> Parameter | None:
    """None for what is no argument or option, such as the context."""
    kind, *extras = typing.get_args(parameter.annotation) or (parameter.annotation,)
    info = next((extra for extra in extras if isinstance(extra, (ArgumentInfo, OptionInfo))), None)
    if info is None:
        return None
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(member for member in typing.get_args(kind) if member is not type(None))
    many = typing.get_origin(kind) is list
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    return Parameter(parameter.name, info, typing.get_args(kind)[0] if many else kind, many, required, default)


def _section(command: Command) -> str:
    arguments = [p for p in command.parameters if isinstance(p.info, ArgumentInfo)]
    options = [p for p in command.parameters if isinstance(p.info, OptionInfo)]
    usage = ["ggufmerge", command.name, *(p.argument() for p in arguments), *(["[OPTIONS]"] if options else [])]
    lines = [f"## {command.name}", "", f"    {' '.join(usage)}", "", *_prose(command.help), ""]
    if arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{_cell(p.argument())}` | {_cell(p.help())} |" for p in arguments] + [""]
    for panel in dict.fromkeys(_named(p.info.rich_help_panel) for p in options):
        lines += [f"| {panel or 'option'} | meaning |", "|---|---|"]
        own = [p for p in options if _named(p.info.rich_help_panel) == panel]
        lines += [f"| {p.option()} | {_cell(p.help())} |" for p in own] + [""]
    return "\n".join(lines)


def _prose(text: str) -> Iterator[str]:
    """A help text as Markdown: lines that are set in are code, and all of them that follow each other one block."""
    before = None
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        code = part.startswith("  ")
        if before is not None and not (code and before):
            yield ""
        before = code
        yield from (f"    {line.strip()}" if code else line.strip() for line in part.splitlines())


def _named(panel: Any) -> str:
    return panel if isinstance(panel, str) else ""


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _plain(text: str) -> str:
    """A help text without the marks of rich."""
    return Text.from_markup(inspect.cleandoc(text)).plain


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
