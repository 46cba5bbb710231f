"""Commands that tell the same thing tell it alike: what was written, and which file type a file has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.engine import make_plan
from ggufmerge.files import describe
from ggufmerge.places.inventory import find_models
from ggufmerge.places.ollama.publish import _config
from ggufmerge.places.ollama.store import OllamaSettings
from ggufmerge.recipe import load_recipe
from ggufmerge.report.naming import conventional_stem
from tests.tiny import write_tiny_llama, write_tiny_lora

Run = Callable[..., tuple[int, str, str]]
RECIPE = "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = write_tiny_llama("a.gguf", layers=1)
    write_tiny_llama("b.gguf", layers=1, tune=(1, 0.02))
    write_tiny_lora("lora.gguf", base)
    Path("r.yaml").write_text(RECIPE)
    return tmp_path


COMMANDS = {
    "build": "build r.yaml -o out.gguf --no-modelfile",
    "quantize": "quantize a.gguf out.gguf Q8_0",
    "bake": "bake a.gguf lora.gguf -o out.gguf",
    "extract-lora": "extract-lora b.gguf --base a.gguf -o out.gguf --rank 2",
    "split": "split a.gguf out --split-max-tensors 5",
    "join": "join part-00001-of-00003.gguf out.gguf",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_write_say_what(name: str, folder: Path, run: Run) -> None:
    """`output` is the file to open, `files` are all that were written."""
    if name == "join":
        run("split", "a.gguf", "part", "--split-max-tensors", "5")
    before = {path.name for path in folder.iterdir()}
    code, out, err = run(*COMMANDS[name].split(), "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert {path.name for path in folder.iterdir()} - before == set(facts["files"])
    assert facts["output"] == facts["files"][0]


@pytest.mark.parametrize("name", ["quantize", "bake", "extract-lora", "split"])
def test_a_dry_run_has_written_nothing(name: str, folder: Path, run: Run) -> None:
    """And says so under the same keys."""
    facts = json.loads(run(*COMMANDS[name].split(), "--json", "--dry-run")[1])
    assert (facts["output"], facts["files"]) == (None, [])


@pytest.mark.parametrize("declared", [None, 2, 999, "Q4_0", True, [7]])
def test_a_file_has_one_file_type(declared: object, folder: Path) -> None:
    """Asked by whomever: what it declares if there is such a type, else what most of its tensors are, however large
    the others.
    """
    types = {"output.weight": "Q8_0", "token_embd.weight": "Q8_0"}
    write_tiny_llama("x.gguf", layers=1, type="Q5_0", types=types)
    from ggufmerge.files import GGUFWriter, MetadataEditor, TensorInfo

    with ggufmerge.open("x.gguf") as file:
        editor = MetadataEditor(file.metadata)
        editor.remove("general.file_type")
        if declared is not None:
            editor.set("general.file_type", declared)
        values = {t.name: bytes(t.raw) for t in file.tensors.values()}
        infos = [TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values()]
    (folder / "alone").mkdir()
    path = folder / "alone" / "y.gguf"
    with GGUFWriter(path, editor, infos) as writer:
        for name, raw in values.items():
            writer.write(name, 0, raw)
        writer.commit()
    plan, opened = make_plan(load_recipe(f"{{merge_method: passthrough, models: [{{model: {path}}}]}}\n"))
    opened.close()
    [found] = [model for model in find_models([path.parent]) if model.path == path]
    with ggufmerge.open(path) as file:
        told = {
            plan.sources[0].file_type,
            str(plan.file_type),
            found.file_type,
            describe(file)["file_type"],
            conventional_stem(file).rsplit("-", 1)[1],
            _config(file, OllamaSettings())["file_type"],
        }
    assert told == {"Q4_0" if declared == 2 else "Q5_0"}
