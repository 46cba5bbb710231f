"""One schema for the JSON of all commands (docs/json.md): the same keys mean the same, and errors are told in it."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from ggufmerge.cli.app import app
from tests.cli.conftest import Run
from tests.tiny import write_tiny_llama, write_tiny_lora

RECIPE = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
STAGES = f"name: one\n{RECIPE}---\n{RECIPE.replace('a.gguf', 'one')}"
COMMANDS = {
    "merge": ["merge a.gguf b.gguf --base base.gguf -o out.gguf", "merge a.gguf b.gguf --no-base --dry-run"],
    "build": ["build r.yaml -o out.gguf", "build stages.yaml -o out.gguf --type Q4_0", "build r.yaml --dry-run"],
    "plan": ["plan r.yaml", "plan stages.yaml"],
    "quantize": ["quantize a.gguf out.gguf Q8_0", "quantize a.gguf out.gguf Q8_0 --dry-run"],
    "bake": ["bake base.gguf lora.gguf -o out.gguf", "bake base.gguf lora.gguf --dry-run"],
    "extract-lora": ["extract-lora a.gguf --base base.gguf -o out.gguf --rank 2"],
    "split": ["split a.gguf out --split-max-tensors 5", "split a.gguf out --split-max-tensors 5 --dry-run"],
    "join": ["join cut-00001-of-00003.gguf out.gguf"],
    "inspect": ["inspect a.gguf", "inspect cut-00001-of-00003.gguf --no-tensors"],
    "diff": ["diff a.gguf b.gguf --base base.gguf"],
    "models": ["models ."],
    "methods": ["methods", "methods ties"],
    "types": ["types", "types q4_k_m", "types Q4_K_L"],
    "version": ["version"],
    "recipe explain": ["recipe explain r.yaml attn_q"],
    "eval": ["eval a.gguf --text text.txt --tokens 40 --context 32"],
    "calibrate": ["calibrate a.gguf -o out.gguf --text text.txt --context 32 --rank 4"],
}
WRITING = {"merge", "build", "plan", "quantize", "bake", "extract-lora", "split", "join", "calibrate"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Path:
    """A machine with nothing but these models, recipes and a text."""
    for name, place in (("HF_HOME", "hf"), ("OLLAMA_MODELS", "ollama"), ("LLAMA_CACHE", "llama.cpp")):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    weights = write_tiny_llama("base.gguf", layers=1, type="Q4_0")
    write_tiny_llama("a.gguf", layers=1, tune=(1, 0.05))
    write_tiny_llama("b.gguf", layers=1, tune=(2, 0.05))
    write_tiny_lora("lora.gguf", weights)
    Path("r.yaml").write_text(RECIPE)
    Path("stages.yaml").write_text(STAGES)
    Path("text.txt").write_text("the history of the wind and that which was in it, as he said to the others. " * 4)
    run("split", "a.gguf", "cut", "--split-max-tensors", "5")
    return tmp_path / "work"


def leaves() -> set[str]:
    """The commands that take `--json`."""
    found = set()
    root = typer.main.get_command(app)
    groups: list[tuple[str, Any]] = [("", root)]
    while groups:
        prefix, group = groups.pop()
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append((f"{prefix}{name} ", command))
            elif any("--json" in parameter.opts for parameter in command.params):
                found.add(f"{prefix}{name}")
    return found


def test_every_command_is_tried() -> None:
    """But for `push`, which needs the Hub: `tests/cli/test_push.py` has that."""
    assert leaves() - {"push"} == set(COMMANDS)


@pytest.mark.parametrize("line", [line for lines in COMMANDS.values() for line in lines])
def test_facts_have_one_schema(line: str, folder: Path, run: Run) -> None:
    """What stands under a shared key is of one kind wherever it stands, and standard output is one JSON object."""
    command = "recipe explain" if line.startswith("recipe") else line.split()[0]
    before = {path.name for path in folder.iterdir()}
    code, out, err = run(*line.split(), "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert list(facts)[:3] == ["schema", "command", "version"]
    assert (facts["schema"], facts["command"], facts["version"]) == (1, command, version("ggufmerge"))
    if "files" in facts:
        written = {path.name for path in folder.iterdir()} - before - {"out.Modelfile"}
        assert written == set(facts["files"])
        assert facts["output"] == next(iter(facts["files"]), None)
    for tensor in facts.get("tensors", ()):
        assert isinstance(tensor["name"], str)
        assert not {"tensor", "why_type", "type_why"} & set(tensor)
    if command in WRITING:
        assert type(facts["nbytes"]) is int
    if "seconds" in facts:
        assert facts["seconds"] is None or facts["seconds"] >= 0
    assert warned(err) == facts.get("warnings", [])
    assert facts.get("survival") is None or 0 <= facts["survival"] < 2
    assert all("path" in source for source in facts.get("sources", ()))
    for stage in facts.get("stages", ()):
        assert set(stage) | {"stages", "schema", "command", "version", "forecast", "kept"} >= set(facts)
    assert "error" not in facts


def warned(err: str) -> list[str]:
    """The warnings on standard error."""
    return [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]


WARNING = {  # command -> what it warns of
    "merge a.gguf b.gguf --no-base -o out.gguf --set int8_mask=true": "int8_mask",
    "merge a.gguf stranger.gguf --no-base --dry-run": "talks nonsense",
    "build odd.yaml -o out.gguf": "embed_slerp",
    "build odd.yaml --dry-run": "embed_slerp",
    "build odd-stages.yaml -o out.gguf": "embed_slerp",
    "plan odd.yaml": "embed_slerp",
    "plan odd-stages.yaml": "embed_slerp",
    "bake base.gguf lora.gguf=50 -o out.gguf": "50 times",
    "bake base.gguf lora.gguf=50 --dry-run": "50 times",
    "quantize big.gguf out.gguf F32 --split-max-size 1M": "gets one of its own",
    "quantize big.gguf out.gguf F32 --split-max-size 1M --dry-run": "gets one of its own",
    "split big.gguf out --split-max-size 1M": "gets one of its own",
    "extract-lora a.gguf --base base.gguf -o out.gguf --rank 2": "norm",
    "build r.yaml -o out.gguf --push me/out --push-dry-run": "cannot be reached",
    "push a.gguf me/out --dry-run": "cannot be reached",
    "recipe explain odd.yaml attn_q": "embed_slerp",
}


@pytest.mark.parametrize("line", WARNING)
def test_warnings_are_said_once_and_are_facts(
    line: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error as without --json, and under "warnings": all of them, of every part of the work."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    write_tiny_llama("stranger.gguf", layers=1, seed=7)
    write_tiny_llama("big.gguf", layers=1, vocab=4096)
    Path("odd.yaml").write_text(RECIPE + "embed_slerp: true\n")
    Path("odd-stages.yaml").write_text(STAGES.replace("---\n", "embed_slerp: true\n---\n"))
    _, out, err = run(*line.split(), "--json")
    facts = json.loads(out)
    assert "error" not in facts
    assert facts["warnings"] == warned(err)
    assert WARNING[line] in " ".join(facts["warnings"])
    assert all(set(stage["warnings"]) <= set(facts["warnings"]) for stage in facts.get("stages", ()))
    assert len(set(facts["warnings"])) == len(facts["warnings"])


WRONG = {
    "a mistake in a file": ("plan broken.yaml", r"broken\.yaml:1:1: unknown merge_method"),
    "several mistakes": ("plan broken2.yaml", "unknown key"),
    "a file that is not there": ("inspect none.gguf", "none"),
    "an output that is taken": ("build r.yaml -o a.gguf", "a.gguf: the output is also an input"),
    "a merge of nothing": ("merge a.gguf", "one model alone"),
    "an option that is none": ("build r.yaml --nonsense", "nonsense"),
    "a command that is none": ("nonsense", "nonsense"),
    "an argument that is missing": ("plan", "RECIPE"),
}


MISUSE = ("an option that is none", "a command that is none", "an argument that is missing")


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_facts_too(case: str, folder: Path, run: Run) -> None:
    """On standard output; people read the same on standard error, and the exit code is what it is without --json."""
    Path("broken.yaml").write_text("merge_method: linar\nmodels: [{model: a.gguf}]\n")
    Path("broken2.yaml").write_text("merge_method: linear\nmodel: 1\nbase: 2\n")
    line, complaint = WRONG[case]
    code, out, err = run(*line.split(), "--json")
    facts = json.loads(out)
    assert code == (2 if case in MISUSE else 1) == run(*line.split())[0]
    assert err
    assert re.search(complaint, facts["error"])
    assert facts["error"] == "\n".join(facts["errors"])
    assert (facts["schema"], facts["command"], facts["version"]) == (1, line.split()[0], version("ggufmerge"))
    if case == "several mistakes":
        assert len(facts["errors"]) > 1


def test_an_error_without_json_is_no_json(folder: Path, run: Run) -> None:
    """Nor is one behind facts that were printed already a second object."""
    assert run("inspect", "none.gguf")[1] == ""
    code, out, err = run(
        *[
            "eval",
            "a.gguf",
            "base.gguf",
            "--text",
            "text.txt",
            "--tokens",
            "40",
            "--context",
            "32",
            "--require-better",
            "--json",
        ]
    )
    if code:
        assert "not better" in err
    assert "error" not in json.loads(out)


def test_the_page_lists_the_shared_keys() -> None:
    """docs/json.md, and the number of the schema."""
    from ggufmerge.cli.facts import SCHEMA

    text = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    keys = [
        "schema",
        "command",
        "version",
        "output",
        "files",
        "nbytes",
        "seconds",
        "tensors",
        "warnings",
        "survival",
        "sources",
        "error",
        "errors",
    ]
    assert all(f"`{key}`" in text for key in keys)
    assert f"It is {SCHEMA} now" in text
