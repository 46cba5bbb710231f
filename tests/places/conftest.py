from __future__ import annotations

from pathlib import Path

import pytest

from ggufmerge.places.ollama import store as ollama
from tests.tiny import write_tiny_llama


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    write_tiny_llama(path, layers=1, embed=32, ff=32, tokenizer="bpe", metadata={"general.license": "apache-2.0"})
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home without Ollama, on a machine without Ollama."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for name in ("OLLAMA_MODELS", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ollama, "SERVICE_ROOT", tmp_path / "no service")
    return home


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that OLLAMA_MODELS leads to."""
    root = home / "models"
    root.mkdir()
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    return root
