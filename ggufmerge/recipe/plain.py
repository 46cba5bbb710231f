"""Recipes as YAML text, from values of Python: what a program says in mappings and lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel

from ggufmerge.errors import RecipeError
from ggufmerge.recipe.document import MAX_DEPTH, MAX_NODES
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.schema import TokenEmbedding, TokenOfModel
from ggufmerge.recipe.settings import Rule, Setting
from ggufmerge.text import shown


def written(documents: Iterable[Mapping[str, Any]]) -> str:
    """The YAML text of documents; RecipeError for a value that YAML has no word for.

    What stands several times in documents that are too large to be read so is written once, with aliases elsewhere.
    """
    data = [plain(document) for document in documents]
    dumper = _Dumper
    if sum(map(_nodes, data)) > MAX_NODES:
        data, dumper = [_shared(document, {}) for document in data], _AliasDumper
    return yaml.dump_all(
        data, Dumper=dumper, sort_keys=False, allow_unicode=True, explicit_start=len(data) > 1, width=120
    )


def plain(value: Any, depth: int = 0) -> Any:
    """A value as mappings, lists, texts, numbers, true, false and None. Paths become texts, tuples lists, references
    and settings what a recipe writes for them. RecipeError for anything else.
    """
    if depth > MAX_DEPTH:
        raise RecipeError("recipe: nested deeper than any recipe; check the brackets")
    if isinstance(value, str):
        return str(value)  # a name such as TensorType.Q8_0 is a text, too
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), depth + 1)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, ModelReference):
        return value.written()
    if isinstance(value, TokenOfModel):
        given = {"kind": "model_token", "model": value.model, "token": value.token, "token_id": value.token_id}
        return plain({key: item for key, item in given.items() if item is not None})
    if isinstance(value, TokenEmbedding) and value.source == "zero":
        return {"source": {"kind": "zero"}, **({"force": True} if value.force else {})}
    if isinstance(value, Setting):
        return _setting(value)
    if isinstance(value, BaseModel):
        return plain(
            {name: getattr(value, name) for name in type(value).model_fields if name in value.model_fields_set}
        )
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item, depth + 1) for item in value]
    raise RecipeError(f"recipe: {shown(value)} cannot be a value of a recipe: give texts, numbers, lists and mappings")


def _setting(setting: Setting) -> Any:
    """A setting as it is written: a value, or conditional values."""
    if len(setting.rules) == 1 and setting.rules[0].filter is None:
        return plain(setting.rules[0].value)
    return [_rule(rule) for rule in setting.rules]


def _rule(rule: Rule) -> dict[str, Any]:
    condition = {} if rule.filter is None else {"filter": rule.filter}
    return {**condition, "value": plain(rule.value)}


def _nodes(value: Any) -> int:
    """How many words and values a reader finds in plain data."""
    if isinstance(value, dict):
        return 1 + sum(1 + _nodes(item) for item in value.values())
    return 1 + (sum(map(_nodes, value)) if isinstance(value, list) else 0)


def _shared(value: Any, known: dict[str, Any]) -> Any:
    """Plain data in which equal mappings and lists are one object. known: those that were met, by how they look."""
    if isinstance(value, dict):
        value = {key: _shared(item, known) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_shared(item, known) for item in value]
    else:
        return value
    return known.setdefault(repr(value), value)


def _sequence(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    node = dumper.represent_sequence("tag:yaml.org,2002:seq", data)
    node.flow_style = all(isinstance(value, bool | int | float) for value in data) and len(data) <= 20
    return node


class _Dumper(yaml.SafeDumper):
    """Writes short mappings of plain values on one line, as people do, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _AliasDumper(_Dumper):
    """The same with anchors where an object comes again."""

    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, dict | list)


def _mapping(dumper: _Dumper, data: dict[str, Any]) -> yaml.Node:
    node = dumper.represent_mapping("tag:yaml.org,2002:map", data)
    short = all(not isinstance(value, dict | list) for value in data.values())
    node.flow_style = short and 0 < len(data) <= 4 and len(str(data)) < 80 and "merge_method" not in data
    return node


_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(list, _sequence)
