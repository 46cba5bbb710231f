"""Merge methods by name. Each lives in a module of its own, which is imported when the method is asked for."""

from __future__ import annotations

import importlib

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

NAMES = tuple(_MODULES)


def method(name: str) -> Method:
    """The method of this name; RecipeError suggests the nearest name."""
    if name not in _MODULES:
        raise RecipeError(f'unknown merge_method "{name}": {nearest(name, NAMES)}')
    module = importlib.import_module(f"ggufmerge.methods.{_MODULES[name]}")
    found: Method = module.METHODS[name]
    return found
