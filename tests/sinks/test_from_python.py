"""What the command makes of a finished file, a program can make of it, too."""

from __future__ import annotations

from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.errors import OutputError, PlanError
from ggufmerge.places.ollama import publish
from ggufmerge.places.ollama import store as ollama
from ggufmerge.sinks import CardSink, HomesSink, OllamaSink
from tests.ollama_store import layers_of
from tests.tiny import write_tiny_llama

RECIPE = {"merge_method": "linear", "models": [{"model": "a.gguf"}, {"model": "b.gguf"}], "parameters": {"weight": 1}}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store; the working folder has two models."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(ollama, "SERVICE_ROOT", tmp_path / "no service")
    (tmp_path / "store").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_tiny_llama("a.gguf", layers=1)
    write_tiny_llama("b.gguf", layers=1, tune=(1, 0.02))
    return tmp_path / "store"


def test_a_program_gives_a_model_to_ollama(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a Modelfile and a card beside the file, and without a word on the terminal."""
    sinks = (OllamaSink("out.gguf", "mine"), CardSink("card.md"))
    report = ggufmerge.build(RECIPE, "out.gguf", sinks=sinks)
    assert report.output == Path("out.gguf")
    assert layers_of(store, "mine/latest")["model"] == [Path("out.gguf").read_bytes()]
    assert 'FROM "./out.gguf"' in Path("out.Modelfile").read_text()
    assert "merge" in Path("card.md").read_text()
    assert "ollama run mine" in "".join(sinks[0].lines())
    assert capsys.readouterr() == ("", "")
    with pytest.raises(PlanError, match="Ollama has a model of this name"):
        ggufmerge.build(RECIPE, "again.gguf", sinks=[OllamaSink("again.gguf", "mine", modelfile=False)])
    assert not Path("again.gguf").exists()


def test_a_model_goes_to_ollama_only(store: Path) -> None:
    """The sink says where it is built, and the report where it is then."""
    sink = OllamaSink(None, "mine")
    report = ggufmerge.build(RECIPE, sink.output, overwrite=sink.overwrite, sinks=[sink])
    assert report.output.parent == store / "blobs"
    assert layers_of(store, "mine/latest")["model"] == [report.output.read_bytes()]


def test_an_error_says_what_is_left(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its notes, which a traceback shows: the file is complete, and the same call goes on."""

    def full(*_: object, **__: object) -> None:
        raise OutputError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(publish.Store, "add", full)
        with pytest.raises(OutputError) as error:
            ggufmerge.build(RECIPE, "out.gguf", sinks=[OllamaSink("out.gguf", "mine")])
    [note] = [line for line in error.value.__notes__ if line.startswith("the merged model")]
    assert note.startswith("the merged model is complete: out.gguf; give the same command again")
    report = ggufmerge.build(RECIPE, "out.gguf", sinks=[OllamaSink("out.gguf", "mine")])
    assert report.resumed == len(ggufmerge.open("out.gguf").tensors)
    assert layers_of(store, "mine/latest")["model"] == [Path("out.gguf").read_bytes()]


def test_a_model_goes_to_other_programs(store: Path, tmp_path: Path) -> None:
    """Here a folder of nobody's; the facts say which program it is for, and how to run the model."""
    (tmp_path / "models").mkdir()
    sink = HomesSink(ggufmerge.load_recipe(RECIPE), {}, "out.gguf", to=[tmp_path / "models"], llama_cpp=True)
    ggufmerge.build(RECIPE, "out.gguf", sinks=[sink])
    [home] = sink.facts["homes"]
    assert Path(home["files"][0]).read_bytes() == Path("out.gguf").read_bytes()
    assert sink.facts["llama_cpp"]["arguments"][0] == "llama-server"
