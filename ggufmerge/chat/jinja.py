"""What a Jinja chat template writes for a conversation; the template runs in a process of its own, with limits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ggufmerge.files.small import parse_json

_SECONDS = 5  # of the processor, to render all; known templates take a hundredth
_MAX_TEMPLATE = 1 << 20  # characters; the longest known one has 30,000
_CHILD = Path(__file__).with_name("jinja_child.py")


class Message(NamedTuple):
    """role: "system", "user", "assistant" or "tool"."""

    role: str
    content: str


class Conversation(NamedTuple):
    """answer: whether the template is to open the answer of the assistant behind it (`add_generation_prompt`)."""

    messages: tuple[Message, ...]
    answer: bool = True


def render(
    template: str, conversations: Sequence[Conversation], words: Mapping[str, str | bool]
) -> list[str | None] | None:
    """The text of each conversation, None where the template refuses it; None when the template cannot be run at all.

    words: what else the template may write, such as `bos_token` and `eos_token`.
    """
    found = _render(template, tuple(conversations), tuple(sorted(words.items())))
    return None if found is None else list(found)


@lru_cache(maxsize=64)
def _render(
    template: str, conversations: tuple[Conversation, ...], words: tuple[tuple[str, str | bool], ...]
) -> tuple[str | None, ...] | None:
    if len(template) > _MAX_TEMPLATE or not sys.executable:  # a program that has Python inside may name none
        return None
    asked = [{"messages": [m._asdict() for m in c.messages], "add_generation_prompt": c.answer} for c in conversations]
    request = json.dumps({"template": template, "words": dict(words), "conversations": asked, "seconds": _SECONDS})
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)],
            input=request,
            capture_output=True,
            timeout=6 * _SECONDS,  # the processor may have other things to do
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        answer = parse_json(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    texts = answer.get("texts") if isinstance(answer, dict) else None
    return tuple(texts) if isinstance(texts, list) and len(texts) == len(conversations) else None
