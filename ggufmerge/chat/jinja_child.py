"""A program that renders one Jinja template for several conversations: JSON on standard input, JSON on standard output.

It runs in a process of its own, because a template is code of a stranger: a sandbox of Jinja's keeps it from reaching
anything, but not from counting to a billion. The process has limits, and its parent stops waiting. Imports nothing of
ggufmerge, so that it starts quickly.

The environment is that of transformers' `apply_chat_template` (`utils/chat_template_utils.py`), which templates are
written for: blocks are trimmed, loops can break, `tojson` escapes nothing, `raise_exception` refuses a conversation.
`strftime_now` is left out, so templates that can do without today's date write none.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

_MEMORY = 1 << 30  # bytes
_MAX_TEXT = 1 << 18  # characters of a rendered text; all of them together are what the parent has to hold


def main() -> None:
    request = json.load(sys.stdin)
    _limit(request["seconds"])
    try:
        template = _compiled(request["template"])
    except Exception as error:
        json.dump({"refused": f"{type(error).__name__}: {error}"[:200]}, sys.stdout)
        return
    texts = [_rendered(template, request["words"], conversation) for conversation in request["conversations"]]
    json.dump({"texts": texts}, sys.stdout)


def _compiled(text: str) -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks the answers of the model for training, and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: object) -> None:
        raise ValueError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    return environment.from_string(text)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _rendered(template: Any, words: dict[str, Any], conversation: dict[str, Any]) -> str | None:
    """None where the template refuses a conversation."""
    with contextlib.suppress(Exception):
        text: str = template.render(**words, **conversation)
        return text if len(text) <= _MAX_TEXT else None
    return None


def _limit(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, amount in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, _MEMORY)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (amount, amount))


if __name__ == "__main__":
    main()
