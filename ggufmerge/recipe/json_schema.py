"""The recipe language as a JSON schema, so that editors complete and check recipes while they are written.

Structure and types are those of `schema.py`, as pydantic writes them; names, bounds and documentation of parameters are
those of the methods. Here is what neither can tell: the forms that a value may be written in.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ggufmerge.errors import PluginError
from ggufmerge.methods import method as find_method
from ggufmerge.methods import names as method_names
from ggufmerge.methods.parameters import REQUIRED, Parameter
from ggufmerge.quants.encoders import encoder_names
from ggufmerge.recipe.load import INERT
from ggufmerge.recipe.schema import AUTO, DEFINED, RecipeKeys

_NULL = {"type": "null"}
_TEXT = {"type": "string"}
_NUMBER_AS_TEXT = {"$ref": "#/$defs/number_as_text"}
_NUMBER = {**_TEXT, "pattern": r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"}
_MODEL = {"$ref": "#/$defs/model"}


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of a recipe file."""
    derived = RecipeKeys.model_json_schema()
    definitions = {name: _tidied(node) for name, node in derived.pop("$defs").items()} | {
        "number_as_text": _NUMBER,
        "model": _model(),
        "parameters": _parameters(),
        "merge_method": _rules({"enum": list(method_names())}),
        "tokenizer_source": {"anyOf": [{"enum": ["base", "union"]}, _MODEL, _NULL]},
        "token_row": _token_row(),
        "rounding": {"enum": [AUTO, *encoder_names(), None]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ggufmerge recipe",
        **_tidied({key: value for key, value in derived.items() if key != "description"}),
        "oneOf": [{"required": [key], "properties": {key: {"type": "array"}}} for key in ("models", "slices")],
        "$defs": definitions,
    }


def _tidied(node: Any) -> Any:
    """What pydantic wrote, with references to what is defined here and the words that have no effect."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy: dict[str, Any] = {}
    for key, value in node.items():
        if key == DEFINED:
            tidy["$ref"] = f"#/$defs/{value}"
        elif key == "properties":
            tidy[key] = {name: _tidied(item) for name, item in value.items()} | _inert()
        elif key not in ("title", "default"):
            tidy[key] = _tidied(value)
    return tidy


def _inert() -> dict[str, Any]:
    return {key: {"deprecated": True, "description": reason} for key, reason in INERT.items()}


def _parameters() -> dict[str, Any]:
    """An object with every parameter of every method, documented with the methods that read it."""
    readers: dict[str, list[tuple[str, Parameter]]] = {}
    for name in method_names():
        with contextlib.suppress(PluginError):  # a recipe that names it is told
            for parameter in find_method(name).parameters:
                readers.setdefault(parameter.name, []).append((name, parameter))
    properties: dict[str, Any] = {}
    for name, specs in readers.items():
        lines = []
        for method, q in specs:
            default = "required" if q.default is REQUIRED else f"default {q.default}"
            lines.append(f"{method}: {q.doc} ({default})")
        forms = [form for _, q in specs for form in _forms(q)]
        values = [*forms, *(_gradient(q) for _, q in specs if q.type is not int)]
        properties[name] = {"description": "\n".join(lines), **_rules(*values)}
    return {**_object(properties | _inert(), []), "type": ["object", "null"]}


def _forms(q: Parameter) -> list[dict[str, Any]]:
    """What a parameter takes as one value."""
    return [*_anchors(q), _NULL] if q.default is None else _anchors(q)


def _anchors(q: Parameter) -> list[dict[str, Any]]:
    """What a parameter takes as one of a gradient's values."""
    if q.type is bool:
        return [{"type": "boolean"}, {"enum": [0, 1]}]
    if q.type is str:
        return [{"enum": list(q.choices)}]
    bounds = {"minimum": q.low, "maximum": q.high}
    number = {"type": "integer" if q.type is int else "number"}
    return [number | {key: bound for key, bound in bounds.items() if bound is not None}, _NUMBER_AS_TEXT]


def _gradient(q: Parameter) -> dict[str, Any]:
    return _list(_any_of(*_anchors(q)))


def _rules(*values: dict[str, Any]) -> dict[str, Any]:
    """One of these values, or conditional ones."""
    rule = _object({"filter": {"type": ["string", "null"]}, "value": _any_of(*values)}, ["value"])
    return _any_of(*values, rule, _list(rule))


def _model() -> dict[str, Any]:
    nothing = {"enum": [None, False, "", 0]}
    path = {"path": _TEXT, "revision": nothing}
    named = _any_of(_TEXT, _object(path, ["path"]))
    adapter = _any_of(_TEXT, _object({**path, "strength": {"type": "number"}}, ["path"]))
    text = {**_TEXT, "examples": ["base.gguf", "base.gguf+adapter.gguf", "base.gguf+adapter.gguf=0.5"]}
    adapters = _any_of(adapter, {"type": "array", "items": adapter}, _NULL)
    keys = {"model": named, "lora": adapters, "override_architecture": nothing}
    return _any_of(text, _object(keys, ["model"]))


def _token_row() -> dict[str, Any]:
    zero = _object({"kind": {"const": "zero"}}, ["kind"])
    row = {"kind": {"const": "model_token"}, "model": _MODEL}
    token = _object({**row, "token": _TEXT, "token_id": _NULL}, ["kind", "model", "token"])
    token_id = _object(
        {**row, "token": _NULL, "token_id": {"type": "integer", "minimum": 0}}, ["kind", "model", "token_id"]
    )
    return _any_of(zero, token, token_id, _MODEL, _NULL)


def _any_of(*forms: dict[str, Any]) -> dict[str, Any]:
    """Any of these forms, each once."""
    different = [form for i, form in enumerate(forms) if form not in forms[:i]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}
