"""One prompt on every way into Ollama: store, server, Modelfile, and made again from what `ollama show` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggufmerge.chat.corpus import CORPUS
from ggufmerge.places.ollama.modelfile import write_modelfile
from ggufmerge.places.ollama.names import OllamaName
from ggufmerge.places.ollama.publish import Store
from ggufmerge.places.ollama.server import Server
from ggufmerge.places.ollama.store import OllamaSettings, find
from tests.chat.go_template import execute
from tests.chat.jinjas import JINJAS, write_model
from tests.ollama_store import layers_of
from tests.places.modelfiles import read_modelfile
from tests.places.ollama_server import ollama_server


@pytest.mark.parametrize("name", JINJAS)
def test_every_way_gives_the_same_prompts(name: str, store: Path, tmp_path: Path) -> None:
    """The same template and stops, also where the server knows the Jinja of the file and has a template for it."""
    path = tmp_path / "m.gguf"
    form = write_model(path, name)

    Store(store, OllamaName.parse("stored")).add(path, OllamaSettings())
    with ollama_server() as server:
        Server(server.url, OllamaName.parse("sent")).add(path, OllamaSettings())
        sent = layers_of(server.ollama.root, "sent/latest")
    written = read_modelfile(write_modelfile(path).read_text("utf-8"))
    stored = layers_of(store, "stored/latest")
    templates = {stored["template"][0].decode(), sent["template"][0].decode(), dict(written)["template"]}
    stops = [json.loads(layers["params"][0])["stop"] for layers in (stored, sent)]
    (template,) = templates
    assert stops == [[value for key, value in written if key == "stop"]] * 2
    assert all(execute(template, messages) == form.write(messages) for messages in CORPUS)

    again = find("stored").settings  # what `ollama show --modelfile` prints
    assert again is not None
    Store(store, OllamaName.parse("again")).add(path, again)
    assert layers_of(store, "again/latest") == stored
