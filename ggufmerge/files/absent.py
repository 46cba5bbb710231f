"""What to say of a path that leads nowhere: the name that was meant, or what is there instead."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from ggufmerge.files.pieces import parts_of, together
from ggufmerge.files.shards import ShardName
from ggufmerge.text import first_few

_LISTED = 5  # names in a message
_COMPARED = 5000  # names; more would take seconds
MODELS = (".gguf",)
RECIPES = (".yaml", ".yml")


def absent(path: str | os.PathLike[str], kinds: Sequence[str] = MODELS, *, written: str | None = None) -> str:
    """Why there is nothing at a path, in words that follow the path: `no such file; did you mean "french.gguf"?`

    kinds: endings of the files that are wanted, () for any, ("/",) for a folder.
    written: the path as the user wrote it, whose folder the suggestion repeats; None for `path`.
    """
    path = Path(path)
    if kinds and "/" not in kinds and path.suffix:
        kinds = tuple(dict.fromkeys([*kinds, path.suffix.lower()]))
    what = "no such folder" if "/" in kinds else "no such file"
    if path.is_symlink():
        return f"{what}: it is a link to {_target(path)}, which is not there"
    folder, missing = path.parent, path.name
    above = Path(written if written is not None else path).parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder, missing, above = folder.parent, folder.name, above.parent
        return f'{what}: there is no folder "{above / missing}"{_meant(above, missing, folder, ("/",), "")}'
    if parts := parts_of(path):
        return f"{what}, but it is here in pieces: put them together: {together(parts, missing)}"
    return f"{what}{_meant(above, missing, folder, kinds, _listed(folder, kinds))}"


def _target(path: Path) -> str:
    try:
        return f'"{path.readlink()}"'
    except OSError:
        return "something"


def _meant(above: Path, missing: str, folder: Path, kinds: Sequence[str], otherwise: str) -> str:
    """The entry of `folder` that is called almost like the missing one, else `otherwise`."""
    # by what stands in front of the ending, which is the same everywhere
    names = {_stem(name, kinds): name for name in reversed(_names(folder, kinds))}
    known = names if len(names) <= _COMPARED else ()
    close = difflib.get_close_matches(_stem(missing, kinds), known, n=1, cutoff=0.75)
    return f'; did you mean "{above / names[close[0]]}"?' if close else otherwise


def _stem(name: str, kinds: Sequence[str]) -> str:
    name = name.lower()
    ending = next((kind for kind in kinds if kind != "/" and name.endswith(kind)), "")
    return name.removesuffix(ending)


def _listed(folder: Path, kinds: Sequence[str]) -> str:
    names = _names(folder, kinds)
    if "/" in kinds or not kinds:
        return "; check the path"
    here = "this folder" if folder.resolve() == Path.cwd() else f"the folder {folder}"
    if not names:
        return f"; {here} has no {kinds[0]} file"
    return f"; {here} has {first_few(list(map(_with_shards, names)), _LISTED)}"


def _with_shards(name: str) -> str:
    shard = ShardName.parse(name)
    return name if shard is None else f"{name} ({shard.count} shards)"


def _names(folder: Path, kinds: Sequence[str]) -> list[str]:
    """The entries of a folder that are of these kinds, sorted, without hidden ones; of shards, the first."""
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found += [entry.name for entry in entries if not entry.name.startswith(".") and _is_of(entry, kinds)]
    return sorted(name for name in found if (shard := ShardName.parse(name)) is None or shard.number == 1)


def _is_of(entry: os.DirEntry[str], kinds: Sequence[str]) -> bool:
    if "/" in kinds:
        return entry.is_dir()
    return not kinds or entry.name.lower().endswith(tuple(kinds))
