"""The recipe language as a JSON schema, so that editors complete and check recipes while they are written.

Structure and types come from the schema of `schema.py`, names and documentation of parameters from the methods.
"""

from __future__ import annotations

from typing import Any

from ggufmerge.methods import NAMES
from ggufmerge.methods import method as find_method
from ggufmerge.methods.spec import REQUIRED, Parameter
from ggufmerge.quants.encoders import encoder_names
from ggufmerge.recipe.load import INERT
from ggufmerge.types import FileType, TensorType

_SCALARS: dict[type, dict[str, Any]] = {
    float: {"type": "number"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
}


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of a recipe file."""
    parameters = {"$ref": "#/$defs/parameters"}
    model = {"$ref": "#/$defs/model"}
    source = {
        "layer_range": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "minItems": 2,
            "maxItems": 2,
            "description": "First layer, and the layer after the last one.",
        }
    }
    properties: dict[str, Any] = {
        "merge_method": {
            "description": "How the models are combined; with filters, not in mergekit, one method for each part.",
            **_setting({"enum": list(NAMES)}),
        },
        "base_model": {**model, "description": "The model that the others were tuned from."},
        "models": _list(_object({"model": model, "parameters": parameters}, ["model"])),
        "slices": _list(
            _object(
                {
                    "sources": _list(
                        _object({"model": model, **source, "parameters": parameters}, ["model", "layer_range"])
                    ),
                    "base_model": model,
                    "parameters": parameters,
                },
                ["sources"],
            )
        ),
        "parameters": parameters,
        "dtype": {"enum": ["float32", "float16", "bfloat16"], "description": "Float type of the result."},
        "out_dtype": {"enum": ["float32", "float16", "bfloat16"], "description": "Float type of the result."},
        "tokenizer_source": {
            "anyOf": [{"enum": ["base", "union"]}, model],
            "description": "Whose vocabulary the result has.",
        },
        "tokenizer": {**_tokenizer(model), "description": "Whose vocabulary the result has, token by token."},
        "chat_template": {"type": "string", "description": "auto, the name of a known template, or Jinja text."},
        "name": {"type": "string", "description": "general.name of the result."},
        "out_type": {
            "type": "string",
            "examples": [str(t) for t in FileType],
            "description": "File type of the result, as llama-quantize names it. Not in mergekit.",
        },
        "tensor_types": {
            "type": "object",
            "additionalProperties": {"type": "string", "examples": [str(t) for t in TensorType]},
            "description": "Regular expression on tensor names to tensor type. Not in mergekit.",
        },
        "like": {"type": "string", "description": "A GGUF file whose types are taken over. Not in mergekit."},
        "imatrix": {
            **_one_or_more({"type": "string"}),
            "description": "Importance matrices to quantize with; several add up. Not in mergekit.",
        },
        "rounding": {
            "enum": list(encoder_names()),
            "description": "How changes are rounded to a type that a tensor has already. Not in mergekit.",
        },
        "exclude": {
            **_one_or_more({"type": "string"}),
            "description": "Filters of tensors that are not merged but taken from the base. Not in mergekit.",
        },
        "graft": {
            **_list(_object({"model": model, "tensors": _list({"type": "string"})}, ["model", "tensors"])),
            "description": "Tensors taken from a model as they are. Not in mergekit.",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "description": "Seed of masks and stochastic rounding. Not in mergekit.",
        },
        "metadata": {"type": "object", "description": "Keys of the result's metadata. Not in mergekit."},
    }
    properties |= {key: {"deprecated": True, "description": reason} for key, reason in INERT.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ggufmerge recipe",
        **_object(properties, ["merge_method"]),
        "oneOf": [{"required": ["models"]}, {"required": ["slices"]}],
        "$defs": {"model": _model(), "parameters": _parameters()},
    }


def _parameters() -> dict[str, Any]:
    """An object with every parameter of every method, documented with the methods that read it."""
    readers: dict[str, list[tuple[str, Parameter]]] = {}
    for name in NAMES:
        for parameter in find_method(name).parameters:
            readers.setdefault(parameter.name, []).append((name, parameter))
    properties: dict[str, Any] = {}
    for name, specs in readers.items():
        first = specs[0][1]
        lines = []
        for method, q in specs:
            default = "required" if q.default is REQUIRED else f"default {q.default}"
            lines.append(f"{method}: {q.doc} ({default})")
        scalar = dict(_SCALARS[first.type])
        if first.choices:
            scalar["enum"] = list(first.choices)
        properties[name] = {"description": "\n".join(lines), **_setting(scalar)}
    properties |= {key: {"deprecated": True, "description": reason} for key, reason in INERT.items()}
    return _object(properties, [])


def _setting(scalar: dict[str, Any]) -> dict[str, Any]:
    """A value, a gradient, or conditional values of either."""
    value = {"anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1}]}
    rule = _object({"filter": {"type": ["string", "null"]}, "value": value}, ["value"])
    return {"anyOf": [*value["anyOf"], rule, _list(rule)]}


def _model() -> dict[str, Any]:
    path = _object({"path": {"type": "string"}, "revision": {"type": "null"}}, ["path"])
    text = {"type": "string", "examples": ["base.gguf", "base.gguf+adapter.gguf", "base.gguf+adapter.gguf=0.5"]}
    either = {"anyOf": [{"type": "string"}, path]}
    return {"anyOf": [text, _object({"model": either, "lora": {"anyOf": [either, _list(either)]}}, ["model"])]}


def _tokenizer(model: dict[str, Any]) -> dict[str, Any]:
    zero = _object({"kind": {"const": "zero"}}, ["kind"])
    row = {"kind": {"const": "model_token"}, "model": model}
    row |= {"token": {"type": "string"}, "token_id": {"type": "integer", "minimum": 0}}
    token = _object(
        {"source": {"anyOf": [zero, _object(row, ["kind", "model"]), model]}, "force": {"type": "boolean"}}, []
    )
    return _object(
        {
            "source": {"anyOf": [{"enum": ["base", "union"]}, model]},
            "tokens": {"type": "object", "additionalProperties": token},
            "pad_to_multiple_of": {"type": "integer", "minimum": 1},
        },
        [],
    )


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def _one_or_more(item: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [item, _list(item)]}
