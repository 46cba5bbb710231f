"""`ggufmerge split` and `ggufmerge join` as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.files import craft
from tests.tiny import write_tiny_llama


def ggufmerge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(craft.splittable())
    return tmp_path


def test_there_and_back(folder: Path) -> None:
    """A table of the shards, and what to do with them; a line about the joined file, which has what the shards have."""
    done = ggufmerge(folder, "split", "model.gguf", "cut", "--split-max-tensors", "3")
    assert (done.returncode, done.stderr) == (0, "")
    _, *rows, blank, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in rows] == [
        ["cut-00001-of-00003.gguf", "3"],
        ["cut-00002-of-00003.gguf", "3"],
        ["cut-00003-of-00003.gguf", "1"],
    ]
    assert blank == ""
    assert re.match(r"3 shards with 7 tensors, 2\.7 MB: give cut-00001-of-00003\.gguf wherever a model", last)
    done = ggufmerge(folder, "join", "cut-00001-of-00003.gguf", "joined.gguf", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "joined.gguf: 7 tensors of 3 shards, 2.7 MB" in done.stdout


def test_all_shards_may_be_given_in_any_order(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wildcard gives them, or one that is not the first; they give the model back."""
    monkeypatch.chdir(folder)
    for name in ("cut", "other"):
        assert run("split", "model.gguf", name, "--split-max-tensors", "3")[0] == 0
    first, second, third = (f"cut-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    given = [(first, second, third), (third, first, second), (third, second), (second,)]
    for number, shards in enumerate(given):
        code, out, err = run("join", *shards, f"joined{number}.gguf")
        assert (code, err) == (0, "")
        assert "7 tensors of 3 shards" in out
        assert (folder / f"joined{number}.gguf").read_bytes() == (folder / "joined0.gguf").read_bytes()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for arguments, complaint in (
        ((first, second, third), f"{third}: is a shard of the model: give the file to write behind the shards"),
        ((first, second, "--overwrite"), f"{second}: is a shard of the model"),
        ((first, "other-00002-of-00003.gguf", "x.gguf"), "not a shard of the same model as cut-00001-of-00003.gguf"),
        ((first, "model.gguf", "x.gguf"), "model.gguf: not named as a shard is (NAME-00001-of-00002.gguf)"),
    ):
        code, _, err = run("join", *arguments)
        assert code == 1
        assert complaint in err
    for name in ("m.gguf.part1of2", "m.gguf.part2of2"):
        (folder / name).write_bytes(b"GGUF")
    assert (
        "cat m.gguf.part1of2 m.gguf.part2of2 > m.gguf" in run("join", "m.gguf.part2of2", "m.gguf.part1of2", "o.gguf")[2]
    )
    assert all(path.read_bytes() == data for path, data in before.items())


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


@pytest.mark.parametrize(
    "line",
    [
        "plan r.yaml",
        "inspect A",
        "diff A B --base BASE",
        "eval A B --text t.txt --tokens 40 --context 32",
        "recipe explain r.yaml attn_q",
        "quantize A out.gguf Q4_0",
        "merge A",
    ],
)
def test_a_model_in_shards_has_the_name_that_these_share(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """In tables and sentences, with their number; a first shard by itself would look like a third of the model."""
    monkeypatch.chdir(tmp_path)
    names = {"A": "a", "B": "b", "BASE": "base"}
    for name, tune in (("base", None), ("a", (1, 0.05)), ("b", (2, 0.05))):
        write_tiny_llama(f"{name}.gguf", layers=1, tune=tune, type="Q8_0")
        run("split", f"{name}.gguf", name, "--split-max-tensors", "5")
        Path(f"{name}.gguf").unlink()
    shard = {word: f"{name}-00001-of-00003.gguf" for word, name in names.items()}
    Path("r.yaml").write_text(f"merge_method: linear\nmodels: [{{model: {shard['A']}}}, {{model: {shard['B']}}}]\n")
    Path("t.txt").write_text("the history of the wind and that which was in it, as he said to the others. " * 4)
    _, out, err = run(*(shard.get(word, word) for word in line.split()))
    assert "a.gguf in 3 shards" in out + err
    assert "-of-00003" not in out + err


def test_names_to_type_are_those_of_first_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """In the list of models and in the names that a complaint suggests; once a model, with the number of its shards."""
    monkeypatch.chdir(tmp_path)
    write_tiny_llama("whole.gguf", layers=1)
    run("split", "whole.gguf", "a", "--split-max-tensors", "5")
    [line] = [line for line in run("models", ".")[1].splitlines() if line.startswith("a-")]
    assert line.split()[0] == "a-00001-of-00003.gguf"
    assert "3 shards" in line
    assert "this folder has a-00001-of-00003.gguf (3 shards), whole.gguf\n" in run("inspect", "none.gguf")[2]
