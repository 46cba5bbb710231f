"""`ggufmerge models`: everything that is on a machine, in groups that can be merged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.cli.models import _letter
from ggufmerge.engine import make_plan
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import split_gguf
from ggufmerge.recipe import load_recipe
from tests.ollama_store import add_model
from tests.systems import needs_pipes
from tests.tiny import write_tiny_llama, write_tiny_lora


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any model, whose user has this home folder."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama.cpp"))
    monkeypatch.setenv("GGUFMERGE_CACHE", str(tmp_path / "ggufmerge"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def machine(home: Path) -> Path:
    """Models of every program: three of one family, one of other shapes, one of another vocabulary, broken ones."""
    model = home / "base.gguf"
    weights = write_tiny_llama(model, layers=1, type="Q8_0")
    add_model(home / "ollama", "tiny/latest", model.read_bytes())
    add_model(home / "ollama", "tiny/q8", model.read_bytes())
    snapshot = home / "hf/hub/models--owner--tiny/snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (home / "hf/hub/models--owner--tiny/refs").mkdir()
    (home / "hf/hub/models--owner--tiny/refs/main").write_text("a" * 40)
    write_tiny_llama(snapshot / "tuned.gguf", layers=1, tune=(1, 0.1))
    lmstudio = home / ".lmstudio/models/someone/tiny"
    lmstudio.mkdir(parents=True)
    write_tiny_llama(lmstudio / "deep.gguf", layers=2)
    write_tiny_llama(lmstudio / "other words.gguf", layers=1, words=("some", "other", "words"))
    (home / "llama.cpp").mkdir()
    write_tiny_lora(home / "llama.cpp/lora.gguf", weights)
    folder = home / "folder"
    folder.mkdir()
    write_tiny_llama(home / "whole.gguf", layers=1, tune=(2, 0.1), tied=True)
    split_gguf(home / "whole.gguf", folder / "cut", SplitLimit(max_tensors=5))
    (folder / "broken.gguf").write_bytes(model.read_bytes()[:1000])
    (folder / "alone-00002-of-00002.gguf").write_bytes(b"GGUF")
    (folder / "notes.txt").touch()
    return home


@needs_pipes
def test_damaged_models_hide_no_others(machine: Path) -> None:
    """Manifests that nest without end, that are pipes or name nothing, architectures that are no text."""
    before = json.loads(run("--json"))
    place = machine / "ollama/manifests/registry.ollama.ai/library"
    for name, text in (("deep", b"[" * 100_000), ("list", b"[]"), ("bytes", b"\xff"), ("bad \x1b name", b"{}")):
        (place / name).mkdir()
        (place / name / "latest").write_bytes(text)
    (place / "pipe").mkdir()
    os.mkfifo(place / "pipe/latest")
    data = (machine / "base.gguf").read_bytes()
    add_model(machine / "ollama", "odd/latest", data.replace(b"llama", b"\xff\x1b[2J"))
    after = json.loads(run("--json"))
    assert [m for m in after["models"] if m["references"] != ["ollama:odd:latest"]] == before["models"]
    assert len(after["models"]) == len(before["models"]) + 1
    assert len(after["unreadable"]) == len(before["unreadable"]) + 5
    assert all(line.isprintable() for line in run().split("\n"))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_models_of_all_programs_are_listed(machine: Path) -> None:
    """Each file once, with its references, and what its header says."""
    facts = json.loads(run(str(machine / "folder"), "--json"))
    by_name = {model["references"][0]: model for model in facts["models"]}
    shards = str(machine / "folder" / "cut-00001-of-00003.gguf")
    assert set(by_name) == {
        "ollama:tiny:latest",
        "hf:owner/tiny/tuned.gguf",
        "lmstudio:someone/tiny/deep.gguf",
        "lmstudio:someone/tiny/other words.gguf",
        "llama.cpp:lora.gguf",
        shards,
    }
    tiny = by_name["ollama:tiny:latest"]
    assert tiny["references"] == ["ollama:tiny:latest", "ollama:tiny:q8"]
    assert (tiny["architecture"], tiny["file_type"], tiny["kind"]) == ("llama", "Q8_0", "model")
    assert tiny["nbytes"] == (machine / "base.gguf").stat().st_size
    assert by_name[shards]["nbytes"] == sum(p.stat().st_size for p in (machine / "folder").glob("cut-*"))
    assert by_name["llama.cpp:lora.gguf"]["kind"] == "adapter"


def test_what_is_grouped_can_be_merged(machine: Path) -> None:
    """A recipe of the models of a group has a plan; a type, a tied head and shards make no difference."""
    groups = json.loads(run(str(machine / "folder"), "--json"))["can_be_merged"]
    shards = str(machine / "folder" / "cut-00001-of-00003.gguf")
    assert groups == [["ollama:tiny:latest", "hf:owner/tiny/tuned.gguf", shards]]
    files = [
        machine / "base.gguf",
        machine / "hf/hub/models--owner--tiny/snapshots" / ("a" * 40) / "tuned.gguf",
        shards,
    ]
    parts = "".join(f"  - model: {file}\n" for file in files)
    plan, opened = make_plan(load_recipe(f"merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{parts}"))
    opened.close()
    assert len(plan.sources) == 3


def test_broken_files_are_listed_with_the_reason(machine: Path) -> None:
    """A truncated file, a shard without its first; the others are listed all the same."""
    unreadable = json.loads(run(str(machine / "folder"), "--json"))["unreadable"]
    assert [Path(entry["reference"]).name for entry in unreadable] == ["alone-00002-of-00002.gguf", "broken.gguf"]
    assert all(entry["error"] for entry in unreadable)
    text = run(str(machine / "folder"))
    assert "cannot be used" in text
    assert "broken.gguf" in text


def test_a_table_marks_what_can_be_merged(machine: Path) -> None:
    """With a letter per group, and a line that says so."""
    lines = run(str(machine / "folder")).splitlines()
    marked = [line.split()[0] for line in lines if line.endswith(" A")]
    assert marked == ["ollama:tiny:latest", "hf:owner/tiny/tuned.gguf", str(machine / "folder/cut-00001-of-00003.gguf")]
    assert "models with the same letter can be merged with each other" in lines
    assert "adapters can be applied to the models that have their letter" in lines


def test_a_machine_without_models(home: Path) -> None:
    """Says what to do."""
    assert "ggufmerge models FOLDER" in run()
    facts = json.loads(run("--json"))
    assert [facts[key] for key in ("models", "can_be_merged", "unreadable", "unfinished")] == [[], [], [], []]


def test_a_folder_that_is_not_there(home: Path) -> None:
    """Is an error, unlike those of programs that are not installed."""
    result = CliRunner().invoke(app, ["models", str(home / "nowhere")])
    assert "no such folder" in str(result.exception)


def test_links_to_one_file_are_one_model(home: Path) -> None:
    """As snapshots of the Hub's cache link to blobs."""
    (home / "folder").mkdir()
    write_tiny_llama(home / "folder/a.gguf", layers=1)
    (home / "folder/b.gguf").symlink_to(home / "folder/a.gguf")
    facts = json.loads(run(str(home / "folder"), "--json"))
    assert [len(model["references"]) for model in facts["models"]] == [2]


def test_letters_do_not_end_with_the_alphabet() -> None:
    """As columns of a spreadsheet."""
    assert [_letter(i) for i in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_the_working_folder_is_looked_into(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are GGUF files in it and no folder is named."""
    (home / "here").mkdir()
    monkeypatch.chdir(home / "here")
    assert "no GGUF files were found" in run()
    write_tiny_llama("a.gguf", layers=1)
    assert "a.gguf" in run()


def test_an_adapter_has_the_letter_of_the_models_that_it_fits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By names and shapes; a model that is alone in its family gets one then, too."""
    monkeypatch.chdir(home)
    write_tiny_lora("lora.gguf", write_tiny_llama("a.gguf", layers=1))
    write_tiny_llama("wide.gguf", layers=1, embed=128)
    lines = {line.split()[0]: line.split()[-1] for line in run().splitlines() if ".gguf" in line}
    assert lines["lora.gguf"] == lines["a.gguf"] == "A"
    assert lines["wide.gguf"] != "A"
    facts = json.loads(run("--json"))
    assert facts["can_be_applied"] == [{"models": ["a.gguf"], "adapters": ["lora.gguf"]}]
