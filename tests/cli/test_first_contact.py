"""What somebody types who tries the program for the first time, and what it answers: small things, a test each."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import write_tiny_llama, write_tiny_lora

Run = Callable[..., tuple[int, str, str]]
LINEAR = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, two tunes of it, an adapter and a recipe."""
    weights = write_tiny_llama(tmp_path / "base.gguf", layers=3)
    write_tiny_llama(tmp_path / "a.gguf", layers=3, tune=(1, 0.02))
    write_tiny_llama(tmp_path / "b.gguf", layers=3, tune=(2, 0.02))
    write_tiny_lora(tmp_path / "lora.gguf", weights)
    (tmp_path / "r.yaml").write_text(LINEAR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "home" / "ollama"))
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        ("build", "r.yaml", "--to", ""),
        ("build", "r.yaml", "--to="),
        ("build", "r.yaml", "-o", " "),
        ("build", "r.yaml", "-o", "x.gguf", "--log", ""),
        ("build", "r.yaml", "-o", "x.gguf", "--card="),
        ("new", "x.yaml", "--folder", ""),
        ("merge", "a.gguf", "b.gguf", "--save-recipe", ""),
        ("quantize", "a.gguf", "x.gguf", "Q8_0", "--imatrix="),
    ],
)
def test_an_empty_path_is_refused(line: tuple[str, ...], folder: Path, run: Run) -> None:
    """An unset variable of the shell is not the working folder, whichever option it is given to."""
    before = sorted(folder.iterdir())
    code, _, err = run(*line)
    assert code == 1
    assert "is empty; the folder that you are in is called ." in err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "line",
    [("build", "", "-o", "x.gguf"), ("split", "a.gguf", ""), ("models", ""), ("new", " ")],
)
def test_an_empty_argument_is_refused(line: tuple[str, ...], folder: Path, run: Run) -> None:
    """It stands for no file and no folder, and the line of usage shows what was to be given."""
    before = sorted(folder.iterdir())
    code, out, err = run(*line)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: an argument is empty, as of a variable that is not set: ggufmerge {line[0]} ")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(("name", "what"), [("a" * 200, "name has 200"), (f"x:{'a' * 81}", "tag has 81")])
def test_a_name_that_is_too_long_for_ollama_is_said_to_be(name: str, what: str, folder: Path, run: Run) -> None:
    """With its length and the most that Ollama takes; the name itself is cut."""
    code, _, err = run("build", "r.yaml", "--ollama", name, "--dry-run")
    assert code == 1
    assert f"its {what} letters, and Ollama takes 80" in err
    assert len(err) < 250


def test_a_recipe_may_come_from_standard_input(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `-`, with paths that start from the working folder; mistakes have their lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(LINEAR))
    code, _, err = run("build", "-", "-o", "x.gguf")
    assert code == 0, err
    assert (folder / "x.gguf").is_file()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINEAR.replace("linear", "linar").encode())))
    code, _, err = run("plan", "-")
    assert (code, err) == (1, 'error: recipe:1:1: unknown merge_method "linar": did you mean "linear"?\n')
    monkeypatch.setattr(sys, "stdin", None)
    assert run("recipe", "explain", "-")[2] == "error: -: standard input is closed: give the file of the recipe\n"


def test_a_model_in_the_place_of_a_recipe_leads_to_merge(folder: Path, run: Run) -> None:
    """Which is what its name says that one wanted, also with --method."""
    assert "ggufmerge merge a.gguf OTHER.gguf" in run("build", "a.gguf", "-o", "x.gguf")[2]
    assert "ggufmerge merge A.gguf B.gguf --method METHOD" in run("build", "a.gguf", "b.gguf", "--method", "slerp")[2]
    assert "ggufmerge merge base.gguf a.gguf" in run("bake", "base.gguf", "a.gguf", "-o", "x.gguf")[2]


def test_a_modelfile_that_is_left_over_is_said_to_be(folder: Path, run: Run) -> None:
    """Nothing is replaced unasked, since it may have been edited, but why there is one is clear."""
    assert run("build", "r.yaml", "-o", "x.gguf")[0] == 0
    (folder / "x.gguf").unlink()
    code, _, err = run("build", "r.yaml", "-o", "x.gguf")
    assert code == 1
    assert "x.Modelfile: exists, though x.gguf does not: use --overwrite" in err


def test_a_misspelt_option_is_compared_without_its_dashes(run: Run, folder: Path) -> None:
    """They are the same in all options, and would make any short word look like any other."""
    assert "did you mean" not in run("plan", "r.yaml", "--pur")[2]
    assert "did you mean --overwrite?" in run("build", "r.yaml", "--overwite")[2]


def test_options_of_commands_are_said_to_stand_behind_them(run: Run) -> None:
    """Where most programs take them in front."""
    assert run("-q")[2] == "error: -q stands behind the command: ggufmerge build -q ...\n"


def test_explain_shows_what_holds_for_many_layers_once(folder: Path, run: Run) -> None:
    """With the ends of a gradient; --all takes the layers apart."""
    (folder / "g.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: base.gguf\nmodels:\n  - model: a.gguf\n    parameters:\n"
        "      weight: [0.5, 1]\n  - model: b.gguf\n    parameters: "
        "{weight: [{filter: attn_q, value: 1}, {value: 2}]}\n",
        encoding="utf-8",
    )
    code, out, _ = run("recipe", "explain", "g.yaml")
    assert code == 0
    assert "3 x blk.*.attn_q.weight: task_arithmetic" in out
    block = out.split("3 x blk.*.attn_q.weight", 1)[1].split("\n\n")[1]
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in block.splitlines()}
    assert rows["weight of a.gguf"] == "weight of a.gguf 0.5..1 g.yaml:6:7 gradient [0.5, 1]"
    assert rows["weight of b.gguf"].endswith('filter "attn_q"')
    other = out.split("3 x blk.*.ffn_up.weight", 1)[1]
    assert "without a filter" in other.split("\n\n")[1]
    every = run("recipe", "explain", "g.yaml", "--all")[1]
    assert "blk.1.attn_q.weight: task_arithmetic" in every
    assert "gradient [0.5, 1] at 0.5" in every
    assert len(re.findall(r"^blk\.", every, re.MULTILINE)) == 27


def test_a_plan_says_which_tensors_are_the_same_in_all_models(folder: Path, run: Run) -> None:
    """Those of one file that no adapter changes; nobody should fear for them."""
    (folder / "l.yaml").write_text(
        "merge_method: ties\nbase_model: base.gguf\nmodels:\n  - {model: base.gguf+lora.gguf, parameters: "
        "{weight: 1}}\n  - {model: base.gguf+lora.gguf=0.5, parameters: {weight: 1}}\n",
        encoding="utf-8",
    )
    lines = run("plan", "l.yaml")[1].splitlines()
    changed = next(line for line in lines if "attn_q.weight" in line)
    kept = next(line for line in lines if "attn_norm.weight" in line)
    assert "the same in all models" not in changed
    assert kept.endswith("merged: the same in all models")
    assert "the same in all models" not in run("plan", "r.yaml")[1]


def test_a_recipe_never_replaces_a_model(folder: Path, run: Run) -> None:
    """Even with --overwrite: what is written as a recipe is called one."""
    before = (folder / "base.gguf").read_bytes()
    for line in (("merge", "a.gguf", "b.gguf", "--save-recipe", "base.gguf"), ("new", "base.gguf")):
        code, _, err = run(*line, "--overwrite")
        assert (code, err) == (1, "error: base.gguf: the name of a recipe ends in .yaml: base.gguf.yaml\n")
    assert (folder / "base.gguf").read_bytes() == before
