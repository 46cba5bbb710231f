"""Merge methods by name. Each lives in a module of its own, which is imported when the method is asked for.

Other packages add methods by entry points of the group `ggufmerge.methods`: see docs/plugins.md.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from ggufmerge import plugins
from ggufmerge.errors import RecipeError, nearest
from ggufmerge.methods.spec import Method

_MODULES = {
    "linear": "linear",
    "slerp": "slerp",
    "nuslerp": "nuslerp",
    "multislerp": "multislerp",
    "karcher": "karcher",
    "task_arithmetic": "task_vectors",
    "ties": "ties",
    "dare_linear": "dare",
    "dare_ties": "dare",
    "della": "della",
    "della_linear": "della",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs",
    "sce": "sce",
    "ram": "ram",
    "ramplus_tl": "ram",
    "model_stock": "model_stock",
    "nearswap": "nearswap",
    "arcee_fusion": "arcee_fusion",
    "passthrough": "passthrough",
}

NAMES = tuple(_MODULES)  # that are built in


def names() -> tuple[str, ...]:
    """All methods: those that are built in, then those of other packages, which may turn out not to work."""
    return (*NAMES, *plugins.METHODS.names(NAMES))


def method(name: str) -> Method:
    """The method of this name; RecipeError suggests the nearest name, PluginError says why one of a plug-in fails."""
    if name not in _MODULES:
        plugin = plugins.METHODS.find(name)
        if plugin is None:
            raise RecipeError(f'unknown merge_method "{name}": {nearest(name, names())}')
        return _of_plugin(name, plugin)
    module = importlib.import_module(f"ggufmerge.methods.{_MODULES[name]}")
    found: Method = module.METHODS[name]
    return found


def package_of(name: str) -> str:
    """The name and version of the package that adds a method; "" for one that is built in."""
    return "" if name in _MODULES else plugins.METHODS.package(name)


def _of_plugin(name: str, plugin: plugins.Plugin) -> Method:
    """The method that a plug-in is, or the one of this name in the METHODS of a module."""
    found: Any = plugin.value
    if isinstance(found, ModuleType):
        found = getattr(found, "METHODS", {}).get(name)
    checked: Method = plugin.checked(found, Method, name, "is no Method")
    return checked
