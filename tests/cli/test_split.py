"""`ggufmerge split` and `ggufmerge join` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.files import craft


def ggufmerge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(craft.splittable())
    return tmp_path


def test_there_and_back(folder: Path) -> None:
    """A table of the shards; a line about the joined file, which has what the shards have."""
    done = ggufmerge(folder, "split", "model.gguf", "cut", "--split-max-tensors", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:]] == [
        ["cut-00001-of-00003.gguf", "3"],
        ["cut-00002-of-00003.gguf", "3"],
        ["cut-00003-of-00003.gguf", "1"],
    ]
    done = ggufmerge(folder, "join", "cut-00001-of-00003.gguf", "joined.gguf", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "joined.gguf: 7 tensors of 3 shards, 2.7 MB" in done.stdout


def test_json_and_dry_run(folder: Path) -> None:
    """The same facts whether or not files are written; 128 tensors a shard when nothing is said."""
    planned = json.loads(ggufmerge(folder, "split", "model.gguf", "cut", "--dry-run", "--json").stdout)
    assert [path.name for path in folder.iterdir()] == ["model.gguf"]
    assert planned["files"] == []
    done = json.loads(ggufmerge(folder, "split", "model.gguf", "cut", "--json").stdout)
    name = "cut-00001-of-00001.gguf"
    assert done == {**planned, "output": name, "files": [name]}
    assert [(shard["path"], shard["tensor_count"]) for shard in done["shards"]] == [("cut-00001-of-00001.gguf", 7)]
    joined = json.loads(ggufmerge(folder, "join", "cut-00001-of-00001.gguf", "joined.gguf", "--json").stdout)
    assert joined["shards"] == [{"path": "cut-00001-of-00001.gguf"}]
    assert joined["nbytes"] == (folder / "joined.gguf").stat().st_size


def test_a_tensor_above_the_limit_is_told(folder: Path) -> None:
    """A warning, not an error: llama-gguf-split writes such shards, too."""
    done = ggufmerge(folder, "split", "model.gguf", "cut", "--split-max-size", "1M")
    assert done.returncode == 0
    assert done.stderr == "warning: tensor.3 has 1.2 MB, more than a shard should have: it gets one of its own\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("split", "nothing.gguf", "cut"), "nothing.gguf"),
        (("split", "model.gguf", "cut", "--split-max-size", "4K"), "such as 500M or 4G"),
        (("split", "model.gguf", "cut", "--split-max-size", "1M", "--split-max-tensors", "3"), "not both"),
        (("split", "model.gguf", "nowhere/cut"), "create it first"),
        (("join", "model.gguf", "joined.gguf"), "is not split"),
        (("join", "model.gguf", "model.gguf", "--overwrite"), "is not split"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    """And exit code 1, and nothing is written."""
    done = ggufmerge(folder, *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in folder.iterdir()] == ["model.gguf"]
