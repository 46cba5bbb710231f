"""JSON for programs: what that of every command begins with, and how it is written. docs/json.md lists the keys.

This module imports next to nothing, since errors are told in JSON, too, whenever they happen.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

SCHEMA = 1  # grows when a key changes its meaning or goes

_command: ContextVar[str] = ContextVar("command", default="")
_beside: ContextVar[Mapping[str, Any]] = ContextVar("beside", default={})  # noqa: B039 - never changed
_told: ContextVar[bool] = ContextVar("told", default=False)
_warned: list[str] = []  # of this command; any thread may add to it
_printed: ContextVar[bool] = ContextVar("printed", default=False)
_space: ContextVar[bool] = ContextVar("space", default=False)


def begin(command: str = "") -> None:
    """A command starts, and has told nothing yet; without its name it is taken from the command line."""
    _command.set(command)
    _told.set(False)
    _warned.clear()
    _printed.set(False)
    _space.set(False)


def warn(warning: str) -> bool:
    """Keep a warning for the JSON of this command. Gives whether it is new."""
    if warning in _warned:
        return False
    _warned.append(warning)
    return True


def space() -> None:
    """Leave one blank line between what the command has printed and what it prints next, if it prints both."""
    _space.set(_printed.get())


def wants_space() -> bool:
    """Whether a blank line belongs in front of what is printed now; asked by all that prints for people."""
    wanted = _space.get()
    _space.set(False)
    _printed.set(True)
    return wanted


@contextmanager
def beside(facts: Mapping[str, Any]) -> Iterator[None]:
    """Facts to print before those of the commands in this block, from a command that hands over to another one."""
    token = _beside.set(facts)
    try:
        yield
    finally:
        _beside.reset(token)


def facts(own: Mapping[str, Any]) -> str:
    """The facts of a command as the one JSON object that it prints."""
    _told.set(True)
    return plain_json(gathered(own))


def gathered(own: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a command with those that all begin with, and all warnings so far, as plain data without a number
    that is none (NaN) or has no end.
    """
    from importlib.metadata import version

    command = _command.get() or command_of(sys.argv[1:])
    head = {"schema": SCHEMA, "command": command, "version": version("ggufmerge")}
    warnings = list(dict.fromkeys([*own.get("warnings", ()), *_warned]))
    more = {"warnings": warnings} if warnings else {}
    found: dict[str, Any] = _finite({**head, **_beside.get(), **own, **more})
    return found


def error(lines: Sequence[str]) -> str | None:
    """An error as JSON if the command line asks for it and no facts were printed before it.

    error: all lines.  errors: each.
    """
    if _told.get() or not wants_json(sys.argv[1:]):
        return None
    return facts({"error": "\n".join(lines), "errors": list(lines)})


def plain_json(value: Any) -> str:
    """JSON that every reader takes: numbers that are none (NaN) or have no end are null, and characters that do not
    print are escapes.
    """
    encoding = getattr(sys.stdout, "encoding", None) or ""  # a pipe on Windows may not take every letter
    text = json.dumps(_finite(value), indent=2, ensure_ascii="utf" not in encoding.lower(), allow_nan=False)
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def command_of(arguments: Sequence[str]) -> str:
    """The command of a command line: its first words that are no options, as many as make one."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    return " ".join(words if words[:1] == ["recipe"] else words[:1])


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, also one that is wrong otherwise."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
