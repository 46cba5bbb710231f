"""How a merged model is prompted in Ollama: one parent's way, or that of its own chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ggufmerge.chat.jinja import Message
from ggufmerge.files import MetadataEditor
from ggufmerge.places.ollama.settings import completed, inherited, prompt_warnings, refusals
from ggufmerge.places.ollama.store import OllamaSettings
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source
from tests.chat.go_template import execute
from tests.chat.jinjas import JINJAS
from tests.ollama_store import add_model
from tests.tiny import write_tiny_llama

Parent = Callable[..., Source]
TEMPLATE, STOP = ("template", "{{ .Prompt }}"), ("params", '{"stop": ["own"], "top_k": 3}')


@pytest.fixture
def parent(store: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Parent:
    """Makes a parent: a file with or without a chat template, which Ollama has, too, if layers are given."""

    def make(
        name: str, *layers: tuple[str, str], jinja: str | None = None, ollama: bool = True, **config: str
    ) -> Source:
        path = tmp_path / f"{name}.gguf"
        write_tiny_llama(path, layers=1, embed=32, ff=32, metadata={"tokenizer.chat_template": jinja})
        reference = str(path)
        if ollama:
            add_model(store, f"{name}/latest", path.read_bytes(), layers, config)
            reference = f"ollama:{name}"
        source = open_source(ModelReference.parse(reference))
        request.addfinalizer(source.close)
        return source

    return make


def test_what_belongs_together_comes_from_one_parent(parent: Parent) -> None:
    """Template, renderer, parser and stops of the first that has any; another's is named and left out."""
    a = parent("a", ("system", "A"), STOP, renderer="ra")
    b = parent("b", TEMPLATE, ("params", '{"stop": ["other"], "top_p": 1}'), parser="pb")
    settings, warnings = inherited([a, b], {})
    assert (settings.template, settings.renderer, settings.parser) == (None, "ra", None)
    assert settings.parameters == {"stop": ["own"], "top_k": 3}
    assert (
        "the prompt format is that of ollama:a; the template and parser of ollama:b in Ollama are left out" in warnings
    )


def test_the_template_of_the_first_file_is_not_replaced(parent: Parent) -> None:
    """By a later parent's in Ollama, nor are its stops."""
    for ollama in (True, False):
        a = parent(f"a{ollama}".lower(), jinja=JINJAS["chatml"], ollama=ollama)
        b = parent(f"b{ollama}".lower(), TEMPLATE, STOP)
        settings, warnings = inherited([a, b], {})
        assert settings.template is None
        assert "stop" not in settings.parameters
        assert [w for w in warnings if "by the chat template in its file; the template of ollama:b" in w]
        written = completed(settings, a.file.metadata)
        assert written.parameters["stop"] == ["<|im_end|>"]
        assert execute(written.template or "", [Message("user", "?")]).startswith("<|im_start|>user\n?")


def test_a_later_parent_is_better_than_none(parent: Parent) -> None:
    """A base without a chat template takes the format of the first parent that has one in Ollama."""
    settings, warnings = inherited([parent("base", ollama=False), parent("chat", TEMPLATE, STOP)], {})
    assert (settings.template, settings.parameters["stop"], warnings) == ("{{ .Prompt }}", ["own"], [])


def test_stops_stay_with_the_file_they_are_of(parent: Parent) -> None:
    """A parent whose Modelfile sets stops, and no template."""
    settings, _ = inherited([parent("a", STOP, jinja=JINJAS["chatml"])], {})
    assert settings.parameters == {"stop": ["own"], "top_k": 3}


@pytest.mark.parametrize("architecture", ["gemma4", "laguna", "nemotron_h", "nemotron_h_moe", "nemotron_h_omni"])
def test_some_architectures_are_prompted_by_code_of_ollamas(architecture: str) -> None:
    """As `ollama create` has it; a parent's word goes first."""
    metadata = _metadata({"general.architecture": architecture, "tokenizer.chat_template": JINJAS["chatml"]})
    found = completed(OllamaSettings(), metadata)
    name = "nemotron-3-nano" if architecture.startswith("nemotron") else architecture
    assert (found.renderer, found.parser, found.template) == (name, name, None)
    assert found.parameters.get("stop") == (["<turn|>"] if architecture == "gemma4" else None)
    assert completed(OllamaSettings(renderer="mine"), metadata).renderer == "mine"
    assert not prompt_warnings(found, metadata)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "the result has no chat template"),
        ("{{ strftime_now('%Y') }}{{ messages[0].content }}", "cannot be said in Ollama's template language"),
        (JINJAS["chatml"], None),
    ],
)
def test_what_cannot_be_known_is_a_warning(template: str | None, said: str | None) -> None:
    """It says what older and newer versions of Ollama make of it, or what a recipe can do."""
    changes = {"general.architecture": "llama", "tokenizer.ggml.model": "llama"}
    metadata = _metadata(changes | ({"tokenizer.chat_template": template} if template else {}))
    warnings = prompt_warnings(completed(OllamaSettings(), metadata), metadata)
    assert [said in w for w in warnings] == [True] if said else not warnings
    newer = prompt_warnings(completed(OllamaSettings(), metadata), metadata, (0, 30, 1))
    assert bool(newer) == (template is None)  # it runs any chat template of the file


def _metadata(changes: dict[str, Any]) -> MetadataEditor:
    editor = MetadataEditor()
    for key, value in changes.items():
        editor.set(key, value)
    return editor


def test_what_is_not_a_model_is_refused_before_the_work() -> None:
    """A result that says of itself that it is something else; the recipe can set that right."""
    metadata = MetadataEditor()
    metadata.set("general.type", "adapter\x1b[2J")
    assert refusals({}, metadata) == [
        'general.type is "adapter\\x1b[2J", not "model"; set it under metadata: of the recipe'
    ]
    metadata.set("general.type", "model")
    assert refusals({}, metadata) == []
