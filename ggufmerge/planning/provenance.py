"""What a result says of how it was made: the keys `ggufmerge.*`, all about this result.

A parent's own keys are never inherited: its recipe, settings and digests are true of the parent only. They are kept as
lineage, `ggufmerge.lineage.N.*`, an entry for each ancestor that ggufmerge made: parents first, then theirs. `.file` is
what the ancestor's file was called, `.into` the number of the entry whose model it went into (none: this file).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ggufmerge import keys
from ggufmerge.formats.stored import StoredFile
from ggufmerge.sources import Source

DIGEST_PLACEHOLDER = "0" * 64
AUTO = "stochastic where nearest loses the change"  # the rounding where nobody asked for one
MAX_ANCESTORS = 32
MAX_TEXT = 1 << 10  # bytes of a name and the like; longer ones are left out
MAX_RECIPE = 1 << 14  # bytes; of a longer recipe only the digest is kept
MAX_LINEAGE = 1 << 18  # bytes of texts in all entries together

_NESTED = re.compile(re.escape(keys.LINEAGE) + r"(0|[1-9]\d{0,3})\.(.+)", re.ASCII)
_SOURCE = re.compile(r"source\.(0|[1-9]\d?)\.(file|sha256)", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEXTS = {"file", "name", "version", "options", "type", "rounding", "encoder"}
_NUMBERS = {"seed", "into", "omitted"}
_PLACES = {"into", "omitted"}  # what only an entry of a lineage has

Entry = dict[str, Any]  # what is known of an ancestor, by the last part of its keys


def settings(
    *,
    file_type: str,
    rounding: str | None = None,
    seed: int | None = None,
    imatrix: Sequence[str] = (),
    encoder: str | None = None,
) -> dict[str, Any]:
    """The settings that were in effect, wherever they were asked for; `imatrix` are names of files."""
    facts: dict[str, Any] = {"version": version("ggufmerge"), "type": file_type, "rounding": rounding, "seed": seed}
    facts |= {"imatrix": list(imatrix) or None, "encoder": encoder}
    return {keys.OWN + key: value for key, value in facts.items() if value is not None}


def record(
    sources: Sequence[Source],
    settings: Mapping[str, Any],
    *,
    recipe: str = "",
    digests: bool = False,
) -> dict[str, Any]:
    """What a result says of itself, as changes to the metadata of its first source.

    settings: as `settings` gives them.  recipe: the text of the one in effect.
    digests: keep places for the digests of the source files.
    """
    changes = without_inherited(sources[0].metadata) | dict(settings)
    if recipe:
        changes[keys.RECIPE] = recipe
        changes[keys.RECIPE_DIGEST] = hashlib.sha256(recipe.encode()).hexdigest()
    changes |= files(sources)
    if digests:
        changes |= {digest_key(i): DIGEST_PLACEHOLDER for i in range(len(source_files(sources)))}
    return changes | lineage(sources)


def digest_key(index: int) -> str:
    """The key under which the result keeps the sha256 of source file number `index`."""
    return keys.source(index, "sha256")


def source_files(sources: Iterable[Source]) -> list[Path]:
    """Every file that a result is made from, once, in the order of their `ggufmerge.source.N` keys."""
    return list(dict.fromkeys(path for source in sources for path in source.files()))


def files(sources: Iterable[Source]) -> dict[str, Any]:
    """The names of the files that a result is made from."""
    return {keys.source(i, "file"): path.name for i, path in enumerate(source_files(sources))}


def without_inherited(donor: Mapping[str, Any]) -> dict[str, Any]:
    """Changes that take all keys of ours out of the metadata of a file that a result takes after."""
    return {key: None for key in donor if key.startswith(keys.OWN)}


def lineage(sources: Iterable[Source]) -> dict[str, Any]:
    """The keys about the ancestors of a result. What is too large or not of the right type is left out, and ancestors
    beyond the limits are counted in `ggufmerge.lineage.omitted`.
    """
    files = {file.path: file for s in sources for file in (s.file, *(a.file for a in s.adapters))}
    entries: list[Entry] = []
    omitted = 0
    nested: list[tuple[int, list[Entry]]] = []
    for file in files.values():
        own = _own(file)
        if own:
            nested.append((len(entries), _inherited(file.metadata)))
            entries.append(own)
            omitted += _checked({"omitted": file.metadata.get(keys.LINEAGE + "omitted")}).get("omitted", 0)
    for into, ancestors in nested:
        first = len(entries)
        entries += [{**e, "into": first + e["into"] if "into" in e else into} for e in ancestors]
    kept = _within_limits(entries)
    changes = {keys.lineage(i, key): value for i, entry in enumerate(kept) for key, value in entry.items()}
    omitted += len(entries) - len(kept)
    if omitted:
        changes[keys.LINEAGE + "omitted"] = min(omitted, 2**32 - 1)
    return changes


def _own(file: StoredFile) -> Entry:
    """What a file says of its own making; empty unless ggufmerge made it."""
    found = {
        key.removeprefix(keys.OWN): file.metadata[key]
        for key in file.metadata
        if key.startswith(keys.OWN) and not key.startswith(keys.LINEAGE)
    }
    entry = _checked({key: value for key, value in found.items() if key not in ("file", "name", *_PLACES)})
    if not entry:
        return {}
    return _checked({"file": file.path.name, "name": file.metadata.get(keys.NAME)}) | entry


def _inherited(metadata: Mapping[str, Any]) -> list[Entry]:
    """The lineage that a file carries, its numbers closed up; what went into a missing entry went into the file."""
    found: dict[int, dict[str, Any]] = {}
    for key in metadata:
        if match := _NESTED.fullmatch(key):
            found.setdefault(int(match[1]), {})[match[2]] = metadata[key]
    entries = {number: entry for number in sorted(found) if (entry := _checked(found[number]))}
    places = {number: place for place, number in enumerate(entries)}
    closed = []
    for number, entry in entries.items():
        into = entry.pop("into", None)
        closed.append(entry | ({"into": places[into]} if into in places and into < number else {}))
    return closed


def _checked(found: Mapping[str, Any]) -> Entry:
    """Those values that have the type which they should have."""
    entry: Entry = {}
    for key, value in found.items():
        if key in _NUMBERS:
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
                entry[key] = value
        elif key == "imatrix":
            names = [text for v in value if (text := _text(v))] if isinstance(value, list) else []
            if 0 < len(names) <= MAX_ANCESTORS:
                entry[key] = names
        elif key in _TEXTS or _SOURCE.fullmatch(key):
            text = _text(value)
            if text and (not key.endswith(".sha256") or _DIGEST.fullmatch(text)):
                entry[key] = text
        elif key == "recipe.sha256":
            if isinstance(value, str) and _DIGEST.fullmatch(value):
                entry.setdefault(key, value)
        elif key == "recipe" and isinstance(value, str) and value:
            data = value.encode("utf-8", "surrogateescape")
            if len(data) <= MAX_RECIPE:
                entry[key] = data.decode("utf-8", "replace")
            entry["recipe.sha256"] = hashlib.sha256(data).hexdigest()
    return entry


def _text(value: Any) -> str:
    """A text of ordinary length in plain Unicode; empty for anything else."""
    if not isinstance(value, str):
        return ""
    data = value.encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "replace") if len(data) <= MAX_TEXT else ""


def _within_limits(entries: Sequence[Entry]) -> list[Entry]:
    """The first entries, as many as there may be; each is behind the one that it went into, so none loses its place."""
    kept, room = [], MAX_LINEAGE
    for entry in entries[:MAX_ANCESTORS]:
        room -= sum(len(str(value).encode()) for value in entry.values())
        if room < 0:
            break
        kept.append(entry)
    return kept
