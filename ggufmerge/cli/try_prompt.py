"""`--try PROMPT`: a first answer of a model that was just written, through llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

TryPrompt = Annotated[
    str | None,
    typer.Option("--try", metavar="PROMPT", help="Ask the finished model this, in its chat format (extra: llama)."),
]

_CONTEXT = 2048  # tokens of question and answer
_ANSWER = 128  # tokens


def answer(path: Path, prompt: str) -> dict[str, Any]:
    """{"prompt", "answer"} of the model in a file; instead of an answer {"error"} says why there is none.

    The model is made, whatever comes of the question, so this never fails.
    """
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.evaluation import LlamaModel, chat_prompt, generate

    try:
        with LlamaModel(path, context=_CONTEXT) as model:
            return {"prompt": prompt, "answer": generate(model, chat_prompt(model, prompt), max_tokens=_ANSWER)}
    except (GgufmergeError, OSError) as error:
        return {"prompt": prompt, "error": str(error)}


def asked(path: Path, prompt: str | None) -> dict[str, Any]:
    """What a report says of `--try`, for JSON: nothing when nothing was asked."""
    return {} if prompt is None else {"try": answer(path, prompt)}


def show(path: Path, prompt: str | None) -> None:
    """Ask, and print the answer as running text; a line how to ask later when there is none."""
    from ggufmerge.cli.facts import space
    from ggufmerge.cli.terminal import complain, say, tell

    if prompt is None:
        return
    space()
    say(f"> {prompt}")
    found = answer(path, prompt)
    if "error" in found:
        complain(f"note: no answer: {found['error']}; later: ggufmerge eval {path} --prompt {prompt!r}")
        return
    tell(found["answer"].strip().splitlines() or ["(the model ends its turn at once)"], "")
