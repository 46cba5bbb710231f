"""What a shell completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggufmerge.cli.completion import complete_methods, complete_models, complete_tensor_types, complete_types
from ggufmerge.places import inventory


def completed(line: str, cwd: Path) -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    env = {
        **os.environ,
        "_GGUFMERGE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ggufmerge"], cwd=cwd, env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_values_are_completed(tmp_path: Path) -> None:
    """Of options and of words."""
    (tmp_path / "model.gguf").touch()
    assert completed("ggufmerge build recipe.yaml --type Q5_K", tmp_path) == ["Q5_K_S", "Q5_K_M"]
    assert completed("ggufmerge quantize model.gguf out.gguf q6", tmp_path) == ["q6_k"]
    assert completed("ggufmerge methods dare", tmp_path) == ["dare_linear", "dare_ties"]
    assert completed("ggufmerge bake mo", tmp_path) == ["model.gguf"]


def names(found: list[tuple[str, str]]) -> list[str]:
    return [name for name, _ in found]


def test_names_are_in_the_case_in_which_they_were_begun() -> None:
    """A shell drops what does not begin with what was typed."""
    assert names(complete_types("q4_k")) == ["q4_k_s", "q4_k_m"]
    assert names(complete_types("Q4_K")) == ["Q4_K_S", "Q4_K_M"]
    assert "Q8_K" not in names(complete_tensor_types(""))
    assert len(names(complete_methods(""))) == 20


def test_models_are_files_and_what_programs_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, too, for there may be some in them; hidden ones only when asked for."""
    for name in ("a.gguf", "b.txt", ".hidden.gguf"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/c.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inventory, "names", lambda: iter(["ollama:llama3.2:3b", "hf:me/x/f.gguf"]))
    assert names(complete_models("")) == ["a.gguf", "folder/", "ollama:llama3.2:3b", "hf:me/x/f.gguf"]
    assert names(complete_models("folder/")) == ["folder/c.gguf"]
    assert names(complete_models(f"{tmp_path}/a")) == [f"{tmp_path}/a.gguf"]
    assert names(complete_models("ol")) == ["ollama:llama3.2:3b"]
    assert names(complete_models(".h")) == [".hidden.gguf"]


def test_completion_is_never_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for folders that are not there nor when a program's files cannot be read."""
    assert complete_models("nowhere/x") == []

    def fail() -> None:
        raise PermissionError

    monkeypatch.setattr(inventory, "names", fail)
    assert complete_models("x") == []
