"""Sampled text: what a model answers to a prompt, greedy or with a seeded temperature."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufmerge.chat.jinja import Message
from ggufmerge.chat.of_file import chat_format
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.files import open_gguf


def generate(
    model: LlamaModel,
    prompt: str,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 40,
    seed: int = 0,
) -> str:
    """The text that follows a prompt, until the model ends it, `max_tokens` are drawn or its context is full.

    Control tokens in the prompt are read as such, so a prompt of `chat_prompt` works.
    temperature: 0 takes the most likely token each time; above 0 draws from the `top_k` most likely ones, with
    logits divided by the temperature. The same seed draws the same text on the same machine.
    """
    tokens = model.tokenize(prompt, special=True)
    if model.begin_token is not None and tokens[:1] != [model.begin_token]:
        tokens.insert(0, model.begin_token)
    if not tokens:
        raise GgufmergeError("the prompt is empty: give the model something to continue")
    random = np.random.default_rng(seed)
    room = min(max_tokens, model.context - len(tokens))
    model.reset()
    logits = model.extend(tokens)
    drawn: list[int] = []
    while len(drawn) < room:
        token = _draw(logits, temperature, top_k, random)
        if model.is_end(token):
            break
        drawn.append(token)
        logits = model.extend([token])
    return model.detokenize(drawn)


def chat_prompt(model: LlamaModel, question: str) -> str:
    """The question as the user's turn of a chat, in the model's own format; the plain question when it has none.

    The format is what the file's chat template was found to write (`ggufmerge.chat`), a default system message
    included. Of a template that writes in a way of its own, llama.cpp recognizes the kind; GgufmergeError when it does
    not.
    """
    with open_gguf(model.path) as file:
        found = chat_format(file.metadata)
    if found is not None:
        return found.write([Message("user", question)])
    rendered = model.format_chat([("user", question)])
    return question if rendered is None else rendered


def _draw(logits: NDArray[np.float32], temperature: float, top_k: int, random: np.random.Generator) -> int:
    if temperature <= 0:
        return int(np.argmax(logits))
    likely = np.argsort(-logits, kind="stable")[:top_k]
    scaled = logits[likely].astype(np.float64) / temperature
    weights = np.exp(scaled - scaled[0])
    return int(likely[np.searchsorted(np.cumsum(weights), random.random() * weights.sum(), side="right")])
