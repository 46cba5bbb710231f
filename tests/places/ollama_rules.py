"""What Ollama's server does with the files of its store, told again: `Ollama`, with nothing of ggufmerge's.

Source: `getExistingName`, `DeleteHandler` and `CopyHandler` in Ollama's `server/routes.go`, `manifest/*.go`,
`createModel` in `server/create.go`, `PruneLayers` in `server/images.go`, `server/model_list_cache.go`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from ggufmerge.chat.templates import TEMPLATES
from ggufmerge.errors import FormatError
from ggufmerge.files import open_gguf
from tests.ollama_store import CONFIG, IMAGE, MANIFEST

GRACE = 3600  # seconds that a blob is left alone when nothing refers to it
_PARTS = (
    "[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}",
    "[A-Za-z0-9_][A-Za-z0-9_-]{0,79}",
    *["[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"] * 2,
)

Name = tuple[str, str, str, str]  # host, namespace, model, tag


class Refused(Exception):  # noqa: N818 - the server's no, not a fault
    """What the server answers instead: a status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass
class Manifest:
    """A manifest, and the digest that the server gives for it."""

    content: dict[str, Any]
    digest: str
    path: Path

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [*(self.content.get("layers") or []), *([self.content["config"]] if self.content.get("config") else [])]


@dataclass
class Ollama:
    """A server's view of a store.

    uid: the user it runs as. None stands for whoever runs the tests; another one may do to files of others what their
    modes say, even when the tests run as root, and owns what it makes itself.  own: what belongs to it.
    seed: of the order in which it happens to meet the manifests.
    """

    root: Path
    uid: int | None = None
    seed: int = 0
    own: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        for folder in ("blobs", "manifests"):
            self._make(self.root / folder)

    def start(self) -> None:
        """Start anew: unless a manifest is damaged, old blobs that nothing refers to go, and files that are none."""
        with suppress(Refused):
            self.manifests(strict=True)
            self._prune()
            self._make(self.root / "manifests")
            self._remove_empty(self.root / "manifests")

    def manifests(self, *, strict: bool = False) -> dict[Name, Manifest]:
        """All models, in random order. What cannot be listed is not there; what is no manifest is passed over.

        strict: that is an error instead.
        """
        paths = [self.root / "manifests"]
        self._make(paths[0])
        for _ in range(4):
            paths = [entry for folder in paths for entry in self._listed(folder)]
        self._chance.shuffle(paths)
        found = {}
        for path in paths:
            if not self._may(path.parent, 1):
                raise Refused(500, f"stat {path}: permission denied")
            name = path.relative_to(self.root / "manifests").parts
            if path.is_dir():
                continue
            try:
                if not all(map(re.fullmatch, _PARTS, name)):
                    raise ValueError(f"bad manifest name {name}")
                found[name] = self._manifest(name)
            except (ValueError, OSError) as error:
                if strict:
                    raise Refused(500, str(error)) from None
        return found

    def existing(self, name: Name) -> Name:
        """A name with each part as some model spells it, whatever the rest of that model's name is."""
        parts = list(name)
        for other in self.manifests():
            for at in range(4):
                if other[at].lower() == parts[at].lower():
                    parts[at] = other[at]
        return tuple(parts)

    def find(self, text: str) -> Manifest:
        """The model of a name, as `show`, `run` and `rm` look for it."""
        name = self.existing(parsed(text))
        try:
            return self._manifest(name)
        except FileNotFoundError:
            raise Refused(404, f"model '{shortest(name)}' not found") from None
        except (OSError, ValueError) as error:
            raise Refused(500, str(error)) from None

    def tags(self) -> list[dict[str, Any]]:
        """The models whose configuration can be read, the last changed one first."""
        found = []
        for name, manifest in self.manifests().items():
            with suppress(OSError, ValueError, KeyError):
                json.loads(self._read(self._blob(manifest.content["config"]["digest"])))
                changed = manifest.path.stat().st_mtime
                entry = {"name": shortest(name), "model": shortest(name), "digest": manifest.digest}
                found.append((int(changed), entry))
        return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]

    def show(self, text: str) -> dict[str, Any]:
        """Template, system prompt and so on of a model, and the metadata of its file without long lists."""
        manifest = self.find(text)
        by_kind: dict[str, list[str]] = {}
        for entry in manifest.content.get("layers") or []:
            kind = entry["mediaType"].removeprefix(IMAGE)
            if kind != "model":
                by_kind.setdefault(kind, []).append(self._read(self._blob(entry["digest"])).decode())
        (weights,) = (e for e in manifest.content["layers"] if e["mediaType"] == IMAGE + "model")
        info = _metadata(self._blob(weights["digest"]))
        return {
            "template": by_kind.get("template", ["{{ .Prompt }}"])[0],
            "system": by_kind.get("system", [""])[0],
            "license": "\n".join(by_kind.get("license", [])),
            "messages": json.loads(by_kind.get("messages", ["null"])[0]),
            "model_info": {k: v for k, v in info.items() if k not in ("general.name", "tokenizer.chat_template")},
        }

    def copy(self, source: str, target: str) -> None:
        """`ollama cp`."""
        old, new = (self.root.joinpath("manifests", *self.existing(parsed(name))) for name in (source, target))
        if old == new:
            return
        self._make(new.parent)
        if not old.is_file():
            raise Refused(404, f'model "{source}" not found')
        self._write(new, self._read(old))

    def delete(self, text: str) -> None:
        """`ollama rm`: the manifest, empty folders, and blobs that nothing else refers to."""
        manifest = self.find(text)
        self._unlink(manifest.path)
        self._remove_empty(self.root / "manifests")
        self._remove_layers(manifest)

    def create(self, body: dict[str, Any]) -> None:
        """`ollama create` of one GGUF file that was sent before, or of another model (FROM)."""
        name = self.existing(parsed(body["model"]))
        with_name = self.root.joinpath("manifests", *name)
        old = None
        with suppress(OSError, ValueError):
            old = self._manifest(name)
        layers: list[dict[str, Any]] = []
        config: dict[str, Any] = {"model_format": "gguf", "model_family": "llama"}
        if parent := body.get("from"):
            layers += self._layers_of(parent)
        for digest in body.get("files", {}).values():
            layers += [self._reused(digest, IMAGE + "model"), *self._detected(digest)]
        for kind in ("template", "system"):
            if body.get(kind):
                layers = [e for e in layers if e["mediaType"] != IMAGE + kind]
                layers.append(self._layer(body[kind].encode(), IMAGE + kind))
        layers += [self._layer(text.encode(), IMAGE + "license") for text in body.get("license", [])]
        layers = [e for e in layers if e["mediaType"] != IMAGE + "params"]
        layers.append(self._layer(_json(body.get("parameters", {})), IMAGE + "params"))
        if messages := body.get("messages"):
            layers.append(self._layer(_json(messages), IMAGE + "messages"))
        words = {key: body[key] for key in ("renderer", "parser", "requires") if body.get(key)}
        entry = self._layer(_json({**config, **words, "architecture": "amd64", "os": "linux"}), CONFIG)
        content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry, "layers": layers}
        self._make(with_name.parent)
        self._write(with_name, _json(content))
        if old is not None:
            self._remove_layers(old)

    def keep(self, data: Iterator[bytes], digest: str) -> None:
        """Take a blob that is sent."""
        temporary = self.root / "blobs" / f"sha256-{self._chance.getrandbits(40)}"
        digested = hashlib.sha256()
        with temporary.open("wb") as file:
            for piece in data:
                digested.update(piece)
                file.write(piece)
        found = "sha256:" + digested.hexdigest()
        if found != digest:
            temporary.unlink()
            raise Refused(400, f'digest mismatch, expected "{digest}", got "{found}"')
        temporary.replace(self._blob(digest))
        self.own.add(self._blob(digest))
        self._blob(digest).chmod(0o644)

    def has(self, digest: str) -> bool:
        """Whether a blob is there."""
        return self._blob(digest).exists()

    def _detected(self, digest: str) -> list[dict[str, Any]]:
        """The layers that the server adds when it knows the chat template of a file; this one knows ChatML's."""
        known = False
        with suppress(FormatError), open_gguf(self._blob(digest)) as file:  # tests send other things, too
            known = file.metadata.text("tokenizer.chat_template") == TEMPLATES["chatml"]
        if not known:
            return []
        stops = {"stop": ["<|im_start|>", "<|im_end|>"]}
        return [self._layer(b"{{ .Prompt }}", IMAGE + "template"), self._layer(_json(stops), IMAGE + "params")]

    def _layers_of(self, parent: str) -> list[dict[str, Any]]:
        """FROM another model: its name is taken letter by letter."""
        try:
            manifest = self._manifest(parsed(parent))
        except FileNotFoundError:
            raise Refused(200, "pull model manifest: file does not exist") from None
        return [self._reused(e["digest"], e["mediaType"]) for e in manifest.content["layers"]]

    def _layer(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        path = self._blob(digest)
        if not path.exists():
            self._write(path, data)
        self._touch(path)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def _reused(self, digest: str, media_type: str) -> dict[str, Any]:
        self._touch(self._blob(digest))
        return {"mediaType": media_type, "digest": digest, "size": self._blob(digest).stat().st_size}

    def _touch(self, path: Path) -> None:
        """Every layer that a model uses gets new times, which only the owner of a file may give."""
        if not self._owns(path):
            raise Refused(200, f"chtimes {path}: operation not permitted")
        os.utime(path)

    def _manifest(self, name: Name) -> Manifest:
        path = self.root.joinpath("manifests", *name)
        data = self._read(path)
        text = data.decode("utf-8", "replace")
        content, end = json.JSONDecoder().raw_decode(text)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: no manifest")
        return Manifest(
            content, hashlib.sha256(data[: _read_by_go(len(data), len(text[:end].encode()))]).hexdigest(), path
        )

    def _remove_layers(self, manifest: Manifest) -> None:
        used = {entry["digest"] for other in self.manifests().values() for entry in other.entries}
        for entry in manifest.entries:
            if entry["digest"] not in used and self._blob(entry["digest"]).exists():
                self._unlink(self._blob(entry["digest"]))

    def _prune(self) -> None:
        used = {self._blob(e["digest"]).name for m in self.manifests().values() for e in m.entries}
        for path in sorted((self.root / "blobs").iterdir()):
            if not path.is_dir() and path.name not in used and time.time() - path.stat().st_mtime >= GRACE:
                with suppress(Refused):
                    self._unlink(path)

    def _remove_empty(self, folder: Path) -> None:
        for entry in self._listed(folder):
            if entry.is_dir():
                self._remove_empty(entry)
        if not list(folder.iterdir()):
            folder.rmdir()

    def _blob(self, digest: str) -> Path:
        if not re.fullmatch("sha256[:-][0-9a-fA-F]{64}", digest):
            raise Refused(400, "invalid digest format")
        return self.root / "blobs" / digest.replace(":", "-")

    def _listed(self, folder: Path) -> list[Path]:
        with suppress(OSError):
            return list(folder.iterdir()) if self._may(folder, 4) else []
        return []

    def _read(self, path: Path) -> bytes:
        if self.uid in (None, 0) or not path.exists():
            return path.read_bytes()
        folders = [f for f in path.parents if f.is_relative_to(self.root)]
        if not all(self._may(folder, 1) for folder in folders) or not self._may(path, 4):
            raise PermissionError(f"open {path}: permission denied")
        return path.read_bytes()

    def _write(self, path: Path, data: bytes) -> None:
        if not self._may(path if path.exists() else path.parent, 2):
            raise Refused(200, f"open {path}: permission denied")
        if not path.exists():
            self.own.add(path)
        path.write_bytes(data)
        path.chmod(0o644)

    def _unlink(self, path: Path) -> None:
        if not self._may(path.parent, 2):
            raise Refused(500, f"remove {path}: permission denied")
        path.unlink()

    def _make(self, folder: Path) -> None:
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                path.mkdir()
                path.chmod(0o755)
                self.own.add(path)

    def _owns(self, path: Path) -> bool:
        return self.uid in (None, 0, path.stat().st_uid) or path in self.own

    def _may(self, path: Path, bit: int) -> bool:
        """Whether the server may read (4), write (2) or enter (1)."""
        if self.uid in (None, 0):
            return True
        mode = path.stat().st_mode
        return bool((mode >> 6 if self._owns(path) else mode) & bit)


def parsed(text: str) -> Name:
    """The parts of a name, with the defaults."""
    rest, tag = text, "latest"
    if rest.rfind(":") > rest.rfind("/"):
        rest, _, tag = rest.rpartition(":")
    parts = rest.rsplit("/", 2)
    host, namespace, model = ["registry.ollama.ai", "library"][: 3 - len(parts)] + parts
    return host, namespace, model, tag


def shortest(name: Name) -> str:
    """A name as the server shows it."""
    host, namespace, model, tag = name
    if host.lower() != "registry.ollama.ai":
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace.lower() == "library" else f"{namespace}/{model}:{tag}"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _read_by_go(size: int, end: int) -> int:
    """How many bytes of a file Go's json.Decoder has read when it has found a value that ends at `end`."""
    room = 512
    while min(room, size) < end:
        room = 2 * room + 512
    return min(room, size)


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file; long lists are empty."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF" or path.stat().st_size < 64:
            raise Refused(500, "invalid file magic")
    found: dict[str, Callable[[], Any] | Any] = {}
    for key, value in gguf.GGUFReader(path).fields.items():
        content = value.contents()
        found[key] = [] if isinstance(content, list) and len(content) > 5 else content
    return found
