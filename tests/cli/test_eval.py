"""`ggufmerge eval` on tiny models: what it prints, and what it refuses."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
from typer.testing import CliRunner

import ggufmerge
from ggufmerge.cli.app import app
from ggufmerge.engine.parents import NOT_FOUND
from ggufmerge.errors import GgufmergeError
from ggufmerge.evaluation import LlamaModel, chat_prompt, generate, kl_divergence, libllama, perplexity, texts
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
    heads, base, tuned = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout.split("\n")[:3]
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


def test_require_better_needs_models_to_compare(folder: pathlib.Path) -> None:
    """A single model without a base that is known has nothing to be better than; the command says what to give."""
    result = CliRunner().invoke(app, ["eval", "base.gguf", "--require-better", "--text", "prose.txt"])
    assert result.exit_code == 2
    assert "name the base" in result.output


def test_without_a_text_the_built_in_ones_are_read(folder: pathlib.Path) -> None:
    """All of them, and no more of each than --quick allows."""
    scores = facts("base.gguf", "--tokens", "8")["scores"]
    assert tuple(s["text"] for s in scores) == texts.NAMES
    assert {s["tokens"] for s in facts("base.gguf", "--quick", "--text", "english")["scores"]} == {texts.QUICK - 1}


def test_built_in_texts_stand_beside_files(folder: pathlib.Path) -> None:
    """`builtin` means all of them, a name one; a file of that name is that file."""
    both = facts("base.gguf", "--text", "builtin", "--text", "prose.txt", "--tokens", "8")["scores"]
    assert [s["text"] for s in both] == [*texts.NAMES, "prose.txt"]
    (folder / "german").write_text("the wind", encoding="utf-8")
    (found,) = facts("base.gguf", "--text", "german")["scores"]
    assert found["tokens"] < 10
    with pytest.raises(GgufmergeError, match=r"frensh: no such file.* french"):
        CliRunner().invoke(app, ["eval", "base.gguf", "--text", "frensh"], catch_exceptions=False)


def test_questions_alone_read_no_text(folder: pathlib.Path) -> None:
    """Nobody asked how well the model predicts."""
    found = facts("base.gguf", "--prompt", "Why?", "--answer-tokens", "2")
    assert (found["scores"], found["verdicts"]) == ([], [])


MERGE = """
merge_method: task_arithmetic
base_model: base.gguf
models:
  - {model: tuned.gguf, parameters: {weight: 0.5}}
"""


def test_parents_stand_beside_a_merge(folder: pathlib.Path) -> None:
    """The base first, then the models it was made from, then the merge; not when they are not wanted."""
    ggufmerge.build(MERGE, "merged.gguf")
    found = facts("merged.gguf", "--text", "prose.txt")
    roles = [("base.gguf", "base"), ("tuned.gguf", "parent"), ("merged.gguf", "model")]
    assert [(m["model"], m["role"]) for m in found["models"]] == roles
    (verdict,) = found["verdicts"]
    assert (verdict["base"], verdict["parents"]) == ("base.gguf", ["tuned.gguf"])
    score = {s["model"]: s["nll"] for s in found["scores"]}
    assert verdict["texts"][0]["gain"] == pytest.approx(score["base.gguf"] - score["merged.gguf"])
    assert [m["model"] for m in facts("merged.gguf", "--text", "prose.txt", "--no-parents")["models"]] == [
        "merged.gguf"
    ]


def test_a_named_model_keeps_its_place(folder: pathlib.Path) -> None:
    """Changes are shown against the first named model; parents that are named are measured once."""
    ggufmerge.build(MERGE, "merged.gguf")
    first = facts("tuned.gguf", "merged.gguf", "--text", "prose.txt", "--tokens", "8")["models"]
    assert [m["model"] for m in first] == ["tuned.gguf", "base.gguf", "merged.gguf"]
    first = facts("merged.gguf", "base.gguf", "--text", "prose.txt", "--tokens", "8")["models"]
    assert [m["model"] for m in first] == ["merged.gguf", "tuned.gguf", "base.gguf"]


def test_a_reference_and_questions_leave_parents_out(folder: pathlib.Path) -> None:
    """They ask something else."""
    ggufmerge.build(MERGE, "merged.gguf")
    for options in ("--reference tuned.gguf --text prose.txt", "--prompt Why? --answer-tokens 1"):
        assert "base.gguf" not in {m["model"] for m in facts("merged.gguf", *options.split())["models"]}


def test_missing_parents_are_named(folder: pathlib.Path) -> None:
    """With the reason; another file of the same name is not taken for them."""
    ggufmerge.build(MERGE, "merged.gguf")
    (folder / "tuned.gguf").unlink()
    write_tiny_llama(folder / "base.gguf", tokenizer="bpe", seed=5)
    found = facts("merged.gguf", "--text", "prose.txt")
    assert [m["model"] for m in found["models"]] == ["merged.gguf"]
    assert found["missing"] == {
        "merged.gguf": ["base.gguf: only other files of this name are here", f"tuned.gguf: {NOT_FOUND}"]
    }
    shown = CliRunner().invoke(app, ["eval", "merged.gguf", "--text", "prose.txt", "--threads=1"]).stdout
    assert "note: not all models that merged.gguf was made from were found" in shown
    assert f"tuned.gguf: {NOT_FOUND}" in shown


def test_a_single_merge_must_be_better_than_its_base(folder: pathlib.Path) -> None:
    """--require-better takes the base that the file names."""
    ggufmerge.build(MERGE, "merged.gguf")
    found = {s["model"]: s["perplexity"] for s in facts("merged.gguf", "--text", "prose.txt")["scores"]}
    arguments = ["eval", "merged.gguf", "--text", "prose.txt", "--require-better", "--threads=1"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code == 0) == (found["merged.gguf"] < found["base.gguf"])


def test_the_verdict_stands_below_the_table(folder: pathlib.Path) -> None:
    """In words, for the models that the user named."""
    ggufmerge.build(MERGE, "merged.gguf")
    shown = CliRunner().invoke(app, ["eval", "merged.gguf", "--text", "prose.txt", "--threads=1"]).stdout
    sentence = facts("merged.gguf", "--text", "prose.txt")["verdicts"][0]["sentence"]
    assert "its base on prose.txt" in sentence
    assert all(f"  {part}" in shown for part in sentence.split("; "))


def test_a_verdict_calls_texts_by_their_file_names(folder: pathlib.Path) -> None:
    """Without folders in its words; as they were given in its figures."""
    (folder / "texts").mkdir()
    (folder / "prose.txt").rename(folder / "texts/prose.txt")
    (verdict,) = facts("base.gguf", "tuned.gguf", "--text", "texts/prose.txt")["verdicts"]
    assert "base.gguf on prose.txt" in verdict["sentence"]
    assert [on["text"] for on in verdict["texts"]] == ["texts/prose.txt"]


def test_without_llama_cpp_one_line_says_what_to_install(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setitem(sys.modules, "xllamacpp.xllamacpp", None)
    libllama.library.cache_clear()
    with pytest.raises(GgufmergeError, match=r"pip install 'ggufmerge\[llama\]'"):
        CliRunner().invoke(app, ["eval", "base.gguf"], catch_exceptions=False)


def test_bad_input_is_one_clear_error(folder: pathlib.Path) -> None:
    """Texts that are not UTF-8 and malformed models are refused by name."""
    (folder / "latin.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(GgufmergeError, match=r"latin\.txt: not a UTF-8 text"):
        CliRunner().invoke(app, ["eval", "base.gguf", "--text", "latin.txt"], catch_exceptions=False)
    with pytest.raises(GgufmergeError, match="empty path"):
        CliRunner().invoke(app, ["eval", "base.gguf+", "--text", "prose.txt"], catch_exceptions=False)


def test_a_program_measures_what_the_command_does(folder: pathlib.Path) -> None:
    """The same models, figures and verdicts, from one loop."""
    recipe = "merge_method: linear\nmodels: [{model: base.gguf}, {model: tuned.gguf}]\n"
    ggufmerge.build(recipe, "merged.gguf")
    told = facts("merged.gguf", "--text", "prose.txt", "--text", "french", "--tokens", "60", "--context", "32")
    found = ggufmerge.evaluate(["merged.gguf"], ["prose.txt", "french"], parents=True, tokens=60, context=32, threads=1)
    assert [(s.model, s.text, s.perplexity.nll) for s in found.scores] == [
        (s["model"], s["text"], s["nll"]) for s in told["scores"]
    ]
    assert [v.sentence for v in found.verdicts] == [v["sentence"] for v in told["verdicts"]]
    assert {s.model for s in found.scores} == {"merged.gguf", "base.gguf", "tuned.gguf"}
