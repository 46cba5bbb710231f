"""`--report`: a web page beside what a command prints, checked before any work and never in the way of a result."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ggufmerge.cli.completion import complete_reports
from ggufmerge.report.html import report
from ggufmerge.sinks import report as sink
from tests.cli.conftest import Run
from tests.tiny import write_tiny_llama

RECIPE = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 0.5}\nout_type: Q4_0\n"
COMMANDS = {
    "build": "build recipe.yaml -o out.gguf",
    "merge": "merge a.gguf b.gguf --no-base -o out.gguf",
    "diff": "diff a.gguf b.gguf --base base.gguf",
    "eval": "eval a.gguf --text text.txt --context 32 --tokens 40 --prompt hello --answer-tokens 4",
    "quantize": "quantize a.gguf out.gguf Q8_0",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with models of one base, a recipe and a text."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        write_tiny_llama(f"{name}.gguf", layers=1, tune=(seed, 0.05) if seed else None)
    Path("recipe.yaml").write_text(RECIPE)
    Path("text.txt").write_text("the history of the wind and that which was in it, as he said to the others. " * 4)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_is_a_page_of_what_is_printed_as_json(command: str, folder: Path, run: Run) -> None:
    """Its file is named, but not among the facts; the page is the one that these facts give."""
    code, out, err = run(*COMMANDS[command].split(), "--report", "r.html", "--json")
    assert code == 0, err
    assert Path("r.html").read_text("utf-8") == report(json.loads(out))
    Path("r.html").unlink()
    for path in folder.glob("out*"):
        path.unlink()
    code, out, err = run(*COMMANDS[command].split(), "--report", "r.html")
    assert code == 0, err
    assert "r.html: report" in out.splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_cannot_be_written_is_refused_before_the_work(
    command: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, without a result: what is there, what is no page, a missing folder; and when nothing can draw it."""
    Path("r.html").write_text("mine")
    Path("folder.html").mkdir()
    words = COMMANDS[command].split()
    for name, what in (
        ("r.html", "r.html: exists: use --overwrite"),
        ("a.gguf", "the name of a report ends in .html: a.gguf.html"),
        ("nowhere/r.html", "there is no folder nowhere"),
        ("folder.html", "this is a folder"),
    ):
        code, out, err = run(*words, "--report", name)
        assert (code, out.count(": report")) == (1, 0)
        assert what in err
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.backends.backend_svg", raising=False)
    code, _, err = run(*words, "--report", "new.html")
    assert code == 1
    assert "pip install 'ggufmerge[report]'" in err
    assert Path("r.html").read_text() == "mine"
    assert not Path("out.gguf").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_is_replaced_when_that_is_asked_for(command: str, folder: Path, run: Run) -> None:
    """With --overwrite, as other files are."""
    Path("r.html").write_text("mine")
    assert run(*COMMANDS[command].split(), "--report", "r.html", "--overwrite")[0] == 0
    assert Path("r.html").read_text("utf-8").startswith("<!doctype html>")


def test_no_file_that_is_read_or_written_is_replaced(folder: Path, run: Run) -> None:
    """Under whatever name: a model, an adapter's text, a recipe's model, the output; with --overwrite, too."""
    os.link("a.gguf", "a.html")
    Path("text.html").write_bytes(Path("text.txt").read_bytes())
    before = Path("a.html").read_bytes()
    for line in (
        "diff a.gguf b.gguf",
        "build recipe.yaml -o out.gguf",
        "eval a.gguf --text text.txt",
        "quantize a.gguf out.gguf Q8_0",
    ):
        code, _, err = run(*line.split(), "--report", "a.html", "--overwrite")
        assert code == 1
        assert "a.html: the output is also an input" in err
    code, _, err = run("eval", "a.gguf", "--text", "text.html", "--report", "text.html", "--overwrite")
    assert (code, "text.html: the output is also an input" in err) == (1, True)
    for line in ("build recipe.yaml -o r.html", "quantize a.gguf r.html Q8_0"):
        code, _, err = run(*line.split(), "--report", "r.html", "--overwrite")
        assert code == 1
        assert "r.html" in err
    assert Path("a.html").read_bytes() == before
    assert sorted(path.name for path in folder.glob("*.html")) == ["a.html", "text.html"]


def test_a_dry_run_writes_no_report(folder: Path, run: Run) -> None:
    """And refuses what the build would."""
    assert run("build", "recipe.yaml", "-o", "out.gguf", "--dry-run", "--report", "r.html")[0] == 0
    assert not Path("r.html").exists()
    Path("r.html").write_text("mine")
    assert run("build", "recipe.yaml", "-o", "out.gguf", "--dry-run", "--report", "r.html")[0] == 1


@pytest.mark.parametrize("command", ["diff", "eval", "quantize"])
def test_what_was_found_out_is_printed_even_when_the_report_fails(
    command: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes no page, and nothing else."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "r.html")

    whole = run(*COMMANDS[command].split(), "--json", "--overwrite")[1]
    if command == "quantize":
        Path("out.gguf").unlink()
    monkeypatch.setattr("ggufmerge.files.writer.write_file", full)
    code, out, err = run(*COMMANDS[command].split(), "--json", "--report", "r.html")
    assert code == 1
    assert "No space left on device: r.html" in err
    assert json.loads(out).keys() == json.loads(whole).keys()


def test_a_build_whose_report_fails_goes_on_with_that(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is there; the same command writes the report, and merges nothing again."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "r.html")

    with monkeypatch.context() as patch:
        patch.setattr(sink, "write_new", full)
        code, _, err = run(*COMMANDS["build"].split(), "--report", "r.html")
    assert code == 1
    assert "the model is complete: out.gguf; the same command again writes the report" in err
    made = Path("out.gguf").stat()
    code, out, _ = run(*COMMANDS["build"].split(), "--report", "r.html")
    assert code == 0
    assert "r.html: report" in out
    assert Path("out.gguf").stat().st_mtime_ns == made.st_mtime_ns
    assert Path("r.html").read_text("utf-8").startswith("<!doctype html>")


def test_what_somebody_put_there_meanwhile_stays(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that goes on replaces a report that it wrote itself, and nobody else's file."""

    def late(*_: object, **__: object) -> None:
        Path("r.html").write_text("mine")
        raise OSError(28, "No space left on device", "r.html")

    with monkeypatch.context() as patch:
        patch.setattr(sink, "write_new", late)
        run(*COMMANDS["build"].split(), "--report", "r.html")
    code, _, err = run(*COMMANDS["build"].split(), "--report", "r.html")
    assert code == 1
    assert "r.html: exists" in err
    assert Path("r.html").read_text() == "mine"


def test_a_build_tells_every_tensor_and_who_its_parents_are(folder: Path, run: Run) -> None:
    """Under --json: type, rule and action of each tensor, what survived where something was rounded; parameters."""
    facts = json.loads(run(*COMMANDS["build"].split(), "--json")[1])
    assert len(facts["tensors"]) == facts["merged"] + facts["converted"] + facts["copied"]
    assert all({"name", "shape", "type", "why", "action", "nbytes", "survival"} <= t.keys() for t in facts["tensors"])
    assert all((t["survival"] is not None) == (t["type"] != "F32") for t in facts["tensors"])
    assert [(p["label"], p["settings"]["weight"]) for p in facts["parents"]] == [("a.gguf", [0.5]), ("b.gguf", [0.5])]
    assert "linear" in facts["recipe"]
    assert all(found["sentence"].startswith(f"{found['type']}: ") for found in facts["kept"])


def test_pages_and_folders_are_completed(folder: Path) -> None:
    """Not models."""
    Path("old.html").touch()
    Path("pages").mkdir()
    assert [name for name, _ in complete_reports("")] == ["old.html", "pages/"]
