"""Sampled text: greedy, seeded and chat-formatted."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel, chat_prompt, generate
from tests.models import smollm2
from tests.tiny import write_tiny_llama


def test_greedy_takes_the_most_likely_token(tiny: LlamaModel) -> None:
    """At temperature 0 each token is the argmax after all before it."""
    tokens = tiny.tokenize("the wind")
    for _ in range(8):
        tokens.append(int(tiny.logits(tokens)[-1].argmax()))
    assert generate(tiny, "the wind", max_tokens=8) == tiny.detokenize(tokens[len(tiny.tokenize("the wind")) :])


def test_a_seed_draws_the_same_text(tiny: LlamaModel) -> None:
    """Sampling repeats with its seed and differs with another."""
    first, again, other = (generate(tiny, "the", temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_top_k_of_one_is_greedy(tiny: LlamaModel) -> None:
    """With a single candidate the temperature does not matter."""
    assert generate(tiny, "the", temperature=2.0, top_k=1) == generate(tiny, "the")


def test_generation_ends_with_the_turn(tmp_path: pathlib.Path) -> None:
    """An end token stops the text and is not part of it."""
    output = np.zeros((320, 64))
    output[2] = 1.0  # <|im_end|>, when the hidden state sums to something positive
    write_tiny_llama(
        tmp_path / "silent.gguf",
        tokenizer="bpe",
        replace={"output.weight": output, "token_embd.weight": np.ones((320, 64))},
    )
    with LlamaModel(tmp_path / "silent.gguf") as model:
        assert generate(model, "the wind") == ""


def test_generation_stops_at_a_full_context(tiny: LlamaModel) -> None:
    """More tokens than fit are not asked for."""
    prompt = "a" * 60
    assert len(tiny.tokenize(prompt)) == 60
    assert generate(tiny, prompt, max_tokens=100) == generate(tiny, prompt, max_tokens=4)


def test_chat_prompt_writes_the_models_format(tiny: LlamaModel) -> None:
    """A question becomes a user's turn, followed by the opening of the assistant's."""
    assert chat_prompt(tiny, "Why?") == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_chat_prompt_writes_formats_that_llama_cpp_does_not_know(tmp_path: pathlib.Path) -> None:
    """What the template in the file writes, with a system message of its own."""
    template = (
        "{% if messages[0]['role'] != 'system' %}~~system~~ Be brief.\n{% endif %}"
        "{% for m in messages %}~~{{ m['role'] }}~~ {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}~~assistant~~ {% endif %}"
    )
    write_tiny_llama(tmp_path / "own.gguf", tokenizer="bpe", metadata={"tokenizer.chat_template": template})
    with LlamaModel(tmp_path / "own.gguf") as model:
        with pytest.raises(GgufmergeError):
            model.format_chat([("user", "Why?")])
        assert chat_prompt(model, "Why?") == "~~system~~ Be brief.\n~~user~~ Why?\n~~assistant~~ "


def test_chat_prompt_without_a_template_is_the_question(tmp_path: pathlib.Path) -> None:
    """A base model gets the plain text."""
    write_tiny_llama(tmp_path / "spm.gguf", tokenizer="spm")
    with LlamaModel(tmp_path / "spm.gguf") as model:
        assert chat_prompt(model, "Why?") == "Why?"


def test_an_unknown_template_is_refused(tmp_path: pathlib.Path) -> None:
    """A template that llama.cpp does not recognize is never guessed at."""
    write_tiny_llama(tmp_path / "odd.gguf", metadata={"tokenizer.chat_template": "{{ messages }}"})
    with LlamaModel(tmp_path / "odd.gguf") as model, pytest.raises(GgufmergeError, match="does not know the chat"):
        chat_prompt(model, "Why?")


def test_an_empty_prompt_is_refused(tiny: LlamaModel) -> None:
    """A model without BOS has nothing to continue from."""
    with pytest.raises(GgufmergeError, match="prompt is empty"):
        generate(tiny, "")


@pytest.mark.slow
def test_a_real_model_answers_in_words() -> None:
    """SmolLM2 answers a question about the sky with the sky."""
    with LlamaModel(smollm2()) as model:
        assert "sky" in generate(model, chat_prompt(model, "Why is the sky blue?"), max_tokens=32)
