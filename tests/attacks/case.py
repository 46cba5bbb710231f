"""One case: files, and a command that reads them. Cases are made from a seed, or read from a file.

A case file is JSON. An input is kept as its difference to a valid file of `seeds.py`, with a checksum, so that a case
takes a few hundred bytes, or whole where that is shorter.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import zlib
from pathlib import Path
from typing import Any, Literal

from tests.attacks import seeds

OPEN = "<open>"  # instead of a command: open the file with the library, and compare with llama.cpp


@dataclasses.dataclass(frozen=True)
class Special:
    """Something that is no regular file. `value`: where a link leads, or the size of a file of zeros."""

    kind: Literal["link", "pipe", "folder", "zeros"]
    value: str = ""


@dataclasses.dataclass
class Case:
    """command: arguments of ggufmerge, with paths relative to the folder of the case.  files: by path.

    origins: the valid files that inputs were made from.
    interrupt: stop the command after that many tensors first, change what it left behind as `leftovers` says (a seed,
    0 for not at all), and then give the same command again.
    refuse: the command must end with an error.
    same: the result must have the bytes that the command writes when nothing lies beside its output.
    """

    kind: str
    command: list[str]
    files: dict[str, bytes | Special] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    interrupt: int = 0
    leftovers: int = 0
    refuse: bool = False
    same: bool = False
    name: str = ""  # how to make it again: KIND/SEED/NUMBER

    def add(self, path: str, origin: str, data: bytes | None = None) -> str:
        """Add a valid file, or `data` that was made from it; returns the path."""
        self.files[path] = seeds.seed(origin) if data is None else data
        self.origins[path] = origin
        return path

    def put(self, path: str, data: bytes | str | Special) -> str:
        self.files[path] = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        return path

    def write(self, folder: Path) -> None:
        """Write the inputs into an empty folder."""
        for path, content in self.files.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            elif content.kind == "link":
                place.symlink_to(content.value)
            elif content.kind == "pipe":
                os.mkfifo(place)
            elif content.kind == "folder":
                place.mkdir(exist_ok=True)
            else:
                with place.open("wb") as file:
                    file.truncate(int(content.value))

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"kind": self.kind, "name": self.name, "command": self.command}
        for key in ("interrupt", "leftovers", "refuse", "same"):
            if getattr(self, key):
                out[key] = getattr(self, key)
        out["files"] = {path: _packed(data, self.origins.get(path)) for path, data in self.files.items()}
        return out

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Case:
        """ValueError when a valid file that the case was made from has changed since."""
        case = cls(facts["kind"], list(facts["command"]), name=facts.get("name", ""))
        for key in ("interrupt", "leftovers", "refuse", "same"):
            setattr(case, key, facts.get(key, getattr(case, key)))
        for path, entry in facts["files"].items():
            case.files[path] = _unpacked(path, entry)
            if "seed" in entry:
                case.origins[path] = entry["seed"]
        return case

    def save(self, path: Path, note: str = "") -> None:
        """note: what the case once did, for people."""
        facts = {"note": note} | self.to_json() if note else self.to_json()
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Case:
        case = cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        case.name = case.name or path.name
        return case


def _packed(data: bytes | Special, origin: str | None) -> dict[str, Any]:
    if isinstance(data, Special):
        return {"special": data.kind, "value": data.value}
    whole = _content(data)
    if origin is None:
        return whole
    old = seeds.seed(origin)
    if data == old:
        return {"seed": origin, "crc32": zlib.crc32(data)}
    changes = [{"at": at, "remove": removed, **_content(new)} for at, removed, new in differences(old, data)]
    made = {"seed": origin, "crc32": zlib.crc32(data), "changes": changes}
    return min((made, whole), key=lambda entry: len(json.dumps(entry)))


def _unpacked(path: str, entry: dict[str, Any]) -> bytes | Special:
    if "special" in entry:
        return Special(entry["special"], entry["value"])
    if "seed" not in entry:
        return _from_content(entry)
    data = seeds.seed(entry["seed"])
    for change in reversed(entry.get("changes", [])):
        data = data[: change["at"]] + _from_content(change) + data[change["at"] + change["remove"] :]
    if zlib.crc32(data) != entry["crc32"]:
        raise ValueError(f"{path}: the seed {entry['seed']} has changed since this case was saved; make it anew")
    return data


def _content(data: bytes) -> dict[str, str]:
    """Bytes as a text if they are one, else packed."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(text) < 4000 and all(c.isprintable() or c in "\n\t" for c in text):
        return {"text": text}
    return {"zlib": base64.b64encode(zlib.compress(data, 9)).decode()}


def _from_content(entry: dict[str, str]) -> bytes:
    return entry["text"].encode() if "text" in entry else zlib.decompress(base64.b64decode(entry["zlib"]))


def differences(old: bytes, new: bytes) -> list[tuple[int, int, bytes]]:
    """How to make new of old: (place, bytes to take out, bytes to put in), from first to last."""
    start = _common(old, new)
    limit = min(len(old), len(new)) - start
    end = _common(old[len(old) - limit :][::-1], new[len(new) - limit :][::-1])
    if len(old) != len(new):
        return [(start, len(old) - start - end, new[start : len(new) - end])]
    changes: list[tuple[int, int, bytes]] = []
    at = start
    while at < len(new) - end:  # runs of other bytes with less than 16 equal ones between them
        stop, quiet = at, 0
        while stop < len(new) - end and quiet < 16:
            quiet = quiet + 1 if old[stop] == new[stop] else 0
            stop += 1
        changes.append((at, stop - quiet - at, new[at : stop - quiet]))
        at = stop + _common(old[stop:], new[stop:])
    return changes


def _common(a: bytes, b: bytes) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
