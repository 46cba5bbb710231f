"""What is said to somebody who writes the wrong thing: one line that says what, where, and what was meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.cli.terminal import show_notes
from ggufmerge.engine.bake import plan_bake
from ggufmerge.errors import RecipeError
from ggufmerge.recipe import load_recipe
from ggufmerge.text import human_number
from tests.hub_server import forget
from tests.ollama_store import add_model
from tests.tiny import write_tiny_llama, write_tiny_lora

Run = Callable[..., tuple[int, str, str]]

LINEAR = "merge_method: linear\nmodels:\n"
SLERP = "merge_method: slerp\nbase_model: base.gguf\nmodels:\n  - model: french.gguf\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, two tunes, an adapter and nothing else."""
    weights = write_tiny_llama(tmp_path / "base.gguf", layers=1, vocab=300, words=("the",))
    write_tiny_llama(tmp_path / "french.gguf", layers=1, vocab=300, words=("the",), tune=(1, 0.02))
    write_tiny_llama(tmp_path / "python.gguf", layers=1, vocab=300, words=("the",), tune=(2, 0.02))
    write_tiny_lora(tmp_path / "lora.gguf", weights)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "home" / "ollama"))
    return tmp_path


def plan(run: Run, folder: Path, recipe: str) -> list[str]:
    """The complaints about a recipe."""
    (folder / "r.yaml").write_text(recipe, encoding="utf-8")
    code, _, err = run("plan", "r.yaml")
    assert code == 1, err
    return [line.removeprefix("error: ") for line in err.splitlines()]


def test_all_missing_files_of_a_recipe_are_named_at_once(run: Run, folder: Path) -> None:
    """Each with its line and the nearest name: models, adapters, the file to be like, importance matrices."""
    recipe = LINEAR + "  - model: frensh.gguf\n  - model: Pyton.gguf+loar.gguf=0.5\nlike: bsae\nimatrix: [im.dat]\n"
    assert plan(run, folder, recipe) == [
        'r.yaml:3:5: frensh.gguf: no such file; did you mean "french.gguf"?',
        'r.yaml:4:5: Pyton.gguf: no such file; did you mean "python.gguf"?',
        'r.yaml:4:5: loar.gguf: no such file; did you mean "lora.gguf"?',
        'r.yaml:5:1: bsae: no such file; did you mean "base.gguf"?',
        "r.yaml:6:1: im.dat: no such file; this folder has base.gguf, french.gguf, lora.gguf, python.gguf",
    ]


def test_missing_files_of_all_documents_are_named_at_once(run: Run, folder: Path) -> None:
    """The name of another document is no file."""
    recipe = (
        "name: one\n" + LINEAR + "  - model: frensh.gguf\n---\n" + LINEAR + "  - model: one\n  - model: pyton.gguf\n"
    )
    assert plan(run, folder, recipe) == [
        'r.yaml:4:5: frensh.gguf: no such file; did you mean "french.gguf"?',
        'r.yaml:9:5: pyton.gguf: no such file; did you mean "python.gguf"?',
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "recipe.yml"), ['recipe.yml: no such file; did you mean "recipes.yml"?']),
        (
            ("bake", "bsae.gguf", "loar.gguf", "-o", "x.gguf", "--imatrix", "im.dat"),
            [
                'bsae.gguf: no such file; did you mean "base.gguf"?',
                'loar.gguf: no such file; did you mean "lora.gguf"?',
                "--imatrix: im.dat: no such file; this folder has base.gguf, french.gguf, lora.gguf, python.gguf",
            ],
        ),
        (
            ("quantize", "bsae.gguf", "x.gguf", "--like", "frensh.gguf"),
            [
                'bsae.gguf: no such file; did you mean "base.gguf"?',
                '--like: frensh.gguf: no such file; did you mean "french.gguf"?',
            ],
        ),
        (("inspect", "frensh.gguf"), ['frensh.gguf: no such file; did you mean "french.gguf"?']),
        (("inspect", "nowhere/a.gguf"), ['nowhere/a.gguf: no such file: there is no folder "nowhere"']),
        (
            ("diff", "bsae.gguf", "base.gguf+loar.gguf", "--base", "frensh.gguf"),
            [
                'bsae.gguf: no such file; did you mean "base.gguf"?',
                'loar.gguf: no such file; did you mean "lora.gguf"?',
                'frensh.gguf: no such file; did you mean "french.gguf"?',
            ],
        ),
        (
            ("eval", "frensh.gguf", "--text", "prosa.txt"),
            [
                'frensh.gguf: no such file; did you mean "french.gguf"?',
            ],
        ),
        (("split", "frensh.gguf", "x"), ['frensh.gguf: no such file; did you mean "french.gguf"?']),
        (("join", "frensh.gguf", "x.gguf"), ['frensh.gguf: no such file; did you mean "french.gguf"?']),
        (
            ("extract-lora", "frensh.gguf", "--base", "bsae.gguf", "-o", "x.gguf"),
            [
                'frensh.gguf: no such file; did you mean "french.gguf"?',
                'bsae.gguf: no such file; did you mean "base.gguf"?',
            ],
        ),
        (
            ("eval", "base.gguf", "--text", "prosa.txt"),
            [
                'prosa.txt: no such file; did you mean "prose.txt"? (built in are builtin, english, chat, facts, '
                "french, german, spanish, chinese, python)"
            ],
        ),
        (("models", "hoem"), ['hoem: no such folder; did you mean "home"?']),
        (
            ("build", "recipes.yml", "-o", "x.gguf", "--mmproj", "frensh.gguf"),
            ['--mmproj: frensh.gguf: no such file; did you mean "french.gguf"?'],
        ),
        (("push", "frensh.gguf", "me/x", "--dry-run"), ['frensh.gguf: no such file; did you mean "french.gguf"?']),
    ],
)
def test_every_command_names_the_files_that_are_missing(
    run: Run, folder: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    """All of them, with the nearest names, and no word about recipes where there is none."""
    (folder / "home").mkdir()
    (folder / "prose.txt").write_text("the the the", encoding="utf-8")
    (folder / "recipes.yml").write_text(LINEAR + "  - model: base.gguf\n", encoding="utf-8")
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.splitlines() == [f"error: {line}" for line in expected]


def test_paths_start_from_the_folder_of_the_recipe(run: Run, folder: Path) -> None:
    """A file that is found from the working folder only is written in the other way."""
    (folder / "sub").mkdir()
    (folder / "sub" / "r.yaml").write_text(LINEAR + "  - model: base.gguf\n", encoding="utf-8")
    _, _, err = run("plan", "sub/r.yaml")
    assert 'r.yaml:3:5: base.gguf: no such file; paths start from the recipe\'s folder: write "../base.gguf"' in err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mistralai/Mistral-7B-v0.2",
            "this looks like a Hugging Face repository: write hf:OWNER/Mistral-7B-v0.2-GGUF:Q4_K_M for one with GGUF "
            "files, or download the checkpoint and give its folder",
        ),
        ("me/Tiny-GGUF", "this looks like a Hugging Face repository: write hf:me/Tiny-GGUF:Q4_K_M"),
        ("me/Tiny-GGUF:Q8_0", "this looks like a Hugging Face repository: write hf:me/Tiny-GGUF:Q8_0"),
        (
            "https://huggingface.co/me/Tiny-GGUF",
            "this looks like a Hugging Face repository: write hf:me/Tiny-GGUF:Q4_K_M",
        ),
        (
            "https://huggingface.co/me/Tiny-GGUF/resolve/main/t.gguf",
            "this is a file on the Hugging Face Hub: write hf:me/Tiny-GGUF/t.gguf",
        ),
        ("https://example.com/t.gguf", "web addresses are not read: download the file and give its path"),
        (
            "llama3.2:3b",
            "this looks like a model of Ollama: write ollama:llama3.2:3b, which ollama pull llama3.2:3b gets",
        ),
        (
            "https://ollama.com/library/llama3.2",
            "this looks like a model of Ollama: write ollama:llama3.2, which ollama pull llama3.2 gets",
        ),
        ("LMStudio:foo", "did you mean lmstudio:foo?"),
        ("lm-studio:foo", "did you mean lmstudio:foo?"),
        ("Ollama:foo", "did you mean ollama:foo?"),
        ("olama:foo", "did you mean ollama:foo?"),
        ("huggingface:me/x", "did you mean hf:me/x?"),
        ("llama-cpp:x", "did you mean llama.cpp:x?"),
        (
            "base.gguf+lora.gguf",
            "one file is wanted here, and these are 2; ggufmerge bake base.gguf lora.gguf makes one of a model and its "
            "adapters",
        ),
    ],
)
def test_names_of_other_kinds_are_recognized(run: Run, folder: Path, name: str, expected: str) -> None:
    """What a reference of that kind looks like."""
    code, _, err = run("inspect", name)
    assert code == 1
    assert err == f"error: {name}: no such file; {expected}\n"


def test_a_model_that_ollama_has_is_found_without_its_scheme(run: Run, folder: Path) -> None:
    """The store on this machine is looked into, for names with and without a tag."""
    add_model(folder / "home" / "ollama", "tiny/latest", (folder / "base.gguf").read_bytes())
    for name in ("tiny", "tiny:latest"):
        _, _, err = run("inspect", name)
        assert f"write ollama:{name}, which the store on this machine has" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("bake", "lora.gguf", "base.gguf", "-o", "x.gguf"),
            "lora.gguf: a LoRA adapter, not a model; name the model first: base.gguf lora.gguf",
        ),
        (
            ("bake", "base.gguf", "french.gguf", "-o", "x.gguf"),
            "french.gguf: a model, not a LoRA adapter; baking takes one model and its adapters; to merge models: "
            "ggufmerge merge base.gguf french.gguf",
        ),
        (
            ("quantize", "lora.gguf", "x.gguf", "Q8_0"),
            "lora.gguf: a LoRA adapter, not a model; bake it into one first: ggufmerge bake MODEL lora.gguf",
        ),
        (
            ("diff", "base.gguf", "lora.gguf+base.gguf"),
            "lora.gguf: a LoRA adapter, not a model; write base.gguf+lora.gguf",
        ),
        (
            ("diff", "base.gguf", "base.gguf+french.gguf"),
            "french.gguf: a model, not a LoRA adapter; only adapters may follow a +; to merge models, list each of "
            "them under models: of a recipe",
        ),
        (
            ("bake", "base.gguf", "lora.gguf", "-o", "x.gguf", "--imatrix", "french.gguf"),
            "french.gguf: a model or adapter, not an importance matrix; give a file that llama-imatrix wrote",
        ),
        (
            ("bake", "base.gguf", "lora.gguf=50%", "-o", "x.gguf"),
            '"lora.gguf=50%": an adapter\'s strength is a number: write lora.gguf=0.5',
        ),
        (
            ("bake", "base.gguf", "lora.gguf=0,5", "-o", "x.gguf"),
            '"lora.gguf=0,5": an adapter\'s strength is a number: write lora.gguf=0.5',
        ),
        (
            ("bake", "base.gguf", "lora.gguf=half", "-o", "x.gguf"),
            '"lora.gguf=half": an adapter\'s strength is a number, not "half": write lora.gguf=0.5',
        ),
        (
            ("bake", "base.gguf", "lora.gguf", "-t", "Q4KM", "-o", "x.gguf"),
            '--type: unknown type "Q4KM": did you mean "Q4_K_M"?',
        ),
        (
            ("plan", "r.yaml", "--type", "Q9"),
            '--type: unknown type "Q9": usual are Q4_K_M, Q5_K_M, Q6_K, Q8_0 and F16; "ggufmerge types" lists all',
        ),
        (("plan", "home"), "home: a folder, not a recipe; give a YAML file"),
        (("plan", "."), ".: a folder, not a recipe; it has r.yaml"),
        (
            ("plan", "letter.txt"),
            'letter.txt:1: this is not a recipe, which has lines such as "merge_method: linear" and "models:"',
        ),
        (
            ("plan", "base.gguf"),
            "base.gguf: a GGUF file, not a recipe; without one: ggufmerge merge base.gguf OTHER.gguf",
        ),
    ],
)
def test_what_is_given_as_something_else(run: Run, folder: Path, arguments: tuple[str, ...], expected: str) -> None:
    """Files in each other's place, and values of options: what it is and what to do, in words of the command."""
    (folder / "home").mkdir()
    (folder / "letter.txt").write_text("Dear Sir: you ask\nfor models: here: \n", encoding="utf-8")
    (folder / "r.yaml").write_text(LINEAR + "  - model: base.gguf\n", encoding="utf-8")
    code, _, err = run(*arguments)
    assert (code, err) == (1, f"error: {expected}\n")
    assert not (folder / "x.gguf").exists()


def test_a_strength_that_looks_like_a_percentage_is_asked_about(folder: Path) -> None:
    """It is allowed; of strengths that make sense nothing is said."""
    for strength, count in ((50, 1), (2, 0)):
        made, opened = plan_bake("base.gguf", [f"lora.gguf={strength}"])
        opened.close()
        assert len(made.warnings) == count
    made, opened = plan_bake("base.gguf", ["lora.gguf=50"])
    opened.close()
    assert made.warnings == ("lora.gguf: applied at 50 times its strength; for 50 % write =0.5",)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "merge_method: slerp\nmodels:\n  - model: french.gguf\n  - model: python.gguf\nparameters: {t: 0.5}\n",
            "r.yaml:1:1: slerp goes from a base to one model: make french.gguf the base_model and list only "
            "python.gguf as model",
        ),
        (
            "merge_method: nearswap\nmodels:\n  - model: french.gguf\nparameters: {t: 0.5}\n",
            "r.yaml:1:1: nearswap goes from a base to one model: make one of them the base_model and list only "
            "the other as model",
        ),
        (
            "merge_method: ties\nmodels:\n  - model: french.gguf\n    parameters: {weight: 1}\n",
            'r.yaml:1:1: ties takes differences from a base: add "base_model: FILE.gguf", the model that the others '
            "were tuned from",
        ),
        (
            SLERP + "  - model: python.gguf\nparameters: {t: 0.5}\n",
            "r.yaml:3:1: slerp goes from the base to one model, not to 2: list only one, or set `chain: true` under "
            "parameters to go on to each in turn",
        ),
        (
            SLERP.replace("slerp", "nearswap") + "  - model: python.gguf\nparameters: {t: 0.5}\n",
            "r.yaml:3:1: nearswap goes from a base to one model, not to 2: list only one of french.gguf, python.gguf",
        ),
        (SLERP, 'r.yaml:1:1: no t is given, which slerp needs: add "parameters: {t: 0.5}"'),
        (
            "merge_method: ties\nbase_model: base.gguf\nmodels:\n  - model: french.gguf\n",
            'r.yaml:4:5: french.gguf has no weight, which ties needs: add "parameters: {weight: 1}" below it',
        ),
        (
            LINEAR + "  - model: french.gguf\n    parameters: {weight: 2}\n  - model: python.gguf\n",
            "r.yaml:5:5: python.gguf has no weight, though another model has one: "
            'add "parameters: {weight: 1}" below it',
        ),
        (
            LINEAR + "  - model: french.gguf\n    parameters: {weight: 1}\n"
            "  - model: python.gguf\n    parameters: {weight: -1}\n",
            "r.yaml:4:18: the weights sum to zero, so the average is undefined: change a weight or set "
            "`normalize: false`",
        ),
        (
            LINEAR + "  - model: french.gguf\n    parameters: {weight: 1}\n"
            "  - model: python.gguf\n    parameters: {weight: [{filter: ffn_up, value: -1}, {value: 1}]}\n",
            "r.yaml:4:18: blk.0.ffn_up.weight: the weights sum to zero, so the average is undefined: change a weight "
            "or set `normalize: false`",
        ),
        (
            LINEAR + "  - model: lora.gguf\n",
            "r.yaml:3:5: lora.gguf: a LoRA adapter, not a model; write MODEL.gguf+lora.gguf",
        ),
        (
            LINEAR + "  - model: base.gguf\n    parameters:\n      weight:\n        - {filter: atn, value: 1}\n",
            'r.yaml:6:12: the filter "atn" of weight matches no tensor; filters are parts of names such as '
            "blk.0.ffn_down.weight or model.layers.0.",
        ),
    ],
)
def test_recipes_that_do_not_fit_their_models(run: Run, folder: Path, recipe: str, expected: str) -> None:
    """Once, with the line, however many tensors it is true of."""
    [line] = plan(run, folder, recipe)
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (LINEAR + "  - french.gguf\n", '3:5: an entry of "models" has keys: write "- model: french.gguf"'),
        (
            "merge_method: linear\nmodels: french.gguf\n",
            '2:1: "models" is a list: below it, write a line such as "- model: french.gguf" for each model',
        ),
        (
            LINEAR + "  model: french.gguf\n",
            '2:1: "models" is a list: below it, write a line such as "- model: french.gguf" for each model',
        ),
        (
            "merge_method: linear\nbase_model: base.gguf\n",
            "1:1: base_model alone makes no merge: add models:, and below it a line such as "
            '"- model: FILE.gguf" for each model',
        ),
        (LINEAR + "  -model: a.gguf\n", '3:3: an entry of a list has a blank after its dash: "- model: ..."'),
        (
            LINEAR + "  - model: a\n    parameters:\n      weight: 0,5\n",
            '5:7: "weight" is a number, not "0,5": write 0.5',
        ),
        (LINEAR + "  - model: a\n    parameters: {weight: 50%}\n", '4:18: "weight" is a number, not "50%": write 0.5'),
        (
            LINEAR + "  - model: a\n    parameters: {weight: 0,5}\n",
            '4:28: numbers have a point: write "weight: 0.5", not "weight: 0,5"',
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels:\n  - model: a\n    parameters: {weight: 1, density: 50}\n",
            '5:29: "density" is 0 to 1, not 50; for 50 % write 0.5',
        ),
        (
            LINEAR + "  - model: a+b.gguf=50%\n",
            '3:5: "b.gguf=50%": an adapter\'s strength is a number: write b.gguf=0.5',
        ),
        (
            'merge_method: linear\nmodels:\n  - model: "C:\\models\\a.gguf"\n',
            "3:16: not valid YAML: in double quotes a backslash begins an escape: write the path with /, or in single "
            "quotes",
        ),
        (
            'merge_method: linear\nmodels:\n  - model: "C:\\Users\\a.gguf"\n',
            "3:17: not valid YAML: in double quotes a backslash begins an escape: write the path with /, or in single "
            "quotes",
        ),
        (
            'merge_method: linear\nmodels:\n  - model: "C:\\new\\a.gguf"\n',
            '3:5: the path "C:\\new\\x07.gguf" holds a control character: in double quotes a backslash begins an '
            "escape: write the path with /, or in single quotes",
        ),
        (
            LINEAR + "  - model: a\n - model: b\n",
            '4:2: not valid YAML: line 4 is indented less than "-" in line 3: give it 2 spaces, not 1',
        ),
        (
            LINEAR + "  - model: a\n     parameters: {weight: 1}\n",
            '4:16: not valid YAML: line 4 is indented more than "model" in line 3: give it 4 spaces, not 5',
        ),
        (
            LINEAR + "  - model: a\n  parameters: {weight: 1}\n",
            '4:3: not valid YAML: line 4 is indented less than "model" in line 3: give it 4 spaces, not 2',
        ),
        (
            LINEAR + "  - model: a\n    parameters:\n        weight: 1\n      density: 1\n",
            '6:7: not valid YAML: line 6 is indented less than "weight" in line 5: give it 8 spaces, not 6',
        ),
        (
            " merge_method: linear\nmodels: []\n",
            '2:1: not valid YAML: line 2 is indented less than "merge_method" in line 1: give it 1 space, not 0',
        ),
        (
            "merge_method: linear\nparameters:\n  t: 3\n  - model: x\n",
            '4:3: not valid YAML: line 4 begins with "-" in the column of "t" in line 3: indent it more, or remove '
            'the "-"',
        ),
        (LINEAR + "\t- model: a\n", "3:1: not valid YAML: line 3 is indented with a tab: indent with spaces"),
        ("merge_method linear\nmodels: []\n", '2:7: not valid YAML: line 1 lacks its colon: "merge_method: linear"'),
        (
            "merge_method: linear\nmodels\n  - model: a\n",
            '3:10: not valid YAML: line 2 lacks its colon: "models:"',
        ),
        (
            "merge_method:linear\nmodels: []\n",
            '2:7: not valid YAML: line 1 needs a blank after the colon: "merge_method: linear"',
        ),
        ("merge_method: linear\nname: a: b\n", '2:8: not valid YAML: a value with ": " in it is written in quotes'),
        (
            "merge_method: linear\nmodels: - model: a\n",
            '2:9: not valid YAML: a list begins below its key: put the "- " on a line of its own',
        ),
        (
            "merge_method: linear\nmodels: [{model: a]\n",
            '2:19: not valid YAML: the "{" in line 2, column 10 is not closed: a comma or a "}" is missing',
        ),
        ('merge_method: linear\nname: "a\n', "3:1: not valid YAML: the quote in line 2, column 7 is never closed"),
        (
            "merge_method: linear\nexclude: *attn\n",
            '2:10: not valid YAML: "*" begins an alias in YAML: write the text in quotes',
        ),
        (
            "merge_method: linear\nexclude: *.attn\n",
            '2:11: not valid YAML: "*" begins an alias in YAML: write the text in quotes',
        ),
        ("merge_method: linear\nname: %a\n", "2:7: not valid YAML: a value cannot begin with '%': write it in quotes"),
    ],
)
def test_slips_in_recipes_are_named_in_words(recipe: str, expected: str) -> None:
    """With line and column, and what to write instead."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    assert caught.value.lines[0] == f"recipe:{expected}"


def test_a_fraction_far_beyond_both_models_is_asked_about(run: Run, folder: Path) -> None:
    """mergekit takes it, so it is a warning."""
    (folder / "r.yaml").write_text(SLERP + "parameters: {t: 5}\n", encoding="utf-8")
    code, _, err = run("plan", "r.yaml")
    assert code == 0
    assert err == (
        'warning: r.yaml:5:14: "t" is 5, but makes sense from 0 to 1: how far to go from the base (0) to the other '
        "model (1)\n"
    )


@pytest.mark.parametrize("method", ["linear", "multislerp", "nuslerp"])
def test_averages_need_no_weights(run: Run, folder: Path, method: str) -> None:
    """Without any, all models count the same, and the plan says so."""
    models = "models: [{model: french.gguf}, {model: python.gguf}]\n"
    for name, more in (("given", "parameters: {weight: 1}\n"), ("none", "")):
        (folder / f"{name}.yaml").write_text(f"merge_method: {method}\n{models}{more}", encoding="utf-8")
        ggufmerge.build(f"{name}.yaml", f"{name}.gguf")
    given, none = (ggufmerge.open(f"{name}.gguf") for name in ("given", "none"))
    assert all((none.tensors[name].raw == tensor.raw).all() for name, tensor in given.tensors.items())
    _, out, _ = run("plan", "none.yaml")
    assert "no weight is given, so all models have weight 1" in out


def test_notes_keep_their_numbers(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decisions that differ in figures only are one line, with the smallest and the largest."""
    show_notes([("a", "cosine 0.9997 is near"), ("b", "cosine 1.0000 is near"), ("c", "other")], 4)
    show_notes([("a", "at 0.5"), ("b", "at 0.5")])
    assert capsys.readouterr().out.splitlines() == [
        "note: 2 of 4 tensors (a, ...): cosine 0.9997..1.0000 is near",
        "note: c: other",
        "note: a and 1 more: at 0.5",
    ]


def test_tensors_that_are_alike_are_no_cause_for_worry(run: Run, folder: Path) -> None:
    """slerp of two tunes of one base says how many and how alike, and that this is normal."""
    write_tiny_llama(folder / "near.gguf", layers=1, vocab=300, words=("the",), tune=(1, 0.01))
    (folder / "r.yaml").write_text(SLERP.replace("french", "near") + "parameters: {t: 0.5}\n", encoding="utf-8")
    code, out, _ = run("build", "r.yaml", "-o", "x.gguf")
    assert code == 0
    [note] = [line for line in out.splitlines() if line.startswith("note: ")]
    assert "#" not in note
    figures = r"12 of 12 tensors \(\S+, \.\.\.\): so alike \(cosine 0\.99\d\d\.\.1\.0000\)"
    assert re.fullmatch(
        f"note: {figures} that slerp equals linear there; this is normal for fine-tunes of one base", note
    )


def test_what_uploads_nothing_needs_no_package(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`push --dry-run` shows names and card, and says what it could not ask."""
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, out, err = run("push", "base.gguf", "me/tiny", "--dry-run")
    assert (code, "model card" in out) == (0, True)
    assert "whether there is such a repository is not known" in err
    code, _, err = run("push", "base.gguf", "me/tiny")
    assert code == 1
    assert "pip install 'ggufmerge[hub]'" in err.splitlines()[-1]


@pytest.mark.parametrize("text", ["- " * 20_000, "a" + " " * 200_000, "1" * 200_000 + "x", "\n" * 100_000])
def test_hints_cost_no_time(text: str) -> None:
    """Whatever a recipe holds beside its mistake, each of its letters is looked at a few times only: where hints went
    through a text again for each of its letters, this would take hours.
    """
    for recipe in (f"models: |\n  {text}\nname: a: b\n", f"{text}\n]"):
        with pytest.raises(RecipeError):
            load_recipe(recipe)
    assert human_number(text) is None
