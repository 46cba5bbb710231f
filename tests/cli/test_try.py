"""`build --try`: a question to the model that was just made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.evaluation import LlamaModel, chat_prompt, generate, libllama
from tests.tiny import write_tiny_llama

BUILD = ["build", "recipe.yaml", "-o", "out.gguf", "--overwrite", "--no-modelfile", "--try", "why?"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_llama(tmp_path / "base.gguf", tokenizer="bpe", layers=1, context=2048)
    (tmp_path / "recipe.yaml").write_text("merge_method: passthrough\nmodels: [{model: base.gguf}]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_answer_is_that_of_the_chat_format(folder: Path) -> None:
    """As `eval --prompt` gives it, in the report and as JSON."""
    facts = json.loads(CliRunner().invoke(app, [*BUILD, "--json"], catch_exceptions=False).stdout)
    with LlamaModel("out.gguf", context=2048) as model:
        expected = generate(model, chat_prompt(model, "why?"), max_tokens=128)
    assert facts["try"] == {"prompt": "why?", "answer": expected}
    shown = CliRunner().invoke(app, BUILD, catch_exceptions=False).stdout
    assert "\n> why?\n" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_without_llama_cpp_the_build_is_made_and_a_line_says_how_to_ask(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing fails because of a question."""
    monkeypatch.setitem(sys.modules, "xllamacpp.xllamacpp", None)
    libllama.library.cache_clear()
    result = CliRunner().invoke(app, BUILD, catch_exceptions=False)
    libllama.library.cache_clear()
    assert result.exit_code == 0
    assert (folder / "out.gguf").exists()
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("note: no answer")]
    assert "pip install 'ggufmerge[llama]'" in line
    assert "ggufmerge eval out.gguf --prompt 'why?'" in line


def test_nobody_is_asked_without_it(folder: Path) -> None:
    """The report has no such key."""
    assert "try" not in json.loads(CliRunner().invoke(app, [*BUILD[:-2], "--json"], catch_exceptions=False).stdout)
