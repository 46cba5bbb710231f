"""What the JSON of every command begins with, and what one command adds to that of another one it hands over to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

SCHEMA = 1  # grows when a key changes its meaning or goes; docs/json.md

_beside: ContextVar[Mapping[str, Any]] = ContextVar("beside", default={})  # noqa: B039 - never changed


def envelope() -> dict[str, Any]:
    """The facts that stand in front."""
    from importlib.metadata import version

    return {"schema": SCHEMA, "command": command(sys.argv[1:]), "version": version("ggufmerge"), **_beside.get()}


@contextmanager
def beside(facts: Mapping[str, Any]) -> Iterator[None]:
    """Facts that stand in front of what is printed in this block."""
    token = _beside.set(facts)
    try:
        yield
    finally:
        _beside.reset(token)


def command(arguments: Sequence[str]) -> str:
    """The command of a command line: its first words that are no options, as many as make one."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    return " ".join(words if words[:1] == ["recipe"] else words[:1])


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, also one that is wrong otherwise."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours
