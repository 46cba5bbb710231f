"""Conversations on which two ways to write a prompt are compared.

All begin with a system message or a question, and questions and answers take turns: many templates refuse other ones,
and Ollama joins messages of one role that follow each other. No message begins or ends with white space, which some
templates cut off and Ollama's template language cannot.
"""

from __future__ import annotations

from ggufmerge.chat.jinja import Message

_KIND = "You are kind, and answer in one sentence."
_RULES = "Rules:\n\n1. Use metric units.\n2. Say `unknown` if you do not know.\n\n\tNever shout."
_CODE = "def f(x):\n    return {'a': [x, {}], \"b\": x % 2}  # {{ x }} {% y %} {# z #}\n\nprint(f(1))"
_MARKS = "Is <b>this & that</b> \"quoted\" or 'not'? \\n is no line break; $HOME, %s, {0} and ~ stay."
_TONGUES = "¿Qué significa «früh»? 早く、そしてゆっくり。 Ещё раз — مرحبا 🙂👩‍👩‍👧"
_LONG = " ".join(f"Sentence {i} of a longer text, which goes on." for i in range(40))


def _chat(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """Questions and answers in turn, behind a system message if there is one."""
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return (*([Message("system", system)] if system is not None else []), *turns)


CORPUS = (
    _chat("Hello"),
    _chat("Hello", system=_KIND),
    _chat("What is 2 + 2?", "4.", "And 3 + 3?"),
    _chat("What is 2 + 2?", "4.", "And 3 + 3?", system=_KIND),
    _chat("a", "b", "c", "d", "e"),
    _chat("a", "b", "c", "d", "e", system="s"),
    _chat(_CODE),
    _chat("Mend this:\n\n" + _CODE, "```python\n" + _CODE + "\n```", "Thanks.\n\nAnd now?"),
    _chat(_MARKS, system=_RULES),
    _chat(_MARKS, _MARKS, _CODE, _CODE, _TONGUES, system=_CODE),
    _chat(_TONGUES),
    _chat(_TONGUES, "Früh heißt «temprano».\n早い。", "Danke!", system=_TONGUES),
    _chat(_LONG, _LONG, "Sum it up.", system=_LONG),
    _chat("line one\nline two\n\nline four", "one\n\n\ntwo", "three"),
    _chat("1", "2", "3", "4", "5", "6", "7", "8", "9"),
    _chat("1", "2", "3", "4", "5", "6", "7", "8", "9", system="Count."),
    _chat("user", "assistant", "system", system="user"),
    _chat("### Instruction:", "Assistant:", "[/INST]", system="System:"),
    _chat("?", "!", "?", system=_RULES),
    _chat('{"tool": "search", "arguments": {"q": "x"}}', "[]", "null"),
)

# For templates that write long conversations or texts otherwise, such as the last messages only.
LARGE = (
    _chat(*map(str, range(101)), system="Count on."),
    _chat(_LONG * 8, _LONG * 8, "Sum it up.", system=_LONG * 8),
)
