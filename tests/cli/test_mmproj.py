"""Projectors of multi-modal models: copied beside a build when asked for, never chosen in silence."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.command import Run
from tests.places.modelfiles import read_modelfile
from tests.tiny import write_tiny_llama

BUILD = ("build", "recipe.yaml", "-o", "out.gguf")
MMPROJ = ("--mmproj", "a/mmproj-a.gguf")


def write_projector(path: Path, seed: int = 0, *, width: int = 64, name: str = "eyes") -> None:
    """A file as llama.cpp's converter writes it, as far as anyone here looks."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(name)
    writer.add_vision_projection_dim(width)
    writer.add_tensor("mm.0.weight", np.random.default_rng(seed).standard_normal((width, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def run(run: Run) -> Run:
    """Run the command line in-process: (exit code, standard output, standard error in one line)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code, out, err = run(*arguments)
        return code, out, " ".join(err.split())

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a/a.gguf with a projector beside it, b/b.gguf without, and a recipe of both."""
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_tiny_llama(tmp_path / name / f"{name}.gguf", layers=1, tune=(number, 0.02))
    write_projector(tmp_path / "a" / "mmproj-a.gguf")
    models = "[{model: a/a.gguf}, {model: b/b.gguf}]"
    (tmp_path / "recipe.yaml").write_text(f"{{merge_method: linear, models: {models}, parameters: {{weight: 1}}}}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_projector_is_copied_beside_the_output(folder: Path, run: Run) -> None:
    """Byte for byte, under the output's name, named in the Modelfile and in the report; no warning is left."""
    code, out, err = run(*BUILD, *MMPROJ, "--json")
    assert code == 0
    copy = folder / "mmproj-out.gguf"
    assert copy.read_bytes() == (folder / "a" / "mmproj-a.gguf").read_bytes()
    assert json.loads(out)["mmproj"] == copy.name
    froms = [value for word, value in read_modelfile((folder / "out.Modelfile").read_text()) if word == "model"]
    assert froms == ["./out.gguf", "./mmproj-out.gguf"]
    assert "projector" not in err
    assert not list(folder.glob(".*"))


def test_shards_have_one_projector(folder: Path, run: Run) -> None:
    """It has the name of the whole model."""
    assert run(*BUILD, *MMPROJ, "--split-max-tensors", "5")[0] == 0
    assert (folder / "mmproj-out.gguf").is_file()
    assert len(list(folder.glob("out-*.gguf"))) > 1


def test_a_projector_that_is_not_given_is_pointed_out(folder: Path, run: Run) -> None:
    """The warning names the file and the option; nothing is copied."""
    code, _, err = run(*BUILD)
    assert code == 0
    assert "next to a/a.gguf is a projector (mmproj-a.gguf): --mmproj FILE" in err
    assert not (folder / "mmproj-out.gguf").exists()


def test_projectors_that_differ_are_pointed_out(folder: Path, run: Run) -> None:
    """What counts are their weights: another name in another file is the same projector."""
    write_projector(folder / "b" / "mmproj-b.gguf", name="other eyes")
    assert "differ" not in run(*BUILD)[2]
    write_projector(folder / "b" / "mmproj-b.gguf", seed=1)
    assert (
        "the projectors of a/a.gguf and b/b.gguf differ (mmproj-a.gguf, mmproj-b.gguf)" in run(*BUILD, "--overwrite")[2]
    )
    _, _, err = run(*BUILD, "--overwrite", *MMPROJ)
    assert "b/b.gguf has another projector in its folder (mmproj-b.gguf) than mmproj-a.gguf" in err
    assert "--mmproj FILE" not in err


def test_projectors_of_other_models_are_not_counted(folder: Path, run: Run) -> None:
    """In a folder of downloads lie those of other models, and damaged ones; the width of embeddings tells."""
    write_projector(folder / "a" / "mmproj-a.gguf", width=128)
    (folder / "b" / "mmproj-broken.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    assert "projector" not in run(*BUILD)[2]
    assert "makes embeddings of another width" in run(*BUILD, "--overwrite", *MMPROJ)[2]


def test_what_is_no_projector_is_refused(folder: Path, run: Run) -> None:
    """Before anything is built, also in a dry run."""
    for more in ((), ("--dry-run",)):
        code, _, err = run(*BUILD, "--mmproj", "b/b.gguf", *more)
        assert code == 1
        assert "b.gguf: not a projector; give the mmproj file" in err
    assert not (folder / "out.gguf").exists()


def test_a_file_in_the_way_is_kept(folder: Path, run: Run) -> None:
    """Unless --overwrite is given; the projector itself may lie there already."""
    target = folder / "mmproj-out.gguf"
    target.write_text("mine")
    code, _, err = run(*BUILD, *MMPROJ)
    assert (code, target.read_text()) == (1, "mine")
    assert "mmproj-out.gguf: exists: use --overwrite" in err
    assert not (folder / "out.gguf").exists()
    assert run(*BUILD, *MMPROJ, "--overwrite")[0] == 0
    there = target.read_bytes()
    assert run("build", "recipe.yaml", "-o", "out.gguf", "--mmproj", target, "--overwrite")[0] == 0
    assert target.read_bytes() == there == (folder / "a" / "mmproj-a.gguf").read_bytes()


def test_projectors_do_not_go_into_a_store(folder: Path, run: Run) -> None:
    """A usage error says which way there is."""
    code, _, err = run("build", "recipe.yaml", "--ollama", "x", *MMPROJ)
    assert code == 2
    assert "--mmproj needs --output" in err
