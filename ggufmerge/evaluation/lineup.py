"""Which models are measured side by side: those that were named, and those that they were made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggufmerge.engine.parents import Family, family
from ggufmerge.places import references
from ggufmerge.recipe import ModelReference


@dataclass(frozen=True)
class Entry:
    """A model to measure. role: "model" for one that was named, else "base" or "parent" of one."""

    label: str
    path: Path
    adapters: tuple[tuple[Path, float], ...]
    role: str = "model"

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same model, whatever it is called."""
        return (self.path.resolve(), *((path.resolve(), strength) for path, strength in self.adapters))


@dataclass
class Lineup:
    """The models in the order in which they are shown, and the family of each that has one.

    named: the labels of those that were named.  relatives: label of a named model -> labels of its base (None without
    one) and of its parents.
    """

    models: list[Entry]
    named: list[str]
    families: dict[str, Family] = field(default_factory=dict)
    relatives: dict[str, tuple[str | None, list[str]]] = field(default_factory=dict)

    def base_of(self, label: str) -> str | None:
        """What a model is compared with: its base, else the first model that was named when it has no parents here."""
        base, parents = self.relatives.get(label, (None, []))
        first = self.named[0]
        return base if base is not None or parents or label == first else first

    def parents_of(self, label: str) -> list[str]:
        return self.relatives.get(label, (None, []))[1]

    def own_base_of(self, label: str) -> str | None:
        """The base that a model names itself; None without one."""
        return self.relatives.get(label, (None, []))[0]

    @property
    def missing(self) -> dict[str, list[str]]:
        """Of each named model the relatives that were not found, as "name: why"."""
        return {label: list(found.missing) for label, found in self.families.items() if found.missing}


def line_up(models: Sequence[str | os.PathLike[str]], *, relatives: bool) -> Lineup:
    """The named models. relatives: with those that each was made from in front of it, or after it if it is the first of
    several, because changes are shown against the first of all.

    GgufmergeError names all models that are not there.
    """
    check_models(models)
    names = list(dict.fromkeys(os.fspath(model) for model in models))
    named = [_named(name) for name in names]
    lineup = Lineup([], [entry.label for entry in named])
    taken = {entry.key: entry.label for entry in named}
    folders = list(dict.fromkeys([Path(), *(entry.path.parent for entry in named)]))
    for place, entry in enumerate(named):
        added = []
        if relatives and not entry.adapters:
            found = family(entry.path, folders)
            lineup.families[entry.label] = found
            for role, relative in [*([] if found.base is None else [("base", found.base)])] + [
                ("parent", parent) for parent in found.parents
            ]:
                if relative.key not in taken:
                    label = relative.label if relative.label not in taken.values() else str(relative.path)
                    taken[relative.key] = label
                    added.append(Entry(label, relative.path, relative.adapters, role))
            base = None if found.base is None else taken[found.base.key]
            parents = [taken[parent.key] for parent in found.parents]
            lineup.relatives[entry.label] = (base, [p for p in dict.fromkeys(parents) if p != base])
        first_of_several = place == 0 and len(named) > 1
        lineup.models += [entry, *added] if first_of_several else [*added, entry]
    return lineup


def check_models(models: Iterable[str | os.PathLike[str]]) -> None:
    """GgufmergeError that names all models, and adapters of them, that are not there."""
    named = (ModelReference.from_argument(os.fspath(model)) for model in models)
    references.check_found(("", path) for model in named for path in model.paths)


def _named(name: str) -> Entry:
    """The model that `base.gguf+adapter.gguf=0.5` means; a file whose own name has a plus sign is that file."""
    model = ModelReference.from_argument(name)
    found = references.find(model.path)
    adapters = [(path, 1.0) for path in found.adapters]
    adapters += [(references.find(adapter.path).path, adapter.strength) for adapter in model.adapters]
    return Entry(name, found.path, tuple(adapters))
