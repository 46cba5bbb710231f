"""`ggufmerge eval` on tiny models: what it prints, and what it refuses."""

from __future__ import annotations

import json
import pathlib

import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluate import LlamaModel, chat_prompt, generate, kl_divergence, perplexity
from tests.tiny import write_tiny_llama, write_tiny_lora

TEXT = "the history of the wind and that which was in it, as he said to the others with his hat on. " * 4


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Two related models, an adapter and two texts, in the working folder."""
    weights = write_tiny_llama(tmp_path / "base.gguf", tokenizer="bpe")
    write_tiny_llama(tmp_path / "tuned.gguf", tokenizer="bpe", tune=(1, 0.2))
    write_tiny_lora(tmp_path / "lora.gguf", weights, strength=0.5)
    (tmp_path / "prose.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "french.txt").write_text("L'été, où es-tu passé ?", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["eval", *arguments, "--json", "--threads", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_has_every_model_and_text(folder: pathlib.Path) -> None:
    """Each pair of model and text has the figures the library gives for it."""
    found = facts("base.gguf", "tuned.gguf", "--text", "prose.txt", "--text", "french.txt", "--context", "64")
    assert [(s["model"], s["text"]) for s in found["scores"]] == [
        ("base.gguf", "prose.txt"),
        ("base.gguf", "french.txt"),
        ("tuned.gguf", "prose.txt"),
        ("tuned.gguf", "french.txt"),
    ]
    with LlamaModel("tuned.gguf", context=64) as model:
        expected = perplexity(model, TEXT, context=64)
    score = found["scores"][2]
    assert (score["tokens"], score["nll"]) == (expected.tokens, pytest.approx(expected.nll))
    assert score["perplexity"] == pytest.approx(expected.value)


def test_reference_comes_first_and_others_diverge_from_it(folder: pathlib.Path) -> None:
    """The reference is measured too; the other models get their divergence from it."""
    base, tuned = facts("tuned.gguf", "--reference", "base.gguf", "--text", "prose.txt")["scores"]
    with LlamaModel("tuned.gguf") as model, LlamaModel("base.gguf") as reference:
        expected = kl_divergence(model, reference, TEXT)
    assert base["model"] == "base.gguf"
    assert "kl_divergence" not in base
    assert tuned["kl_divergence"] == pytest.approx(expected.mean)
    assert tuned["same_top"] == pytest.approx(expected.same_top)


def test_a_model_may_carry_adapters(folder: pathlib.Path) -> None:
    """base+adapter=strength is the base with the adapter applied by llama.cpp."""
    score = facts("base.gguf+lora.gguf=0.5", "--text", "prose.txt")["scores"][0]
    with LlamaModel("base.gguf", adapters=[("lora.gguf", 0.5)]) as model:
        assert score["nll"] == pytest.approx(perplexity(model, TEXT).nll)


def test_a_plus_sign_in_a_file_name_is_part_of_it(folder: pathlib.Path) -> None:
    """A file that exists under the whole name is that file."""
    (folder / "base.gguf").rename(folder / "base+lora.gguf")
    assert facts("base+lora.gguf", "--text", "prose.txt")["scores"][0]["tokens"] > 0


def test_prompt_is_answered_in_chat_format(folder: pathlib.Path) -> None:
    """Each model answers the question, or continues the bare prompt."""
    asked = facts("base.gguf", "--prompt", "Why?", "--answer-tokens", "5", "--temperature", "1", "--seed", "3")
    plain = facts("base.gguf", "--prompt", "Why?", "--answer-tokens", "5", "--no-chat")
    with LlamaModel("base.gguf") as model:
        answer = generate(model, chat_prompt(model, "Why?"), max_tokens=5, temperature=1, seed=3)
        continuation = generate(model, "Why?", max_tokens=5)
    assert asked["answers"] == [{"model": "base.gguf", "prompt": "Why?", "answer": answer}]
    assert plain["answers"][0]["answer"] == continuation


def test_table_compares_models_of_a_text(folder: pathlib.Path) -> None:
    """In a pipe each line is a text and model, with the change against the first model."""
    arguments = ["eval", "base.gguf", "tuned.gguf", "--text", "prose.txt", "--reference", "base.gguf", "--threads=1"]
    found = facts(*arguments[1:])["scores"]
    change = 100 * (found[1]["perplexity"] / found[0]["perplexity"] - 1)
    heads, base, tuned = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout.split("\n")[1:4]
    assert heads.split() == ["text", "model", "perplexity", "change", "KL", "divergence", "same", "top"]
    assert base.split()[:3] == ["prose.txt", "base.gguf", f"{found[0]['perplexity']:.2f}"]
    assert f"{change:+.1f} %" in tuned
    assert f"{found[1]['kl_divergence']:.4f}" in tuned
    assert max(map(len, (heads, base, tuned))) <= 80


def test_answers_cannot_control_the_terminal(folder: pathlib.Path) -> None:
    """Control characters that a model says are shown as escapes."""
    arguments = ["eval", "base.gguf", "--prompt", "the", "--temperature", "3", "--answer-tokens", "200", "--threads=1"]
    said = facts(*arguments[1:])["answers"][0]["answer"]
    assert any(not c.isprintable() and c != "\n" for c in said)
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_require_better_fails_for_a_worse_model(folder: pathlib.Path) -> None:
    """A model that does not predict a text better than the first one fails the command, after the figures."""
    base, tuned = facts("base.gguf", "tuned.gguf", "--text", "prose.txt")["scores"]
    worse, better = sorted((base, tuned), key=lambda s: -s["perplexity"])
    facts(worse["model"], better["model"], "--text", "prose.txt", "--require-better")
    with pytest.raises(GgufmergeError, match=rf"not better: {worse['model']} on prose\.txt"):
        facts(better["model"], worse["model"], "--text", "prose.txt", "--require-better")


@pytest.mark.parametrize("options", ["", "--prompt Why? --reference base.gguf", "--require-better --text prose.txt"])
def test_nothing_to_do_is_a_usage_error(folder: pathlib.Path, options: str) -> None:
    """Without a text or a prompt, a text for the reference, or models to compare, the command says what to give."""
    result = CliRunner().invoke(app, ["eval", "base.gguf", *options.split()])
    assert result.exit_code == 2
    assert "--text" in result.output


def test_bad_input_is_one_clear_error(folder: pathlib.Path) -> None:
    """Texts that are not UTF-8 and malformed models are refused by name."""
    (folder / "latin.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(GgufmergeError, match=r"latin\.txt: not a UTF-8 text"):
        CliRunner().invoke(app, ["eval", "base.gguf", "--text", "latin.txt"], catch_exceptions=False)
    with pytest.raises(GgufmergeError, match="empty path"):
        CliRunner().invoke(app, ["eval", "base.gguf+", "--text", "prose.txt"], catch_exceptions=False)
