"""Merge the weights of quantized GGUF language models.

    import ggufmerge
    model = ggufmerge.open("model.gguf")
    model.tensors["blk.0.attn_q.weight"].dequantize()

The public names are imported when they are first used, so the command line answers `--help` without loading numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport
    from ggufmerge.engine.build import build
    from ggufmerge.files import open_gguf as open  # noqa: A004
    from ggufmerge.methods.api import merge
    from ggufmerge.quants import dequantize, quantize
    from ggufmerge.quants.mixture import plan_types
    from ggufmerge.recipe import Recipe, load_recipe
    from ggufmerge.sources.imatrix import load_imatrix

    __version__: str

_PUBLIC = {  # name -> where it is defined, under which name
    "build": ("ggufmerge.engine", "build"),
    "BuildReport": ("ggufmerge.engine", "BuildReport"),
    "load_recipe": ("ggufmerge.recipe", "load_recipe"),
    "Recipe": ("ggufmerge.recipe", "Recipe"),
    "merge": ("ggufmerge.methods.api", "merge"),
    "open": ("ggufmerge.files", "open_gguf"),
    "quantize": ("ggufmerge.quants", "quantize"),
    "dequantize": ("ggufmerge.quants", "dequantize"),
    "plan_types": ("ggufmerge.quants.mixture", "plan_types"),
    "load_imatrix": ("ggufmerge.sources.imatrix", "load_imatrix"),
}

__all__ = [
    "BuildReport",
    "Recipe",
    "__version__",
    "build",
    "dequantize",
    "load_imatrix",
    "load_recipe",
    "merge",
    "open",
    "plan_types",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("ggufmerge")
    elif name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        value = getattr(importlib.import_module(module), attribute)
    else:
        raise AttributeError(f"module 'ggufmerge' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
