"""`ggufmerge extract-lora` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ggufmerge
from tests.tiny import write_tiny_llama


def extract_lora(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", "extract-lora", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "base.gguf")
    write_tiny_llama(tmp_path / "tune.gguf", tune=(1, 0.05))
    return tmp_path


def test_what_was_captured_is_said(folder: Path) -> None:
    """For each kind of tensor and for all; what is left out is warned of."""
    done = extract_lora(folder, "tune.gguf", "--base", "base.gguf", "-o", "out.gguf", "--rank", "8")
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if "ffn_up" in line)
    assert row.split()[:4] == ["2", "x", "blk.*.ffn_up.weight", "8"]
    assert "of the change's energy captured" in done.stdout
    warnings = done.stderr.splitlines()
    assert all(warning.startswith("warning: ") for warning in warnings)
    assert any("token_embd.weight differ" in warning for warning in warnings)
    assert ggufmerge.open(folder / "out.gguf").metadata["general.type"] == "adapter"


def test_json_has_every_tensor(folder: Path) -> None:
    """A dry run plans the same and writes nothing."""
    arguments = ("tune.gguf", "--base", "base.gguf", "--include", "ffn", "--json")
    planned = json.loads(extract_lora(folder, *arguments, "--dry-run").stdout)
    assert not (folder / "out.gguf").exists()
    facts = json.loads(extract_lora(folder, *arguments, "-o", "out.gguf").stdout)
    assert [t["name"] for t in facts["tensors"]] == [t["name"] for t in planned["tensors"]]
    assert all("ffn" in t["name"] and 0.2 < t["captured"] < 1 and t["rank"] == 16 for t in facts["tensors"])
    assert planned["captured"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tune.gguf", "--base", "base.gguf", "-o", "base.gguf", "--overwrite"), "also an input"),
        (("base.gguf", "--base", "base.gguf", "-o", "out.gguf"), "it is the same model"),
        (("tune.gguf", "--base", "none.gguf", "-o", "out.gguf"), "no such file"),
        (("tune.gguf", "--base", "base.gguf", "-o", "out.gguf", "--type", "Q4_0"), "F32, F16 or BF16"),
        (("tune.gguf", "--base", "base.gguf", "-o", "out.gguf", "--include", "nothing"), "matches no tensor"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    """And exit code 1, and nothing is written."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = extract_lora(folder, *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr.splitlines()[-1]
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_wrong_use_exits_with_2(folder: Path) -> None:
    """No base, no output, a rank of 0."""
    assert extract_lora(folder, "tune.gguf", "-o", "out.gguf").returncode == 2
    assert extract_lora(folder, "tune.gguf", "--base", "base.gguf").returncode == 2
    assert extract_lora(folder, "tune.gguf", "--base", "base.gguf", "-o", "out.gguf", "-r", "0").returncode == 2
