"""What a shell completes."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ggufmerge.cli.completion import complete_methods, complete_models, complete_tensor_types, complete_types
from ggufmerge.places import inventory
from tests.ollama_store import add_model


def completed(line: str, cwd: Path, blank: str = " ") -> list[str]:
    """What bash is offered for the last word of a line; blank: what is between words."""
    words = line.split(blank)
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


@pytest.mark.parametrize(
    ("pieces", "offered"),
    [
        (["inspect", "ol"], ["ollama:llama3.2:3b", "ollama:llama3.2:latest"]),
        (["inspect", "ollama", ":"], ["llama3.2:3b", "llama3.2:latest"]),
        (["inspect", "ollama", ":", "lla"], ["llama3.2:3b", "llama3.2:latest"]),
        (["inspect", "ollama", ":", "llama3.2", ":", "3"], ["3b"]),
        (["diff", "ollama", ":", "llama3.2", ":", "3b", "ollama", ":", "llama3.2", ":", "l"], ["latest"]),
        (["build", "r.yaml", "--type", "=", "q5_k_s"], ["q5_k_s"]),
        (["inspect", "ollama:llama3.2:3"], ["ollama:llama3.2:3b"]),  # of a bash that does not break words at a colon
    ],
)
def test_bash_is_offered_the_rest_of_what_it_broke(
    pieces: list[str], offered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It breaks words at ":" and "=", and replaces the last piece only."""
    for tag in ("3b", "latest"):
        add_model(tmp_path / "store", f"llama3.2/{tag}", b"GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    (tmp_path / "empty").mkdir()
    assert sorted(completed("\n".join(["ggufmerge", *pieces]), tmp_path / "empty", "\n")) == offered


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="there is no bash")
def test_names_with_colons_are_completed_by_bash_itself(tmp_path: Path) -> None:
    """With the script that --show-completion prints, on a terminal, by the Tab key."""
    import pty

    add_model(tmp_path / "store", "llama3.2/3b", b"GGUF")
    program = tmp_path / "bin" / "ggufmerge"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ggufmerge "$@"\n')
    program.chmod(0o755)
    ggufmerge = [str(program), "--show-completion", "bash"]
    asked = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # for bash, whatever runs the tests
    script = subprocess.run(ggufmerge, env=asked, capture_output=True, text=True, check=True).stdout
    (tmp_path / "rc").write_text(f"PS1='> '\nbind 'set enable-bracketed-paste off'\n{script}\n")
    env = os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "OLLAMA_MODELS": str(tmp_path / "store"),
        "TERM": "dumb",
    }
    ours, theirs = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        cwd=program.parent,
        env=env,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        os.write(ours, b"ggufmerge inspect ollama:lla\t")
        seen = b""
        while b"ollama:llama3.2:3b" not in seen:
            assert select.select([ours], [], [], 60)[0], f"bash completed nothing: {seen!r}"
            seen += os.read(ours, 4096)
    finally:
        bash.kill()
        bash.wait()
        os.close(ours)
    assert b"ollama:ollama:" not in seen
