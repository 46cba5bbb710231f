"""`ggufmerge bake` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ggufmerge
from tests.tiny import write_tiny_llama, write_tiny_lora


def ggufmerge_bake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", "bake", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = write_tiny_llama(tmp_path / "base.gguf", embed=256, ff=256, type="Q4_K")
    write_tiny_lora(tmp_path / "lora.gguf", weights, strength=0.03)
    return tmp_path


def test_what_survived_is_said_and_little_is_warned_of(folder: Path) -> None:
    """For each kind of tensor and once for each type; a warning names what keeps more."""
    done = ggufmerge_bake(folder, "base.gguf", "lora.gguf=0.8", "-o", "out.gguf", "--rounding", "nearest")
    assert done.returncode == 0
    row = next(line for line in done.stdout.splitlines() if "attn_q" in line)
    assert row.split()[:4] == ["2", "x", "blk.*.attn_q.weight", "Q4_K"]
    assert "copied" in next(line for line in done.stdout.splitlines() if "attn_k" in line)
    assert done.stdout.count("survived") == 1
    assert " (4 tensors)" in done.stdout
    [warning] = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "% of the change is lost" in warning
    assert "--rounding stochastic" in warning
    assert "--type Q6_K keeps" in warning


def test_stochastic_rounding_is_the_default_and_its_noise_is_told(folder: Path) -> None:
    """It is what baking does by itself, in the base's own type, whose steps are larger than the change."""
    done = ggufmerge_bake(folder, "base.gguf", "lora.gguf", "-o", "out.gguf")
    assert done.returncode == 0
    assert "(4 tensors, rounded stochastically)" in done.stdout
    [warning] = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "the noise of rounding is" in warning
    assert "with noise" in done.stdout
    assert ggufmerge.open(folder / "out.gguf").tensors["blk.1.ffn_down.weight"].type == "Q4_K"


def test_a_finer_type_needs_no_warning(folder: Path) -> None:
    """It keeps nearly all."""
    done = ggufmerge_bake(folder, "base.gguf", "lora.gguf", "-o", "out.gguf", "--type", "q8_0")
    assert (done.returncode, done.stderr) == (0, "")
    assert ggufmerge.open(folder / "out.gguf").tensors["blk.1.ffn_down.weight"].type == "Q8_0"


def test_json_has_every_tensor(folder: Path) -> None:
    """A dry run plans the same and writes nothing."""
    planned = json.loads(ggufmerge_bake(folder, "base.gguf", "lora.gguf", "--dry-run", "--json").stdout)
    assert not (folder / "out.gguf").exists()
    done = ggufmerge_bake(folder, "base.gguf", "lora.gguf", "-o", "out.gguf", "--json", "--rounding", "nearest")
    facts = json.loads(done.stdout)
    assert [(t["name"], t["type"]) for t in facts["tensors"]] == [(t["name"], t["type"]) for t in planned["tensors"]]
    assert planned["survival"] is None
    assert 0 < facts["survival"] < 0.3
    changed = {t["name"] for t in facts["tensors"] if t["survival"] is not None}
    assert changed == {f"blk.{i}.{part}.weight" for i in (0, 1) for part in ("attn_q", "ffn_down")}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("base.gguf", "lora.gguf", "-o", "base.gguf", "--overwrite"), "also an input"),
        (("base.gguf", "lora.gguf", "-o", "lora.gguf"), "also an input"),
        (("base.gguf", "none.gguf", "-o", "out.gguf"), "no such file"),
        (("base.gguf", "base.gguf", "-o", "out.gguf"), "not a LoRA adapter"),
        (("lora.gguf", "lora.gguf", "-o", "out.gguf"), "a LoRA adapter, not a model"),
        (("base.gguf", "lora.gguf", "-o", "out.gguf", "--type", "Q9"), '--type: unknown type "Q9"'),
        (("base.gguf", "lora.gguf=inf", "-o", "out.gguf"), "an adapter's strength is a finite number"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    """And exit code 1, and nothing is written."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = ggufmerge_bake(folder, *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_wrong_use_exits_with_2(folder: Path) -> None:
    """No output, no adapter."""
    assert ggufmerge_bake(folder, "base.gguf", "lora.gguf").returncode == 2
    assert ggufmerge_bake(folder, "base.gguf", "-o", "out.gguf").returncode == 2


def test_an_unknown_rounding_is_one_clear_line(folder: Path) -> None:
    """With the words there are, and nothing of the libraries that read it."""
    done = ggufmerge_bake(folder, "base.gguf", "lora.gguf", "-o", "out.gguf", "--rounding", "chance")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --rounding: 'chance' is not one of 'auto', ")
    assert done.stderr.count("\n") == 1
