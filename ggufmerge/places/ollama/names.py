"""Names of Ollama's models, and how a store spells them.

A name is `[host/][namespace/]model[:tag]`. Ollama keeps the case of every part but ignores it when it looks a name up:
each part is replaced by the spelling that it finds in the name of any model of the store, whatever the other parts of
that name are, in the order of a hash map. So a store must have one spelling of each part: with two, every model that
has either of them is found only sometimes. Source: `types/model/name.go`, `getExistingName` in `server/routes.go`,
`Manifests` in `manifest/manifest.go`.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufmerge.errors import PlanError
from ggufmerge.files.small import read_small
from ggufmerge.text import quoted

DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
MAX_MANIFEST = 1 << 20  # bytes; that of a model with many layers has a few thousand
PARTS = ("host", "namespace", "name", "tag")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_LONGEST = {"host": 350, "namespace": 80, "name": 80, "tag": 80}  # letters, as the patterns say
_ALLOWED = (_HOST, _NAMESPACE, _PART, _PART)


@dataclass(frozen=True, order=True)
class OllamaName:
    """The name of a model: `[host/][namespace/]model[:tag]`, with Ollama's defaults filled in. Case is kept, though
    Ollama ignores it when it compares names.
    """

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> OllamaName:
        """PlanError says which part Ollama would not take."""
        rest, tag = text.strip().replace("\\", "/"), DEFAULT_TAG
        if rest.rfind(":") > rest.rfind("/"):
            rest, _, tag = rest.rpartition(":")
        parts = rest.rsplit("/", 2)
        host, namespace, model = [DEFAULT_HOST, DEFAULT_NAMESPACE][: 3 - len(parts)] + parts
        name = cls(host, namespace, model, tag)
        for what, part, allowed in zip(PARTS, name.parts, _ALLOWED, strict=True):
            if not allowed.fullmatch(part):
                most = _LONGEST[what]
                if len(part) > most and allowed.fullmatch(part[:most]):
                    why = f"its {what} has {len(part)} letters, and Ollama takes {most}"
                else:
                    why = f"its {what} is {quoted(part)}; write [host/][namespace/]model[:tag] with letters, digits, "
                    why += "_, - and ."
                raise PlanError(f"{quoted(text)} cannot be the name of an Ollama model: {why}")
        return name

    @property
    def parts(self) -> tuple[str, str, str, str]:
        return (self.host, self.namespace, self.model, self.tag)

    @property
    def folded(self) -> OllamaName:
        """The name in lower case: equal for names that are the same to Ollama."""
        return OllamaName(*(part.lower() for part in self.parts))

    @property
    def is_valid(self) -> bool:
        """Whether Ollama takes every part."""
        return all(allowed.fullmatch(part) for part, allowed in zip(self.parts, _ALLOWED, strict=True))

    def __str__(self) -> str:
        """The short form: `llama3.2:3b`, `hf.co/user/repo:Q4_K_M`."""
        text = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{text}"
        return text if self.namespace.lower() == DEFAULT_NAMESPACE else f"{self.namespace}/{text}"


def path_of(root: Path, name: OllamaName) -> Path:
    """The manifest of a name that is spelled as in the store."""
    return root.joinpath("manifests", *name.parts)


def stored(root: Path) -> Iterator[OllamaName]:
    """The names of all files that lie where manifests do."""
    return _files(root / "manifests", ())


def visible(root: Path) -> dict[OllamaName, bytes]:
    """The models that Ollama sees in a store, with the bytes of their manifests.

    It passes over names that are none and over manifests that cannot be read, and so does this.
    """
    found = {}
    for name in stored(root):
        with contextlib.suppress(OSError, ValueError):
            data = read_small(path_of(root, name), MAX_MANIFEST)
            if name.is_valid and _is_manifest(data):
                found[name] = data
    return found


def lookup(root: Path, name: OllamaName) -> OllamaName | None:
    """The name in the store that is the same to Ollama, as it is spelled there; None when there is none.

    Among several that differ in case only, one that Ollama sees is preferred, then the spelling that was asked for. A
    manifest that is damaged is found when nothing else is. PermissionError when the folders may not be looked into.
    """
    same = list(_files(root / "manifests", name.folded.parts))
    if not same:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            # a folder that cannot be listed may still let through whoever knows what is in it
            return None if stat.S_ISDIR(path_of(root, name).stat().st_mode) else name
        return None
    if len(same) == 1:
        return same[0]
    seen = visible(root)
    return min(same, key=lambda other: (other not in seen, other != name, other))


def spelled(name: OllamaName, known: Iterable[OllamaName], root: Path | None = None) -> OllamaName:
    """A name as a new model should be spelled beside the models `known`, so that no part has two spellings.

    Spellings on the name's own path go first, then the most usual one, then those of folders of the store `root`, then
    Ollama's own spelling of its defaults.
    """
    known = sorted(known)
    nearest = max(known, key=lambda other: (_common(name, other), _equal(name, other)), default=None)
    found = list(nearest.parts[: _common(name, nearest)]) if nearest is not None else []
    for at, part in list(enumerate(name.parts))[len(found) :]:
        texts = list(spellings(name, known, at))
        if not texts and root is not None:
            texts = [t for t in _entries(root.joinpath("manifests", *found)) if t.lower() == part.lower()]
        texts = texts or [d for d in (DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG) if d == part.lower()]
        found.append(texts[0] if texts else part)
    return OllamaName(*found)


def spellings(name: OllamaName, known: Iterable[OllamaName], at: int) -> dict[str, list[OllamaName]]:
    """How the models `known` spell part `at` (0 to 3) of a name, and which do; the most usual spelling first."""
    found: dict[str, list[OllamaName]] = {}
    for other in known:
        if other.parts[at].lower() == name.parts[at].lower():
            found.setdefault(other.parts[at], []).append(other)
    order = sorted(found, key=lambda text: (-len(found[text]), text != name.parts[at], text))
    return {text: sorted(found[text]) for text in order}


def _common(name: OllamaName, other: OllamaName) -> int:
    """How many parts, from the first one on, are the same to Ollama."""
    pairs = zip(name.folded.parts, other.folded.parts, strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(PARTS))


def _equal(name: OllamaName, other: OllamaName) -> list[bool]:
    """Which parts are spelled the same."""
    return [a == b for a, b in zip(name.parts, other.parts, strict=True)]


def _files(folder: Path, wanted: Sequence[str], before: tuple[str, ...] = ()) -> Iterator[OllamaName]:
    """The names of all files four folders deep, in order; of those with the parts `wanted` in lower case if given."""
    for text in _entries(folder):
        if wanted and text.lower() != wanted[len(before)]:
            continue
        path, parts = folder / text, (*before, text)
        if len(parts) < len(PARTS):
            yield from _files(path, wanted, parts)
        elif not _is_folder(path):
            yield OllamaName(*parts)


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _entries(folder: Path) -> list[str]:
    """The names in a folder, sorted; none when it cannot be read."""
    with contextlib.suppress(OSError):
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return []


def _is_manifest(data: bytes) -> bool:
    """Whether Ollama can decode a manifest: what stands behind the first value does not count."""
    try:
        content: Any = json.JSONDecoder().raw_decode(data.decode("utf-8", "replace").lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return content is None
    layers = content.get("layers")
    entries = [content.get("config"), *(layers if isinstance(layers, list) else [])]
    return isinstance(layers, (list, type(None))) and all(isinstance(e, (dict, type(None))) for e in entries)
