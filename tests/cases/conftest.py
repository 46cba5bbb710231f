"""A user in a folder of his own, with a terminal of 80 columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from tests.command import Run, runner

Build = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the user works in, with nothing of anybody else's in reach."""
    home, here = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    here.mkdir()
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in-process: (exit code, standard output, standard error)."""

    plain = runner(monkeypatch, capsys)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code, out, err = plain(*arguments)
        return code, out, re.sub("^compiling kernels .*\n", "", err, flags=re.MULTILINE)  # once on a machine

    return call


@pytest.fixture
def build(run: Run, folder: Path) -> Build:
    """Build a recipe, given as its text, into NAME.gguf; gives the warnings."""

    def call(recipe: str, name: str = "out", *options: str) -> list[str]:
        (folder / f"{name}.yaml").write_text(recipe, encoding="utf-8")
        code, _, err = run("build", f"{name}.yaml", "-o", f"{name}.gguf", *options)
        assert code == 0, err
        return [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]

    return call


@pytest.fixture
def refused(run: Run, folder: Path) -> Callable[[str], list[str]]:
    """Try to build a recipe; gives the lines of the error. There is no output then."""

    def call(recipe: str) -> list[str]:
        (folder / "r.yaml").write_text(recipe, encoding="utf-8")
        code, _, err = run("build", "r.yaml", "-o", "refused.gguf")
        assert code == 1, err
        assert not list(folder.glob("refused*"))
        return [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]

    return call


def weights(path: Path | str) -> dict[str, np.ndarray]:
    """The float32 values of all tensors of a file."""
    with ggufmerge.open(path) as file:
        return {name: tensor.dequantize().copy() for name, tensor in file.tensors.items()}


def raw(path: Path | str) -> dict[str, bytes]:
    """The bytes of all tensors of a file."""
    with ggufmerge.open(path) as file:
        return {name: bytes(tensor.raw) for name, tensor in file.tensors.items()}


def metadata(path: Path | str, *keys: str) -> list[object]:
    """Values of a file's metadata; None for keys that it lacks."""
    with ggufmerge.open(path) as file:
        return [file.metadata.get(key) for key in keys]
