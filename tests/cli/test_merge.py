"""`ggufmerge merge` and `new`: a merged file, or a recipe for one, from models alone."""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

import ggufmerge
from ggufmerge.cli import terminal
from ggufmerge.cli.build import build
from ggufmerge.cli.merge import merge
from tests.cli.conftest import Run
from tests.ollama_store import add_model
from tests.tiny import write_tiny_llama, write_tiny_lora


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a base in Ollama's store, two tunes of it in the working folder, and an adapter."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, place in (("HF_HOME", "hf"), ("OLLAMA_MODELS", "ollama"), ("LLAMA_CACHE", "llama.cpp")):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    weights = write_tiny_llama(tmp_path / "base.gguf", layers=1)
    add_model(tmp_path / "ollama", "tiny/3b", (tmp_path / "base.gguf").read_bytes())
    (tmp_path / "base.gguf").unlink()
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_tiny_llama("a.gguf", layers=1, tune=(1, 0.05))
    write_tiny_llama("b.gguf", layers=1, tune=(2, 0.05))
    write_tiny_lora("lora.gguf", weights)
    return folder


def answer(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_two_models_become_one(machine: Path, run: Run) -> None:
    """Each choice with its reason, the recipe, the file under a name of its own; nothing is overwritten."""
    code, out, err = run("merge", "a.gguf", "b.gguf")
    assert (code, err) == (0, "")
    assert out.startswith("base: ollama:tiny:3b, the nearest relative of both: they differ from it by 5 %, from each ")
    assert "\nmethod: task_arithmetic, since " in out
    assert "\ntype: F32, " in out
    assert "\n  base_model: ollama:tiny:3b\n" in out
    assert "\na-b-merged.gguf: F32" in out
    assert ggufmerge.open("a-b-merged.gguf").metadata["ggufmerge.recipe"].startswith("merge_method: task_arithmetic")
    before = Path("a-b-merged.gguf").read_bytes()
    assert run("merge", "a.gguf", "b.gguf")[0] == 0
    assert Path("a-b-merged.gguf").read_bytes() == before == Path("a-b-merged-2.gguf").read_bytes()


def test_what_is_said_is_done(machine: Path, run: Run) -> None:
    """Base, method, weights, parameters, type and name."""
    arguments = ("--base", "ollama:tiny:3b", "--method", "ties", "--weight", ".6, .4", "--set", "density=0.25")
    code, _, err = run("merge", "a.gguf", "b.gguf", *arguments, "-t", "Q8_0", "-o", "ab.gguf")
    assert code == 0, err
    with ggufmerge.open("ab.gguf") as file:
        recipe = ggufmerge.load_recipe(file.metadata["ggufmerge.recipe"])
        assert file.tensors["blk.0.attn_q.weight"].type == "Q8_0"
        assert "ggufmerge.options" not in file.metadata
    assert [m.parameters["weight"].rules[0].value for m in recipe.models or ()] == [0.6, 0.4]
    assert recipe.parameters["density"].rules[0].value == 0.25


def test_keys_of_recipes_can_be_set(machine: Path, run: Run) -> None:
    """Models of other vocabularies are merged as a recipe would merge them."""
    write_tiny_llama("c.gguf", layers=1, tune=(3, 0.05), words=("quite", "other", "words"))
    code, _, err = run("merge", "a.gguf", "c.gguf", "--dry-run")
    assert (code, "tokenizer_source" in err) == (1, True)
    keys = ("--set", "tokenizer_source=union", "--set", "seed=7", "--set", "name=Both")
    code, out, err = run("merge", "a.gguf", "c.gguf", "--dry-run", "--method", "linear", *keys, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["vocabulary"]["source"], facts["seed"], facts["metadata"]["general.name"]) == ("union", 7, "Both")


def test_a_dry_run_writes_the_recipe_at_most(machine: Path, run: Run) -> None:
    """The recipe is the one that a run would use, and is overwritten only if that is wanted."""
    before = set(machine.iterdir())
    code, out, _ = run("merge", "a.gguf", "b.gguf", "--dry-run")
    assert (code, set(machine.iterdir())) == (0, before)
    assert "task_arithmetic of 3 llama models" in out
    assert run("merge", "a.gguf", "b.gguf", "--dry-run", "--save-recipe", "r.yaml")[0] == 0
    code, _, err = run("merge", "a.gguf", "b.gguf", "-o", "x.gguf", "--save-recipe", "r.yaml")
    assert (code, err) == (1, "error: r.yaml: exists: use --overwrite to replace it\n")
    assert not Path("x.gguf").exists()
    run("merge", "a.gguf", "b.gguf", "-o", "x.gguf")
    run("build", "r.yaml", "-o", "y.gguf")
    with ggufmerge.open("x.gguf") as x, ggufmerge.open("y.gguf") as y:
        assert all(bytes(x.tensors[name].raw) == bytes(y.tensors[name].raw) for name in x.tensors)


def test_the_recipe_that_is_saved_says_what_options_say(machine: Path, run: Run) -> None:
    """It is the one that is used, and recorded."""
    arguments = ("-t", "Q8_0", "--rounding", "nearest", "--save-recipe", "r.yaml", "-o", "x.gguf")
    code, out, err = run("merge", "a.gguf", "b.gguf", *arguments)
    assert code == 0, err
    assert "\n  rounding: nearest\n" in out
    text = Path("r.yaml").read_text()
    recorded = ggufmerge.open("x.gguf").metadata["ggufmerge.recipe"]
    assert text.endswith(recorded)
    recipe = ggufmerge.load_recipe(recorded)
    assert (recipe.out_type, recipe.rounding) == ("Q8_0", "nearest")


def test_json_says_what_was_chosen(machine: Path, run: Run) -> None:
    """Before the facts of the build, or of the plan; nothing else stands on standard output."""
    code, out, _ = run("merge", "a.gguf", "b.gguf", "--json")
    facts = json.loads(out)
    assert (code, facts["chosen"]["base"]["value"], facts["output"]) == (0, "ollama:tiny:3b", "a-b-merged.gguf")
    assert ggufmerge.load_recipe(facts["recipe"]).methods == ("task_arithmetic",)
    facts = json.loads(run("merge", "a.gguf", "b.gguf", "--json", "--dry-run", "--no-base")[1])
    assert (facts["chosen"]["method"]["value"], facts["method"]) == ("slerp", "slerp")


def test_adapters_are_known_as_such(machine: Path, run: Run) -> None:
    """A model and adapters are baked."""
    code, out, err = run("merge", "a.gguf", "lora.gguf=0.5", "-o", "tuned.gguf")
    assert code == 0, err
    assert "method: bake" in out
    run("bake", "a.gguf", "lora.gguf=0.5", "-o", "baked.gguf")
    with ggufmerge.open("tuned.gguf") as x, ggufmerge.open("baked.gguf") as y:
        assert all(bytes(x.tensors[name].raw) == bytes(y.tensors[name].raw) for name in x.tensors)


def test_results_go_wherever_those_of_build_go(machine: Path, run: Run) -> None:
    """Every option of `build` is one of `merge`; into Ollama alone needs no output."""
    own = inspect.signature(merge).parameters
    assert [name for name in inspect.signature(build).parameters if name not in own] == ["recipe"]
    code, out, err = run("merge", "a.gguf", "b.gguf", "--ollama", "both")
    assert code == 0, err
    assert "both:latest: is in the store" in out
    assert not list(machine.glob("*merged*"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "is missing, as in: ggufmerge merge"),
        (("a.gguf",), "one model alone"),
        (("a.gguf", "b.gguf", "--weight", "1;2"), "weights are numbers"),
        (("a.gguf", "b.gguf", "--set", "density"), "a parameter is NAME=VALUE"),
        (("a.gguf", "b.gguf", "--set", "densty=.5", "--method", "ties"), 'has no parameter "densty"'),
        (("a.gguf", "b.gguf", "--base", "a.gguf", "--no-base"), "give one of"),
        (("a.gguf", "b.gguf", "-o", "a.gguf", "--overwrite"), "the output is also an input"),
    ],
)
def test_mistakes_leave_nothing(machine: Path, run: Run, arguments: tuple[str, ...], complaint: str) -> None:
    """No file, no traceback, and a line that says what to do."""
    before = {path: path.read_bytes() for path in machine.iterdir()}
    code, _, err = run("merge", *arguments)
    assert code in (1, 2)
    assert complaint in err
    assert {path: path.read_bytes() for path in machine.iterdir()} == before


def test_questions_make_a_recipe(machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter takes what is proposed; what cannot be is asked again; the recipe plans as it is."""
    answer(monkeypatch, "1", "1 9", "1 2", "", "", "q8_0")
    code, out, err = run("new", "r.yaml")
    assert code == 0, err
    assert err.splitlines() == [
        "two or more are needed: write their numbers, such as 1 2",
        '"9" is none of the numbers 1 to 4',
    ]
    assert "ggufmerge build r.yaml -o a-b-merged.gguf" in out
    recipe = ggufmerge.load_recipe("r.yaml")
    assert (str(recipe.base_model), recipe.methods, recipe.out_type) == ("ollama:tiny:3b", ("task_arithmetic",), "Q8_0")
    assert "# weight: " in recipe.text
    assert "# base: ollama:tiny:3b, the nearest relative" in recipe.text
    assert run("plan", "r.yaml")[0] == 0


def test_other_answers_make_other_recipes(machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No base, another method; one that does not go with that is asked again."""
    answer(monkeypatch, "a.gguf b.gguf", "none", "ties", "linear", "")
    code, _, err = run("new", "r.yaml")
    assert code == 0, err
    assert "ties takes differences from a base, and there is none" in err
    recipe = ggufmerge.load_recipe("r.yaml")
    assert (recipe.base_model, recipe.methods) == (None, ("linear",))
    answer(monkeypatch, "1 3", "")
    assert run("new", "lora.yaml")[0] == 0
    assert ggufmerge.plan("lora.yaml").count("convert") == 2


def test_answers_that_end_too_early_leave_nothing(machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does an interruption; and a recipe that is there is not asked about."""
    before = set(machine.iterdir())
    answer(monkeypatch, "1 2", "")
    code, _, err = run("new", "r.yaml")
    assert (code, err) == (1, "error: the answers ended before the recipe was complete; nothing was written\n")

    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    code, _, err = run("new", "r.yaml")
    assert (code, err) == (1, "error: interrupted\n")
    assert set(machine.iterdir()) == before
    Path("r.yaml").write_text("mine")
    code, _, err = run("new", "r.yaml")
    assert (code, err) == (1, "error: r.yaml: exists: use --overwrite to replace it\n")
    assert Path("r.yaml").read_text() == "mine"


@pytest.mark.parametrize("command", ["merge", "quantize", "models"])
def test_sentences_fold_between_words_on_a_terminal(
    machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """With names as long as people give them: what is wider than the terminal would be broken within a word."""
    monkeypatch.setattr(terminal, "console", lambda **_: Console(force_terminal=True, width=80, color_system=None))
    names = [f"Storyteller-of-Long-Tales-135M-Instruct-{which}.gguf" for which in ("one", "two")]
    for old, new in zip(("a.gguf", "b.gguf"), names, strict=True):
        Path(old).rename(new)
    arguments = {"merge": [*names, "--no-base", "--type", "Q8_0"], "quantize": [names[0], "Q8_0"], "models": ["empty"]}
    Path("empty").mkdir()
    monkeypatch.setenv("OLLAMA_MODELS", str(machine / "none"))
    monkeypatch.setenv("GGUFMERGE_CACHE", str(machine / "cache"))  # it knows the unfinished builds of other tests
    code, out, err = run(command, *arguments[command])
    assert code == 0, err
    assert out.count("\n") > 1
    assert [line for line in re.sub(r"\x1b\[[\d?]*\w", "", out).splitlines() if len(line) > 80] == []


def test_a_result_in_a_store_is_called_by_its_name(machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the blob's path, which nobody types; in JSON the path stays."""
    code, out, err = run("merge", "a.gguf", "b.gguf", "--no-base", "--ollama", "mine")
    assert code == 0, err
    assert "\nollama:mine:latest: F32, " in out
    assert "sha256-" not in out
    [path] = json.loads(run("merge", "a.gguf", "b.gguf", "--no-base", "--ollama", "other", "--json")[1])["files"]
    assert "sha256-" in path
