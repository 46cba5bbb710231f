"""Merge the weights of quantized GGUF language models.

    import ggufmerge
    model = ggufmerge.open("model.gguf")
    model.tensors["blk.0.attn_q.weight"].dequantize()
    ggufmerge.merge_models(["a.gguf", "b.gguf"], "ab.gguf", base="base.gguf")

The public names are imported when they are first used, so the command line answers `--help` without loading numba.
What goes wrong and can be mended is a GgufmergeError, whose text speaks of the arguments that a Python program has.
"""

from __future__ import annotations

import functools as _functools
import importlib as _importlib
import types as _types
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan, Progress
    from ggufmerge.engine.bake import bake
    from ggufmerge.engine.build import build, plan
    from ggufmerge.engine.compare import compare
    from ggufmerge.engine.extract import extract_lora
    from ggufmerge.engine.merge import merge_models
    from ggufmerge.engine.propose import Proposal, propose_merge
    from ggufmerge.engine.quantize import quantize_file
    from ggufmerge.errors import (
        DamageError,
        FormatError,
        GgufmergeError,
        OutputError,
        PlanError,
        PluginError,
        RecipeError,
        ShapeError,
        UnknownTensorError,
    )
    from ggufmerge.evaluation.calibrate import calibrate
    from ggufmerge.evaluation.scores import evaluate
    from ggufmerge.files import open_gguf as open  # noqa: A004
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.files.split import join_gguf as join_file
    from ggufmerge.files.split import split_gguf as split_file
    from ggufmerge.formats.imatrix import load_imatrix
    from ggufmerge.methods.api import merge
    from ggufmerge.methods.define import Between, merge_method
    from ggufmerge.places.hub.upload import plan_upload, push
    from ggufmerge.places.inspect import inspect
    from ggufmerge.places.inventory import families
    from ggufmerge.places.inventory import find_models as models
    from ggufmerge.planning.explain import explain
    from ggufmerge.quants import dequantize, quantize
    from ggufmerge.quants.mixture import plan_types
    from ggufmerge.recipe import Recipe, load_recipe
    from ggufmerge.recipe.json_schema import json_schema as recipe_schema
    from ggufmerge.sources.located import Located

    __version__: str

_PUBLIC = {  # name -> where it is defined, under which name
    "bake": ("engine.bake", "bake"),
    "build": ("engine.build", "build"),
    "calibrate": ("evaluation.calibrate", "calibrate"),
    "compare": ("engine.compare", "compare"),
    "dequantize": ("quants", "dequantize"),
    "evaluate": ("evaluation.scores", "evaluate"),
    "explain": ("planning.explain", "explain"),
    "extract_lora": ("engine.extract", "extract_lora"),
    "families": ("places.inventory", "families"),
    "inspect": ("places.inspect", "inspect"),
    "join_file": ("files.split", "join_gguf"),
    "load_imatrix": ("formats.imatrix", "load_imatrix"),
    "load_recipe": ("recipe", "load_recipe"),
    "merge": ("methods.api", "merge"),
    "merge_method": ("methods.define", "merge_method"),
    "merge_models": ("engine.merge", "merge_models"),
    "models": ("places.inventory", "find_models"),
    "open": ("files", "open_gguf"),
    "plan": ("engine.build", "plan"),
    "plan_upload": ("places.hub.upload", "plan_upload"),
    "plan_types": ("quants.mixture", "plan_types"),
    "propose_merge": ("engine.propose", "propose_merge"),
    "push": ("places.hub.upload", "push"),
    "quantize": ("quants", "quantize"),
    "quantize_file": ("engine.quantize", "quantize_file"),
    "recipe_schema": ("recipe.json_schema", "json_schema"),
    "split_file": ("files.split", "split_gguf"),
    "Between": ("methods.define", "Between"),
    "BuildReport": ("engine", "BuildReport"),
    "Located": ("sources.located", "Located"),
    "Plan": ("engine", "Plan"),
    "Progress": ("engine", "Progress"),
    "Proposal": ("engine.propose", "Proposal"),
    "Recipe": ("recipe", "Recipe"),
    "SplitLimit": ("files.sharded", "SplitLimit"),
    "DamageError": ("errors", "DamageError"),
    "FormatError": ("errors", "FormatError"),
    "GgufmergeError": ("errors", "GgufmergeError"),
    "OutputError": ("errors", "OutputError"),
    "PlanError": ("errors", "PlanError"),
    "PluginError": ("errors", "PluginError"),
    "RecipeError": ("errors", "RecipeError"),
    "ShapeError": ("errors", "ShapeError"),
    "UnknownTensorError": ("errors", "UnknownTensorError"),
}

__all__ = [
    "Between",
    "BuildReport",
    "DamageError",
    "FormatError",
    "GgufmergeError",
    "Located",
    "OutputError",
    "Plan",
    "PlanError",
    "PluginError",
    "Progress",
    "Proposal",
    "Recipe",
    "RecipeError",
    "ShapeError",
    "SplitLimit",
    "UnknownTensorError",
    "__version__",
    "bake",
    "build",
    "calibrate",
    "compare",
    "dequantize",
    "evaluate",
    "explain",
    "extract_lora",
    "families",
    "inspect",
    "join_file",
    "load_imatrix",
    "load_recipe",
    "merge",
    "merge_method",
    "merge_models",
    "models",
    "open",
    "plan",
    "plan_types",
    "plan_upload",
    "propose_merge",
    "push",
    "quantize",
    "quantize_file",
    "recipe_schema",
    "split_file",
]


def __getattr__(name: str) -> _Any:
    if name == "__version__":
        from importlib.metadata import version

        value: _Any = version("ggufmerge")
    elif name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        value = getattr(_importlib.import_module(f"ggufmerge.{module}"), attribute)
        if isinstance(value, _types.FunctionType):
            value = _for_python(value, name)
    else:
        raise AttributeError(f"module 'ggufmerge' has no attribute {name!r}")
    globals()[name] = value
    return value


def _for_python(function: _Any, name: str) -> _Any:
    """The same function, whose errors name arguments instead of the options of commands, as `ggufmerge.name`."""
    from ggufmerge.errors import GgufmergeError

    @_functools.wraps(function)
    def call(*arguments: _Any, **options: _Any) -> _Any:
        try:
            return function(*arguments, **options)
        except GgufmergeError as error:
            error.speak_python()
            raise

    call.__module__, call.__name__, call.__qualname__ = "ggufmerge", name, name  # where pickle finds it, too
    return call


def __dir__() -> list[str]:
    return list(__all__)
