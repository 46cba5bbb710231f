"""`ggufmerge quantize` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ggufmerge
from tests.tiny import write_tiny_llama


def ggufmerge_quantize(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", "quantize", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "model.gguf", embed=256, ff=256)
    return tmp_path


def test_a_table_says_what_became_of_each_kind_of_tensor(folder: Path) -> None:
    """Type, bits per weight, error; and one line about the file."""
    done = ggufmerge_quantize(folder, "model.gguf", "out.gguf", "q4_k_m", "--tensor-type", "ffn_up=Q8_0")
    assert done.returncode == 0
    assert "warning" not in done.stderr
    row = next(line for line in done.stdout.splitlines() if "ffn_up" in line)
    assert row.split()[-3:-1] == ["Q8_0", "8.5"]
    assert "out.gguf: Q4_K_M" in done.stdout
    assert ggufmerge.open(folder / "out.gguf").tensors["blk.1.ffn_up.weight"].type == "Q8_0"


def test_json_has_every_tensor(folder: Path) -> None:
    """With the reason for its type and its error; a dry run writes nothing."""
    done = ggufmerge_quantize(folder, "model.gguf", "out.gguf", "Q5_K_M", "--json", "--dry-run")
    planned = json.loads(done.stdout)
    assert not (folder / "out.gguf").exists()
    facts = json.loads(ggufmerge_quantize(folder, "model.gguf", "out.gguf", "Q5_K_M", "--json").stdout)
    assert [t["type"] for t in facts["tensors"]] == [t["type"] for t in planned["tensors"]]
    assert all(t["why"] for t in facts["tensors"])
    assert all(0 < t["relative_error"] < 0.1 for t in facts["tensors"] if t["type"] in ("Q5_K", "Q6_K"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("model.gguf", "out.gguf", "Q4_L"), 'unknown type "Q4_L"'),
        (("model.gguf", "model.gguf", "Q8_0", "--overwrite"), "also an input"),
        (("nothing.gguf", "out.gguf", "Q8_0"), "nothing.gguf"),
        (("model.gguf", "out.gguf", "Q8_0", "--tensor-type", "ffn_up"), "NAME=TYPE"),
        (("model.gguf", "out.gguf", "Q8_0", "--imatrix", "model.gguf"), "imatrix"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    """And exit code 1, and nothing is written."""
    before = sorted(p.name for p in folder.iterdir())
    done = ggufmerge_quantize(folder, *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(p.name for p in folder.iterdir()) == before
