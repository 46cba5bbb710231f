"""The models that a file was made from are found again, and no others are taken for them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.engine.bake import plan_bake
from ggufmerge.engine.parents import NOT_FOUND, Family, family
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.running.run import run
from tests.ollama_store import add_model
from tests.tiny import write_tiny_llama, write_tiny_lora


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    weights = write_tiny_llama("base.gguf", layers=1)
    write_tiny_llama("a.gguf", layers=1, tune=(1, 0.1))
    write_tiny_llama("b.gguf", layers=1, tune=(2, 0.1))
    write_tiny_lora("lora.gguf", weights)
    return tmp_path


def built(method: str, base: str | None, *models: str) -> str:
    lines = [f"merge_method: {method}", *([f"base_model: {base}"] if base else []), "models:"]
    lines += [f"  - {{model: {m}, parameters: {{weight: 1}}}}" for m in models]
    ggufmerge.build("\n".join([*lines, ""]), "out.gguf", overwrite=True)
    return "out.gguf"


def roles(found: Family) -> tuple[str | None, list[str]]:
    return (found.base and found.base.label, [p.label for p in found.parents])


def test_a_merge_knows_base_and_parents(folder: Path) -> None:
    """Those of its recipe, in its order."""
    out = built("task_arithmetic", "base.gguf", "a.gguf", "b.gguf")
    assert roles(family(out)) == ("base.gguf", ["a.gguf", "b.gguf"])


def test_a_base_that_is_merged_is_a_parent(folder: Path) -> None:
    """slerp goes from one model to another."""
    out = "out.gguf"
    recipe = "merge_method: slerp\nbase_model: a.gguf\nmodels:\n  - {model: b.gguf}\nparameters: {t: 0.5}\n"
    ggufmerge.build(recipe, out)
    assert roles(family(out)) == (None, ["a.gguf", "b.gguf"])


def test_the_base_of_adapters_is_what_they_were_added_to(folder: Path) -> None:
    """A baked model is compared with its base, and with llama.cpp applying the adapter."""
    run(*plan_bake("base.gguf", ["lora.gguf=0.5"]), folder / "out.gguf")
    found = family("out.gguf")
    assert roles(found) == ("base.gguf", ["base.gguf+lora.gguf=0.5"])
    assert found.parents[0].adapters == ((Path("lora.gguf"), 0.5),)


def test_a_quantized_file_has_one_parent(folder: Path) -> None:
    """The file that it was made from."""
    run(*plan_quantize("a.gguf", "Q8_0"), folder / "out.gguf")
    assert roles(family("out.gguf")) == (None, ["a.gguf"])


def test_stages_lead_to_files(folder: Path) -> None:
    """The models of all documents."""
    one = "{model: %s, parameters: {weight: 1}}"
    stage = f"name: s\nmerge_method: linear\nmodels: [{one % 'a.gguf'}]\n"
    last = f"merge_method: linear\nmodels: [{one % 's'}, {one % 'b.gguf'}]\n"
    ggufmerge.build(f"{stage}---\n{last}", "out.gguf")
    assert sorted(roles(family("out.gguf"))[1]) == ["a.gguf", "b.gguf"]


@pytest.mark.parametrize("place", ["beside", "given", "below"])
def test_files_are_found_beside_in_given_folders_and_below(place: str, folder: Path, tmp_path: Path) -> None:
    """Wherever the recipe stood: by name and digest."""
    out = built("linear", None, "a.gguf", "b.gguf")
    (folder / "else/models/deep").mkdir(parents=True)
    (folder / "out").mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.move(name, {"beside": "out", "given": "else", "below": "else/models/deep"}[place])
    shutil.move(out, "out")
    assert roles(family("out/out.gguf", [folder / "else"])) == (None, ["a.gguf", "b.gguf"])


@pytest.mark.parametrize("program", ["lmstudio", "ollama", "hf"])
def test_files_are_found_among_the_models_of_programs(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In folders that have nothing to do with each other, under another name if that is the file's digest."""
    monkeypatch.setattr(Path, "home", lambda: folder / "home")
    for name, place in (("HF_HOME", "hf"), ("OLLAMA_MODELS", "ollama")):
        monkeypatch.setenv(name, str(folder / place))
    out = built("linear", None, "a.gguf", "b.gguf")
    (folder / "elsewhere").mkdir()
    shutil.move(out, "elsewhere")
    data = Path("a.gguf").read_bytes()
    Path("a.gguf").unlink()
    if program == "lmstudio":
        place = folder / "home/.lmstudio/models/me/a/a.gguf"
        place.parent.mkdir(parents=True)
        place.write_bytes(data)
    elif program == "ollama":
        add_model(folder / "ollama", "mine/latest", data)
    else:
        blob = folder / "hf/hub/models--me--x/blobs" / hashlib.sha256(data).hexdigest()
        snapshot = folder / "hf/hub/models--me--x/snapshots/0123" / "renamed.gguf"
        for path in (blob, snapshot):
            path.parent.mkdir(parents=True)
        blob.write_bytes(data)
        snapshot.symlink_to(blob)
        (folder / "hf/hub/models--me--x/refs").mkdir()
        (folder / "hf/hub/models--me--x/refs/main").write_text("0123")
    found = family("elsewhere/out.gguf", [folder])
    assert roles(found) == (None, ["a.gguf", "b.gguf"])
    assert found.parents[0].path.read_bytes() == data


def test_another_file_of_the_same_name_is_not_taken(folder: Path) -> None:
    """It is said which are missing and why."""
    out = built("linear", None, "a.gguf", "b.gguf")
    shutil.copy("base.gguf", "a.gguf")
    (folder / "b.gguf").unlink()
    found = family(out)
    assert found.parents == ()
    assert found.missing == ("a.gguf: only other files of this name are here", f"b.gguf: {NOT_FOUND}")


def test_a_result_in_the_place_of_its_parent_is_not_its_own_parent(folder: Path) -> None:
    """The file that was overwritten is gone."""
    out = built("linear", None, "a.gguf", "b.gguf")
    shutil.move(out, "a.gguf")
    assert family("a.gguf").missing == (f"a.gguf: {NOT_FOUND}",)


@pytest.mark.parametrize("recipe", ["", "x: [", "merge_method: linear\nmodels: [{model: /dev/zero}]\n", 7, ["a", "b"]])
def test_strangers_values_find_nothing(recipe: object, folder: Path) -> None:
    """No device is read, nothing is downloaded, nothing breaks."""
    metadata = {"ggufmerge.recipe": recipe, "ggufmerge.source.0.file": "hf:x/y", "ggufmerge.source.0.sha256": "0" * 64}
    write_tiny_llama("odd.gguf", layers=1, metadata=metadata)
    assert family("odd.gguf").parents == ()


def test_other_files_have_no_family(folder: Path) -> None:
    """They name nothing."""
    assert family("base.gguf") == Family()
