"""Pages of help: the front page, and one for each command, that fit 80 columns and cut no name.

A command's text is a line that says what it does, its examples (paragraphs that begin with two spaces), and what else
is to be known. Options that few need stand in panels behind the others.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence, Set
from typing import Any

WIDTH = 80  # columns, where nobody knows how many there are
_WIDEST, _NARROWEST = 100, 50
_NAMES = 30  # columns that names may take before their descriptions begin a line of their own

TITLE = "Merge the weights of GGUF language models, quantized or not."
START = (  # of these, the first three that there are
    ("models", "ggufmerge models", "what is on this machine"),
    ("merge", "ggufmerge merge a.gguf b.gguf -o merged.gguf", "merge it"),
    ("build", "ggufmerge build recipe.yaml -o merged.gguf", "merge as a recipe says"),
    ("eval", "ggufmerge eval merged.gguf --quick", "is it better?"),
)
SECTIONS = (  # what is not there is left out, what is not listed stands at the end
    (
        "Merge",
        (
            ("merge", "two or more models, without a recipe"),
            ("build", "the models of a recipe, mergekit's YAML"),
            ("bake", "LoRA adapters into a model"),
            ("extract-lora", "what a fine-tune learned, as an adapter"),
            ("new, recipe", "a recipe to begin with; what its rules give each tensor"),
        ),
    ),
    (
        "Look",
        (
            ("plan", "what a build would do to each tensor"),
            ("inspect", "metadata and tensors of a file"),
            ("diff", "how far two models are from each other"),
            ("eval", "how well models predict texts, what they answer"),
            ("models", "which models are here, which can be merged"),
            ("methods", "ways to merge, their parameters, recipes to copy"),
            ("types", "what Q4_K_M and the others are, and their sizes"),
        ),
    ),
    (
        "Convert",
        (
            ("quantize", "another type, as llama-quantize does"),
            ("calibrate", "statistics of a model, to lose less by it"),
            ("split, join", "a model into shards, shards into one file"),
        ),
    ),
    ("Share", (("push", "to the Hugging Face Hub, with a model card"),)),
)
PANELS = (
    (
        "Types of single tensors",
        (
            "--pure",
            "--tensor-type",
            "--tensor-type-file",
            "--output-tensor-type",
            "--token-embedding-type",
            "--leave-output-tensor",
            "--include-weights",
            "--exclude-weights",
        ),
    ),
    ("Programs", ("--ollama", "--lmstudio", "--to", "--llama-cpp", "--modelfile", "--mmproj")),
    ("Shards", ("--split-max-size", "--split-max-tensors", "--no-tensor-first-split", "--keep-split")),
    ("Hugging Face Hub", ("--card", "--push", "--push-dry-run")),
    ("Threads and memory", ("--threads", "--chunk")),
)
_PANEL_OF = {name: title for title, names in PANELS for name in names}
_COMMON = "Options"


def front_page(commands: Set[str], links: Sequence[str] = ()) -> str:
    """What `ggufmerge` alone shows: where to start, then the commands in groups. links: addresses, for the last line.

    24 lines of a terminal hold it, its prompt included.
    """
    lines = [TITLE, ""]
    begin = [(line, why) for name, line, why in START if name in commands][:3]
    left = max((len(line) for line, _ in begin), default=0)
    lines += [f"  {line:<{left}}  {why}" for line, why in begin]
    lines += [""]
    listed = {"docs"} | {name for _, rows in SECTIONS for names, _ in rows for name in names.split(", ")}
    for title, rows in (*SECTIONS, ("More", tuple((name, "") for name in sorted(commands - listed)))):
        label = title
        for name, what in rows:
            if commands & set(name.split(", ")):
                lines.append(f"{_bold(f'{label:<8}')} {name:<13} {what}".rstrip())
                label = ""
    lines += ["", "ggufmerge COMMAND --help tells more.  ggufmerge docs is the manual.  --version"]
    return "\n".join([*lines, *links])


def page(command: Any, context: Any) -> str:
    """The help of a command or a group of commands, for `textwrap`ped columns of the terminal's width."""
    width = min(max(shutil.get_terminal_size((WIDTH, 24)).columns, _NARROWEST), _WIDEST)
    shown = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    words = [p for p in shown if p.param_type_name == "argument"]
    lines = textwrap.wrap(f"Usage: {usage(command, context)}", width, subsequent_indent="  ", break_on_hyphens=False)
    lines += ["", *_prose(command.help or "", width)]
    groups: dict[str, list[tuple[str, str]]] = {}
    if words:
        groups["Arguments"] = [(_word(p), _description(p)) for p in words]
    if subcommands := getattr(command, "commands", None):
        groups["Commands"] = [(name, c.get_short_help_str(200)) for name, c in subcommands.items() if not c.hidden]
    groups[_COMMON] = []
    for option in shown:
        if option.param_type_name != "argument":
            groups.setdefault(_panel(option), []).append((_names(option), _description(option)))
    titles = [title for title, _ in PANELS]
    behind = sorted((t for t in groups if t in titles), key=titles.index)
    for title in [*(t for t in groups if t not in titles), *behind]:
        if groups[title]:
            lines += ["", _bold(title), *_columns(groups[title], width)]
    return "\n".join(lines)


def usage(command: Any, context: Any) -> str:
    """`ggufmerge build [OPTIONS] RECIPE [OUTPUT]`."""
    words = [p for p in command.get_params(context) if p.param_type_name == "argument"]
    pieces = [p.metavar or p.name.upper() for p in words]
    pieces = [w if p.required or w.startswith("[") else f"[{w}]" for p, w in zip(words, pieces, strict=True)]
    if hasattr(command, "commands"):
        pieces.append("COMMAND")
    return " ".join([context.command_path, "[OPTIONS]", *pieces, *getattr(command, "more_words", ())])


def first_example(command: Any) -> str | None:
    """The first line of a command's help that can be typed."""
    return next((line.strip() for line in (command.help or "").splitlines() if line.startswith("  ")), None)


def _prose(text: str, width: int) -> Iterator[str]:
    """Paragraphs, folded; those that begin with two spaces stay lines, without blank ones between them."""
    before = ""
    for paragraph in text.strip().split("\n\n"):
        kind = "example" if paragraph.startswith("  ") else "heading" if paragraph.startswith("[bold]") else "prose"
        if before and (kind, before) not in (("example", "example"), ("example", "heading")):
            yield ""
        plain = paragraph.replace("[bold]", "").replace("[/bold]", "").replace("\\[", "[")
        if kind == "example":
            for line in plain.splitlines():
                yield from _example(line, width)
        elif kind == "heading":
            yield _bold(plain)
        else:
            yield from textwrap.wrap(plain, width, break_on_hyphens=False)
        before = kind


def _example(line: str, width: int) -> Iterator[str]:
    """A line that can be typed, in several when it is long: a backslash goes on in the next."""
    while len(line) > width:
        quoted = min((place for quote in "'\"" if (place := line.find(quote)) >= 0), default=len(line))
        room = min(width - 2, quoted)
        at = line.rfind(" -", room // 2, room)
        at = line.rfind(" ", 8, room) if at < 0 else at
        if at < 0:
            break
        yield f"{line[:at]} \\"
        line = f"      {line[at + 1 :]}"
    yield line


def _columns(rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Names, and their descriptions beside them, or below where a name is long."""
    left = min(max(len(name) for name, _ in rows), _NAMES) + 4
    for name, text in rows:
        folded = textwrap.wrap(text, width - left, break_on_hyphens=False) or [""]
        if len(name) + 4 > left:
            yield f"  {name}"
        else:
            yield f"  {name:<{left - 2}}{folded.pop(0)}".rstrip()
        yield from (" " * left + line for line in folded)


def _word(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _names(option: Any) -> str:
    """`-o, --output FILE`, with long names below each other: those without a short one are moved to the right."""
    short = [name for name in option.opts if not name.startswith("--")]
    long = [name for name in option.opts if name.startswith("--")]
    names = ", ".join([*short, "/".join([*long, *option.secondary_opts])])
    value = "" if option.is_flag else option.metavar or _kind(option)
    return ("" if short else "    ") + f"{names} {value}".rstrip()


def _kind(option: Any) -> str:
    """What stands for the value of an option that does not say it: typer has no types of click's any more."""
    return _KINDS.get(_type_name(option), str(option.opts[-1]).lstrip("-").upper())


def is_path(option: Any) -> bool:
    """Whether the value of an option is a file or a folder."""
    return _type_name(option) in ("path", "Path", "list[Path]")


def _type_name(option: Any) -> str:
    return str(option.type.name if hasattr(option, "type") else option.bare_type())


_KINDS = {
    **dict.fromkeys(("integer", "integer range", "int"), "N"),
    **dict.fromkeys(("float", "float range"), "X"),
    **dict.fromkeys(("text", "str"), "TEXT"),
    **dict.fromkeys(("path", "Path"), "FILE"),
}


def _description(parameter: Any) -> str:
    text = (getattr(parameter, "help", None) or "").replace("\\[", "[")
    return f"{text} (default: {default})" if (default := _default(parameter)) else text


def _default(parameter: Any) -> str:
    told, value = getattr(parameter, "show_default", None), parameter.default
    if isinstance(told, str):
        return told
    if told is False or value is False or not isinstance(value, (bool, int, float, str)):
        return ""
    if value is True:
        return str(parameter.opts[0]) if parameter.secondary_opts else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _panel(option: Any) -> str:
    given = getattr(option, "rich_help_panel", None)
    return str(given) if given else next((_PANEL_OF[name] for name in option.opts if name in _PANEL_OF), _COMMON)


def _bold(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or sys.stdout is None
    return text if plain or not sys.stdout.isatty() else f"\x1b[1m{text}\x1b[0m"
