"""Against trees that a real Ollama has written (see `golden_ollama/README.md`): what we install is what it would have
made, byte for byte, and what it made is read as it was meant.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ggufmerge.places.ollama.destination import destination, install
from ggufmerge.places.ollama.publish import Store
from ggufmerge.places.ollama.store import OllamaName, OllamaSettings, names
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import find
from ggufmerge.recipe import ModelReference
from tests.ollama_store import CONFIG, IMAGE

GOLDEN = json.loads((Path(__file__).parent / "golden_ollama" / "trees.json").read_text(encoding="utf-8"))
CASES: dict[str, Any] = GOLDEN["cases"]
BLOBS = {
    digest: zlib.decompress(base64.b64decode(blob["zlib"])) if "zlib" in blob else blob["text"].encode()
    for digest, blob in GOLDEN["blobs"].items()
}
MODELS = [(case, model["name"]) for case, tree in CASES.items() for model in tree["tags"]]
# whole by themselves: no adapters, and nothing that a manifest says to come `from` another model
OWN = [(c, n) for c, n in MODELS if c != "adapter" and n not in ("child:latest", "grandchild:latest")]

WITH_MODES = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


def test_blobs_are_what_their_names_say() -> None:
    """The record itself is whole: every digest is that of its bytes, and every manifest's layers are there."""
    for digest, data in BLOBS.items():
        assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    for tree in CASES.values():
        for text in tree["manifests"].values():
            manifest = json.loads(text)
            layers = [manifest["config"], *manifest["layers"]]
            assert {layer["digest"] for layer in layers} <= set(tree["blobs"])
            assert all(layer["size"] == len(BLOBS[layer["digest"]]) for layer in layers)


@pytest.mark.parametrize("case", ["plain", "full", "odd", "named"])
def test_the_same_settings_make_the_same_model(case: str, store: Path, tmp_path: Path) -> None:
    """Manifest, configuration and every layer have the bytes that `ollama create` gives them."""
    (step,), ((path, text),) = CASES[case]["steps"], CASES[case]["manifests"].items()
    install(_weights(text, tmp_path), step["create"], _asked(step))
    assert _layers(store, path) == _golden_layers(text)
    assert (store / path).read_bytes() == text.encode()


@pytest.mark.parametrize(("case", "name"), OWN)
def test_what_is_taken_over_is_what_it_was(case: str, name: str, store: Path, tmp_path: Path) -> None:
    """A model of Ollama's, read as a source and installed again, is the same model, byte for byte."""
    text = _manifest(case, name)
    settings = _source(case, name, tmp_path / "theirs").settings
    install(_weights(text, tmp_path), "again", settings)
    path = "manifests/registry.ollama.ai/library/again/latest"
    assert _layers(store, path) == _golden_layers(text)
    assert (store / path).read_bytes() == text.encode()


def test_a_replaced_model_is_the_new_one(store: Path, tmp_path: Path) -> None:
    """Nothing of the old model's settings stays."""
    for step in CASES["overwritten"]["steps"]:
        ((path, text),) = CASES["overwritten"]["manifests"].items()
        install(_weights(text, tmp_path), step["create"], _asked(step), overwrite=True)
    assert (store / path).read_bytes() == text.encode()


def test_names_take_the_spelling_that_the_store_has(store: Path, tmp_path: Path) -> None:
    """Each part of a name is spelt as in any model of the store that has it in other case, wherever that model is."""
    tree = CASES["case"]
    weights = _weights(_manifest("case", "Alpha:Other"), tmp_path)
    steps = [step for step in tree["steps"] if "create" in step]
    said = {install(weights, step["create"], _asked(step), overwrite=True).name for step in steps}
    (copied,) = (_path(step["cp"][1]) for step in tree["steps"] if "cp" in step)  # that is not our doing
    theirs = {p: t for p, t in tree["manifests"].items() if p.lower() != f"manifests/{copied}".lower()}
    ours = {p.relative_to(store).as_posix(): p.read_text() for p in (store / "manifests").rglob("*") if p.is_file()}
    assert sorted(ours) == sorted(theirs)
    assert ours == theirs
    assert {f"manifests/{_path(name)}" for name in said} == set(theirs), "the names we tell are those it has"


@WITH_MODES
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o027, 0o077])
def test_modes_are_ollamas_whatever_ours_are(
    umask: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service under another user can read every folder, blob and manifest, and nobody else can write them."""
    root = home / "new" / "models"
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    (step,), ((_, text),) = CASES["full"]["steps"], CASES["full"]["manifests"].items()
    with _umask(umask):
        place = destination(step["create"])
        assert isinstance(place, Store)
        built = place.workplace()
        built.write_bytes(_weights(text, tmp_path).read_bytes())
        place.add(built, _asked(step), move=True)
        built.unlink(missing_ok=True)
    modes = CASES["full"]["modes"]
    files = {str(p.relative_to(root)): _mode(p) for p in root.rglob("*") if p.is_file()}
    folders = {str(p.relative_to(root)): _mode(p) for p in (root, *root.rglob("*")) if p.is_dir()}
    assert {name: mode for name, mode in files.items() if mode not in modes["files"]} == {}
    assert {name: mode for name, mode in folders.items() if mode not in modes["folders"]} == {}


@WITH_MODES
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o444])
def test_a_file_that_stays_can_be_read_in_the_store(mode: int, store: Path, tmp_path: Path) -> None:
    """Whatever its mode is: a blob that the server cannot read is a model that it does not have."""
    text = _manifest("plain", "plain")
    path = _weights(text, tmp_path)
    path.chmod(mode)
    install(path, "plain")
    assert {_mode(p) for p in (store / "blobs").iterdir() if p.stat().st_mode & 0o444 != 0o444} == set()


@pytest.mark.parametrize(("case", "name"), MODELS)
def test_sources_are_what_ollama_shows(case: str, name: str, tmp_path: Path) -> None:
    """Weights, adapters and all settings of a model, as /api/show tells them and as its layers hold them."""
    located, shown, layers = _source(case, name, tmp_path), CASES[case]["show"][name], _golden_layers_of(case, name)
    settings = located.settings
    assert settings is not None
    assert [located.path.read_bytes()] == layers["model"]
    assert [path.read_bytes() for path in located.adapters] == layers.get("adapter", [])
    assert (settings.template or "{{ .Prompt }}") == shown["template"]
    assert settings.system == shown.get("system")
    assert "\n".join(settings.licenses) == shown.get("license", "")
    assert list(settings.messages) == shown.get("messages", [])
    assert settings.requires == shown.get("requires")
    assert [dict(settings.parameters)] == [json.loads(data) for data in layers.get("params", [b"{}"])]
    config = json.loads(layers["config"][0])
    assert (settings.renderer, settings.parser) == (config.get("renderer"), config.get("parser"))


@pytest.mark.parametrize("case", ["plain", "full", "odd", "adapter", "named", "overwritten"])
def test_what_was_asked_of_ollama_is_read(case: str, tmp_path: Path) -> None:
    """The settings of the last Modelfile come back whole."""
    step = CASES[case]["steps"][-1]
    assert _source(case, step["create"], tmp_path).settings == _asked(step)


@pytest.mark.parametrize("case", CASES)
def test_a_store_has_the_models_that_ollama_lists(case: str, tmp_path: Path) -> None:
    """The same names, and the digest that Ollama tells for one is that of its manifest."""
    root = _tree(case, tmp_path)
    tags = CASES[case]["tags"]
    assert sorted(names(root)) == sorted(model["name"] for model in tags)
    for model in tags:
        manifest = root / "manifests" / _path(model["name"])
        assert model["digest"] == hashlib.sha256(manifest.read_bytes()).hexdigest()


@pytest.mark.parametrize(("case", "name"), [("chat", "chat"), ("adapter", "tuned:v1"), ("derived", "child")])
def test_sources_can_be_opened(case: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as Ollama writes them anew, with keys and tensors in an order of its own."""
    monkeypatch.setenv("OLLAMA_MODELS", str(_tree(case, tmp_path)))
    source = open_source(ModelReference.parse(f"ollama:{name}"))
    assert source.file.architecture == "llama"
    assert source.file.tensors["token_embd.weight"].shape == (320, 32)


def _asked(step: dict[str, Any]) -> OllamaSettings:
    asked = step.get("asked", {})
    lists = {key: tuple(asked[key]) for key in ("licenses", "messages") if key in asked}
    return OllamaSettings(**asked | lists)


def _tree(case: str, folder: Path) -> Path:
    """A store as Ollama left it."""
    root = folder / "tree"
    (root / "blobs").mkdir(parents=True)
    for digest in CASES[case]["blobs"]:
        (root / "blobs" / digest.replace(":", "-")).write_bytes(BLOBS[digest])
    for path, text in CASES[case]["manifests"].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text.encode())
    return root


def _source(case: str, name: str, folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_MODELS", str(_tree(case, folder)))
        return find(f"ollama:{name}")


def _path(name: str) -> str:
    return "/".join(OllamaName.parse(name).parts)


def _manifest(case: str, name: str) -> str:
    text: str = CASES[case]["manifests"][f"manifests/{_path(name)}"]
    return text


def _weights(manifest: str, folder: Path) -> Path:
    """The file of a model as Ollama wrote it, under a name of ours."""
    path = folder / "ours.gguf"
    path.unlink(missing_ok=True)
    (digest,) = (e["digest"] for e in json.loads(manifest)["layers"] if e["mediaType"] == IMAGE + "model")
    path.write_bytes(BLOBS[digest])
    return path


def _golden_layers(manifest: str) -> dict[str, list[bytes]]:
    return _by_kind(manifest, BLOBS.__getitem__)


def _golden_layers_of(case: str, name: str) -> dict[str, list[bytes]]:
    return _golden_layers(_manifest(case, name))


def _layers(root: Path, path: str) -> dict[str, list[bytes]]:
    return _by_kind((root / path).read_text("utf-8"), lambda d: (root / "blobs" / d.replace(":", "-")).read_bytes())


def _by_kind(manifest: str, content: Any) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for layer in [(parsed := json.loads(manifest))["config"], *parsed["layers"]]:
        kind = "config" if layer["mediaType"] == CONFIG else layer["mediaType"].removeprefix(IMAGE)
        found.setdefault(kind, []).append(content(layer["digest"]))
    return found


def _mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o7777:04o}"


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
