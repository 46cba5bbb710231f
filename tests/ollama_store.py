"""Ollama stores made by hand, from the documented layout and with nothing of ggufmerge's: golden trees for tests, and a
look at what a store holds that trusts nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGE = "application/vnd.ollama.image."
CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DEFAULTS = "registry.ollama.ai/library"


def add_blob(root: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Put bytes into a store; returns the entry of a manifest for them."""
    digest = hashlib.sha256(data).hexdigest()
    folder = root / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"sha256-{digest}").write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def add_model(
    root: Path,
    name: str,
    weights: bytes | None,
    layers: Sequence[tuple[str, str | bytes]] = (),
    config: dict[str, Any] | None = None,
) -> Path:
    """Put a model into a store, as `ollama pull` does; returns its manifest.

    name: the path below `manifests`, registry and all unless it is one of the library, such as "llama3.2/3b".
    layers: (kind, content) of what comes with the weights.
    """
    path = root / "manifests" / (f"{DEFAULTS}/{name}" if name.count("/") == 1 else name)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"model_format": "gguf", "model_family": "llama", "architecture": "amd64", "os": "linux"}
    entries = [("model", weights)] if weights is not None else []
    entries += [(kind, text.encode() if isinstance(text, str) else text) for kind, text in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": add_blob(root, json.dumps(known | (config or {})).encode(), CONFIG),
        "layers": [add_blob(root, data, IMAGE + kind) for kind, data in entries],
    }
    path.write_text(json.dumps(manifest) + "\n")
    return path


def check_store(root: Path) -> None:
    """Assert that Ollama could run every model: manifests are whole, blobs are there and are what their names say."""
    for path in (root / "manifests").rglob("*"):
        if path.is_dir():
            continue
        assert len(path.relative_to(root / "manifests").parts) == 4, f"{path}: a stray file stops Ollama's clean-up"
        manifest = json.loads(path.read_text())
        assert manifest["schemaVersion"] == 2
        assert manifest["mediaType"] == MANIFEST
        assert manifest["config"]["mediaType"] == CONFIG
        for layer in [manifest["config"], *manifest["layers"]]:
            blob = root / "blobs" / layer["digest"].replace(":", "-")
            assert blob.stat().st_size == layer["size"]
            assert "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest() == layer["digest"]
    for blob in (root / "blobs").iterdir():
        name = blob.name.removeprefix("sha256-")
        if len(name) == 64 and name != blob.name:
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == name, f"{blob}: not what its name says"


def layers_of(root: Path, name: str) -> dict[str, list[bytes]]:
    """Kind -> contents, and `config`, of a model of a store."""
    manifest = json.loads((root / "manifests" / (f"{DEFAULTS}/{name}" if name.count("/") == 1 else name)).read_text())
    found: dict[str, list[bytes]] = {}
    for layer in [manifest["config"], *manifest["layers"]]:
        kind = "config" if layer["mediaType"] == CONFIG else layer["mediaType"].removeprefix(IMAGE)
        found.setdefault(kind, []).append((root / "blobs" / layer["digest"].replace(":", "-")).read_bytes())
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
