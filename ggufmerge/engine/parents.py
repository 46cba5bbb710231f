"""The models that a GGUF file was made from, where they are on this machine: what its own metadata name, found again.

A result keeps its recipe, and the name and digest of each file it was made from, but not where they were. So they are
looked for in a few folders and among the models that other programs keep. A file that has a digest is only taken when
it still is that file: `base.gguf` is a common name. Nothing is downloaded: a stranger may have written the metadata.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ggufmerge.engine.provenance import PREFIX
from ggufmerge.errors import GgufmergeError
from ggufmerge.files import GGUFFile, open_gguf
from ggufmerge.files.shards import model_name
from ggufmerge.files.small import open_regular
from ggufmerge.places.hub.cache import cache_folder, cached_files
from ggufmerge.places.inventory import kept_files
from ggufmerge.places.references import find
from ggufmerge.places.schemes import SCHEMES
from ggufmerge.recipe import AdapterReference, ModelReference, Recipe, load_recipe

_DEPTH = 3  # of folders below a given one that are searched
_MAX_ENTRIES = 5000  # that are looked at in a folder
_PIECE = 1 << 22  # bytes
_TWO_OF_A_KIND = frozenset({"slerp", "arcee_fusion"})  # methods whose base is one of the two that are joined


NOT_FOUND = "not found in these folders or among the models that `ggufmerge models` lists"


@dataclass(frozen=True)
class Relative:
    """A model that another was made from. label: what the recipe calls it. adapters: files with their strengths."""

    label: str
    path: Path
    adapters: tuple[tuple[Path, float], ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same model, whatever it is called."""
        return (self.path.resolve(), *((path.resolve(), strength) for path, strength in self.adapters))


@dataclass(frozen=True)
class Family:
    """What a model was made from.

    base: what the others were tuned from; None when the file does not tell or it is not here.
    parents: the models that were joined, in the order of the recipe.
    missing: those that are not here, as "name: why", one line each.
    """

    base: Relative | None = None
    parents: tuple[Relative, ...] = ()
    missing: tuple[str, ...] = ()


def family(path: str | os.PathLike[str], folders: Iterable[str | os.PathLike[str]] = (".",)) -> Family:
    """The family of a GGUF file; empty when it does not name one.

    folders: where to look, besides the folder of the file itself; relative paths of its recipe start from each. What
        is in none of them is looked for among the models that the programs of this machine keep.
    Reads all of each file whose digest is known. GgufmergeError when the file itself cannot be read.
    """
    path = Path(path)
    with open_gguf(path) as file:
        text, names, digests = _told(file)
    search = _Search([path.parent, *map(Path, folders)], names, digests, besides=path)
    recipe = None
    if text:
        with suppress(GgufmergeError):  # of another version of ggufmerge, or changed by somebody
            recipe = load_recipe(text + "\n")
    if recipe is None:
        return _family(None, [ModelReference(name) for name in names], search)
    return _family(*_roles(recipe), search)


def _told(file: GGUFFile) -> tuple[str, dict[str, str], frozenset[str]]:
    """The recipe, the source files in order with their digests ("" for none), and the digests of all that went in."""
    texts = {key: value for key in file.metadata if key.startswith(PREFIX) and (value := file.metadata.text(key))}
    names = {
        texts[key]: texts.get(f"{PREFIX}source.{i}.sha256", "")
        for i in range(100)
        if (key := f"{PREFIX}source.{i}.file") in texts
    }
    digests = frozenset(value for key, value in texts.items() if key.endswith(".sha256") and ".source." in key)
    return texts.get(PREFIX + "recipe", ""), names, digests


def _roles(recipe: Recipe) -> tuple[ModelReference | None, list[ModelReference]]:
    """The base and the parents of a recipe, through its stages down to files."""
    stages = {stage.name: stage for stage in recipe.stages}
    base = None if _TWO_OF_A_KIND.intersection(recipe.methods) else recipe.base_model
    if base is not None and base.path in stages:
        base = None
    found: dict[ModelReference, None] = {}
    for part in (recipe, *recipe.stages):
        found.update((reference, None) for reference in part.references() if reference.path not in stages)
    parents = [reference for reference in found if reference != base]
    if base is None and all(p.path == parents[0].path and p.adapters for p in parents):
        base = ModelReference(parents[0].path)  # adapters of one model
    return base, parents


def _family(base: ModelReference | None, parents: Sequence[ModelReference], search: _Search) -> Family:
    found: dict[ModelReference, Relative] = {}
    missing: dict[str, None] = {}
    for reference in (*([] if base is None else [base]), *parents):
        try:
            found[reference] = search.relative(reference)
        except GgufmergeError as error:
            missing[f"{model_name(str(reference))}: {error}"] = None
    return Family(
        None if base is None else found.get(base),
        tuple(found[p] for p in parents if p in found),
        tuple(missing),
    )


class _Search:
    """Looks for the files of references; GgufmergeError says why one is not found."""

    def __init__(
        self, folders: Sequence[Path], names: Mapping[str, str], digests: frozenset[str], besides: Path
    ) -> None:
        self._folders = list(dict.fromkeys(folders))
        self._names, self._digests, self._besides = names, digests, besides.resolve()
        self._kept: list[Path] | None = None  # by programs of this machine

    def relative(self, reference: ModelReference) -> Relative:
        path, own = self._located(reference.path)
        adapters = [*own, *((self._file(a), a.strength) for a in reference.adapters)]
        return Relative(str(reference), path, tuple(adapters))

    def _file(self, adapter: AdapterReference) -> Path:
        return self._located(adapter.path)[0]

    def _located(self, name: str) -> tuple[Path, list[tuple[Path, float]]]:
        scheme, colon, _ = name.partition(":")
        if colon and scheme in SCHEMES and scheme != "hf":  # which would download
            located = find(name)
            if not self._is_it(located.path):
                raise GgufmergeError("is another file now")
            return located.path, [(path, 1.0) for path in located.adapters]
        there = False
        for path in self._candidates(name):
            if path.is_dir():
                raise GgufmergeError("is a checkpoint, which llama.cpp does not read")
            there = there or (path.name == Path(name).name and path.resolve() != self._besides)
            if self._is_it(path):
                return path, []
        raise GgufmergeError("only other files of this name are here" if there else NOT_FOUND)

    def _candidates(self, name: str) -> Iterator[Path]:
        """Places where the file may be, the likely ones first."""
        scheme, colon, _ = name.partition(":")
        if colon and scheme == "hf":
            yield from (entry.path for entry in cached_files(cache_folder()) if entry.path.name in self._names)
            return
        last = name.replace("\\", "/").rpartition("/")[2]
        if not last or "\0" in name:
            return
        with suppress(OSError, RuntimeError):
            for folder in self._folders:
                for path in (folder / Path(name).expanduser(), folder / last):
                    if path.exists():
                        yield path
        if self._digests:  # a name alone proves nothing further away
            for folder in self._folders:
                yield from _below(folder, last)
            yield from self._kept_by_programs(last)

    def _kept_by_programs(self, name: str) -> Iterator[Path]:
        """Files of a name, or that are called by their digest, as Ollama and the cache of the Hub do."""
        if self._kept is None:
            self._kept = list(kept_files())
        digest = self._names.get(name, "")
        for path in self._kept:
            if path.name == name or (digest and path.resolve().name in (digest, f"sha256-{digest}")):
                yield path

    def _is_it(self, path: Path) -> bool:
        if path.resolve() == self._besides:
            return False
        try:
            return not self._digests or _digest(path) in self._digests
        except OSError:
            return False


def _below(folder: Path, name: str) -> Iterator[Path]:
    """Files of a name in the folders below one, as far as a moment's look goes."""
    seen = 0
    for root, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if name in files:
            yield Path(root, name)
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = [] if depth >= _DEPTH or seen > _MAX_ENTRIES else sorted(f for f in folders if f[0] != ".")


def _digest(path: Path) -> str:
    """The sha256 of a file, which is read once."""
    status = path.stat()
    return _read_digest(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_digest(path: Path, size: int, changed: int) -> str:
    """The same; size, changed: what the file was like, for the cache."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
