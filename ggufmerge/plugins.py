"""Plug-ins: what other packages add to ggufmerge, found by the entry points that they declare.

A package is asked only for a name that is not built in. What it adds is code of somebody else: an error while it is
loaded becomes one line that says which package to blame.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

from ggufmerge.errors import PluginError
from ggufmerge.text import one_line, quoted


@dataclass(frozen=True)
class Plugin:
    """Something that a package has added. what: it in words.  package: its name and version."""

    value: object
    what: str
    package: str

    def refuse(self, why: str) -> NoReturn:
        """PluginError that says what is wrong with it."""
        raise PluginError(f"{self.what} of the package {self.package} {why}: update the package or uninstall it")

    def checked(self, value: Any, wanted: type, name: str, otherwise: str) -> Any:
        """A value of the plug-in that is of the wanted type and calls itself by the name it is found under.

        otherwise: what to say of one that is not, up to the type that it has instead.  PluginError says which it is.
        """
        if not isinstance(value, wanted):
            self.refuse(f"{otherwise} but {'nothing' if value is None else type(value).__name__}")
        if getattr(value, "name", None) != name:
            self.refuse(f"calls itself {getattr(value, 'name', None)!r}")
        return value


@dataclass(frozen=True)
class Kind:
    """A kind of things that packages may add. group: of their entry points.  what: one of them in words."""

    group: str
    what: str

    def names(self, built_in: Collection[str] = ()) -> tuple[str, ...]:
        """The names that packages add to those that are built in; nothing is imported."""
        return tuple(sorted({entry.name for entry in _entries(self.group)} - set(built_in)))

    def clashes(self, built_in: Collection[str]) -> dict[str, str]:
        """What to warn of: names of packages that are built in, which wins."""
        return {
            entry.name: f"the {self.what} {quoted(entry.name)} of the package {_package(entry)} is not used: "
            "ggufmerge has one of this name"
            for entry in _entries(self.group)
            if entry.name in built_in
        }

    def package(self, name: str) -> str:
        """The name and version of the package that adds this name; "" when none does."""
        return next((_package(entry) for entry in _entries(self.group) if entry.name == name), "")

    def find(self, name: str) -> Plugin | None:
        """What a package adds under this name, imported now; None when there is no such package.

        PluginError when two packages add it, or when it cannot be imported.
        """
        entries = [entry for entry in _entries(self.group) if entry.name == name]
        what = f"the {self.what} {quoted(name)}"
        if not entries:
            return None
        if len(entries) > 1:
            packages = " and ".join(sorted(map(_package, entries)))
            raise PluginError(f"{what} is added by several packages, {packages}: uninstall all but one")
        plugin = Plugin(None, what, _package(entries[0]))
        try:
            return Plugin(entries[0].load(), what, plugin.package)
        except (Exception, SystemExit) as error:
            plugin.refuse(f"cannot be loaded ({type(error).__name__}: {one_line(str(error))})")


ENCODERS = Kind("ggufmerge.encoders", "rounding")
METHODS = Kind("ggufmerge.methods", "merge method")
PLACES = Kind("ggufmerge.places", "place of models")


@functools.cache
def _entries(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
