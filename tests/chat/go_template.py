"""As much of Go's `text/template` as the templates of this project need, with the values that Ollama gives them.

Written after the language's documentation (https://pkg.go.dev/text/template) and not after the code under test; the
recorded answers of a real Ollama in `golden.json` say whether it is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ggufmerge.chat.jinja import Message

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\$?[.\w]+|:=|=|\(|\)|,')


def execute(template: str, messages: Sequence[Message]) -> str:
    """What Ollama's `Execute` gives for messages of which no two of one role follow each other."""
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    root = {"System": system, "Messages": [{"Role": m.role, "Content": m.content} for m in messages]}
    nodes, rest, _ = _parse(_split(template), ())
    assert not rest
    return _run(nodes, root, {"$": root})


def _split(template: str) -> list[tuple[str, str]]:
    """("text" or "action", content); an action ends at the first }} that stands in no string."""
    pieces = []
    while template:
        text, found, template = template.partition("{{")
        pieces += [("text", text)] if text else []
        if found:
            match = re.match(r'(?:"(?:[^"\\]|\\.)*"|[^"])*?(?=\}\})', template)
            assert match, f"{{{{{template[:40]}: not closed"
            assert not match[0].startswith(("-", "{"))
            pieces.append(("action", match[0].strip()))
            template = template[match.end() + 2 :]
    return pieces


def _parse(pieces: list[tuple[str, str]], ends: tuple[str, ...]) -> tuple[list[Any], list[tuple[str, str]], str]:
    """(nodes, the pieces behind the action that ended them, that action)"""
    nodes: list[Any] = []
    while pieces:
        (kind, content), *pieces = pieces
        word = content.split(" ")[0] if kind == "action" else ""
        if word in ends:
            return nodes, pieces, content
        if word == "if":
            node, pieces = _parse_if(content, pieces)
            nodes.append(node)
        elif word == "range":
            body, pieces, _ = _parse(pieces, ("end",))
            nodes.append(("range", content[6:], body))
        else:
            nodes.append((kind, content))
    assert not ends, f"no {ends}"
    return nodes, [], ""


def _parse_if(content: str, pieces: list[tuple[str, str]]) -> tuple[Any, list[tuple[str, str]]]:
    body, pieces, end = _parse(pieces, ("else", "end"))
    other: list[Any] = []
    if end.startswith("else if"):
        node, pieces = _parse_if(end[5:], pieces)
        other = [node]
    elif end == "else":
        other, pieces, _ = _parse(pieces, ("end",))
    return ("if", content[3:], body, other), pieces


def _run(nodes: list[Any], dot: Any, names: dict[str, Any]) -> str:
    text = ""
    for kind, content, *more in nodes:
        if kind == "text":
            text += content
        elif kind == "if":
            text += _run(more[0] if _value(content, dot, names) else more[1], dot, names)
        elif kind == "range":
            variables, _, what = content.partition(" := ")
            index, item = variables.split(", ")
            for number, value in enumerate(_value(what, dot, names)):
                names |= {index: number, item: value}
                text += _run(more[0], value, names)
        elif re.match(r"\$\w+ :?= ", content):
            name, _, value = re.split(r" (:?=) ", content, maxsplit=1)
            names[name] = _value(value, dot, names)
        else:
            text += str(_value(content, dot, names))
    return text


def _value(text: str, dot: Any, names: dict[str, Any]) -> Any:
    value, rest = _call(_TOKEN.findall(text), dot, names)
    assert not rest
    return value


def _call(tokens: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    """The value of a command, up to a closing parenthesis."""
    functions = {
        "and": lambda *v: next((x for x in v if not x), v[-1]),
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "not": lambda a: not a,
        "len": len,
        "slice": lambda a, start: a[start:],
    }
    head, *tokens = tokens
    function = functions.get(head)
    if function is None:
        return _operand(head, dot, names), tokens
    values = []
    while tokens and tokens[0] != ")":
        token, *tokens = tokens
        if token == "(":
            value, tokens = _call(tokens, dot, names)
            assert tokens.pop(0) == ")"
        else:
            value = _operand(token, dot, names)
        values.append(value)
    return function(*values), tokens


def _operand(token: str, dot: Any, names: dict[str, Any]) -> Any:
    if token.startswith('"'):
        return json.loads(token)
    if token.isdecimal():
        return int(token)
    if token in ("true", "false"):
        return token == "true"
    name, *fields = token.split(".")
    value = names[name] if name else dot
    for field in filter(None, fields):
        value = value[field]
    return value
