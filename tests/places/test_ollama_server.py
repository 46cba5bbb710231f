"""Models sent to an Ollama server, over real HTTP, to a server of our own that answers as Ollama does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ggufmerge.errors import PlanError
from ggufmerge.places.ollama.destination import destination, install
from ggufmerge.places.ollama.publish import Store
from ggufmerge.places.ollama.server import Server, server_url
from ggufmerge.places.ollama.store import OllamaSettings
from tests.ollama_store import add_model, snapshot
from tests.places.ollama_server import OllamaServer, ollama_server
from tests.tiny import write_tiny_llama

SETTINGS = OllamaSettings(
    template='{{ .Prompt }}\n"',
    system="Be brief.",
    parameters={"stop": ["</s>"], "num_ctx": 8192},
    licenses=("MIT",),
    messages=({"role": "user", "content": "Hi"},),
    renderer="r",
    parser="p",
    requires="0.14.0",
)


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    """A server that OLLAMA_HOST leads to, without a store here."""
    with ollama_server() as running:
        monkeypatch.setenv("OLLAMA_HOST", running.url)
        yield running


def test_a_model_is_sent_and_created(server: OllamaServer, model: Path) -> None:
    """The blob once, then the model with everything its Modelfile would say."""
    done = install(model, "someone/merged:v1", SETTINGS)
    assert server.requests[-4:] == [
        f"HEAD /api/blobs/{done.digest}",
        f"POST /api/blobs/{done.digest}",
        "POST /api/create",
        "GET /api/tags",
    ]
    assert server.blobs == {done.digest: model.read_bytes()}
    assert (done.name, done.place, done.nbytes) == ("someone/merged:v1", server.url, model.stat().st_size)
    assert server.models["someone/merged:v1"] == {
        "model": "someone/merged:v1",
        "files": {"merged.gguf": done.digest},
        "template": '{{ .Prompt }}\n"',
        "system": "Be brief.",
        "parameters": {"stop": ["</s>"], "num_ctx": 8192},
        "license": ["MIT"],
        "messages": [{"role": "user", "content": "Hi"}],
        "renderer": "r",
        "parser": "p",
        "requires": "0.14.0",
        "stream": True,
    }


def test_what_the_server_has_is_not_sent_again(server: OllamaServer, model: Path) -> None:
    """The same weights under a second name."""
    first = install(model, "one")
    server.requests.clear()
    install(model, "two")
    assert f"POST /api/blobs/{first.digest}" not in server.requests
    assert list(server.models) == ["one:latest", "two:latest"]


def test_a_taken_name(server: OllamaServer, model: Path) -> None:
    """In any case, unless it may be overwritten; nothing is sent before that is known."""
    add_model(server.ollama.root, "Merged/latest", b"GGUF other")
    with pytest.raises(PlanError, match=r"Merged:latest: http://127\S+ has a model of this name: use --overwrite"):
        destination("merged")
    assert server.requests == ["GET /api/tags"]
    assert install(model, "merged", overwrite=True).name == "Merged:latest"
    assert "Merged:latest" in server.models


@pytest.mark.parametrize(
    ("trouble", "complaint"),
    [
        ("no room", r"no space left on device \(HTTP 500\)"),
        ("refused", r"invalid digest format \(HTTP 400\)"),
        ("garbled", r"digest mismatch, expected .* \(HTTP 400\)"),
        ("invalid", r"did not create merged:latest: failed to validate GGUF with llama-quantize without compat"),
        ("silent", r"stopped before merged:latest was created: look at the server's log"),
        ("hangs up", r"no answer from an Ollama server|stopped before"),
        ("not ollama", r"this is no Ollama server: check OLLAMA_HOST"),
    ],
)
def test_what_goes_wrong_is_told(server: OllamaServer, model: Path, trouble: str, complaint: str) -> None:
    """What the server said, in one line; the file stays, and the same call works when the trouble is over."""
    before = model.read_bytes()
    server.troubles.add(trouble)
    with pytest.raises(PlanError, match=complaint) as caught:
        install(model, "merged")
    assert len(str(caught.value).splitlines()) == 1
    assert server.url in str(caught.value)
    assert model.read_bytes() == before
    server.troubles.clear()
    install(model, "merged")
    assert "merged:latest" in server.models


def test_large_files_stream(server: OllamaServer, tmp_path: Path) -> None:
    """Read and sent a megabyte at a time: 96 MB go through a few."""
    big = tmp_path / "big.gguf"
    write_tiny_llama(big, layers=1)
    with big.open("r+b") as file:  # behind the tensors, where nobody looks
        file.truncate(96 << 20)
    process, pieces, peak = psutil.Process(), [], 0
    before = process.memory_info().rss

    def advance(nbytes: int) -> None:
        nonlocal peak
        pieces.append(nbytes)
        peak = max(peak, process.memory_info().rss)

    done = install(big, "big", advance=advance)
    assert "big:latest" in server.models
    assert done.nbytes == 96 << 20
    assert sum(pieces) == 2 * done.nbytes, "digested, then sent"
    assert max(pieces) <= 1 << 20
    assert peak - before < 32 << 20


def test_an_address_may_have_a_path(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers behind a proxy."""
    with ollama_server("/behind/proxy") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url + "/")
        install(model, "merged")
        assert "merged:latest" in server.models


def test_when_the_server_is_used(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When OLLAMA_HOST names another machine or port, and when the store cannot be written; else the store."""
    assert isinstance(destination("m"), Store)
    for here in ("0.0.0.0", "localhost:11434", "[::1]", "127.0.0.1:11434"):
        monkeypatch.setenv("OLLAMA_HOST", here)
        assert isinstance(destination("m"), Store)
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert isinstance(destination("m"), Server)
        monkeypatch.delenv("OLLAMA_HOST")
        monkeypatch.setattr("ggufmerge.places.ollama.server._PORT", server.server_port)
        monkeypatch.setattr(
            "ggufmerge.places.ollama.destination.obstacle", lambda root, name: f"{root} is not writable"
        )
        before = snapshot(store)
        assert isinstance(destination("m"), Server)
        install(model, "m")
        assert snapshot(store) == before
        assert "m:latest" in server.models


def test_no_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says where it was looked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    with pytest.raises(
        PlanError, match=rf"http://127\.0\.0\.1:{port}: no answer from an Ollama server \(.+\): start it"
    ):
        destination("m")


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("box", "http://box:11434"),
        ("box:80", "http://box:80"),
        (":5000", "http://127.0.0.1:5000"),
        ("http://box", "http://box:80"),
        ("https://box", "https://box:443"),
        ("https://box:11434/ollama/", "https://box:11434/ollama"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:80", "http://[::1]:80"),
        ("::", "http://127.0.0.1:11434"),
        ("box:99999", "http://box:11434"),
        ("ollama.com", "https://ollama.com:443"),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(value: str, url: str) -> None:
    """Ports that depend on the scheme, addresses to listen at that are none to connect to."""
    assert server_url(value) == url


def test_addresses_that_are_none() -> None:
    """Are refused with the variable's name."""
    with pytest.raises(PlanError, match="OLLAMA_HOST is 'ftp://box', which is not an address"):
        server_url("ftp://box")
