"""References to models: a path, with any number of LoRA adapters added to it.

base.gguf                       a file, relative to the recipe's folder
base.gguf+kjv.gguf              the same with an adapter applied at its full strength
base.gguf+kjv.gguf=0.5          ... at half its strength
{model: "a+b.gguf", lora: x}    mergekit's dict form, for paths that contain a plus sign
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AdapterReference:
    """A LoRA adapter and the factor (llama.cpp's user scale) its change is multiplied by."""

    path: str
    strength: float = 1.0

    def __str__(self) -> str:
        return self.path if self.strength == 1 else f"{self.path}={self.strength:g}"


@dataclass(frozen=True)
class ModelReference:
    """What a recipe calls a model. `str()` gives the short form again."""

    path: str
    adapters: tuple[AdapterReference, ...] = ()

    def __str__(self) -> str:
        return "+".join([self.path, *map(str, self.adapters)])

    @classmethod
    def parse(cls, value: Any) -> ModelReference:
        """From a recipe's value (string or dict form); ValueError says what is wrong with it."""
        if isinstance(value, ModelReference):
            return value
        if isinstance(value, str):
            path, *adapters = value.strip().split("+")
            if not path or not all(adapters):
                raise ValueError(f'"{value}" has an empty path; write base.gguf+adapter.gguf')
            return cls(path, tuple(map(_adapter, adapters)))
        if isinstance(value, dict):
            return cls._from_dict(value)
        raise ValueError(f"a model is a path, not {type(value).__name__}")

    @classmethod
    def _from_dict(cls, value: dict[str, Any]) -> ModelReference:
        unknown = set(value) - {"model", "lora", "override_architecture"}
        if unknown or "model" not in value:
            raise ValueError("a model written as a mapping has the keys model and lora")
        if value.get("override_architecture"):
            raise ValueError("override_architecture has no meaning for GGUF files; remove it")
        path, loras = _path(value["model"]), value.get("lora") or []
        return cls(path, tuple(AdapterReference(_path(x)) for x in (loras if isinstance(loras, list) else [loras])))


def _path(value: Any) -> str:
    if isinstance(value, dict):
        if value.get("revision"):
            raise ValueError("revision has no meaning for a local file; remove it")
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise ValueError("a model's path is a text")
    return value


def _adapter(text: str) -> AdapterReference:
    path, sign, strength = text.rpartition("=")
    if sign:
        try:
            return AdapterReference(path, float(strength))
        except ValueError:
            pass  # the path itself has an equals sign
    return AdapterReference(text)
