"""References to models: a path, with any number of LoRA adapters added to it.

base.gguf                       a file, relative to the recipe's folder
base.gguf+kjv.gguf              the same with an adapter applied at its full strength
base.gguf+kjv.gguf=0.5          ... at half its strength
{model: "a+b.gguf", lora: x}    mergekit's dict form, for paths that contain a plus sign
{model: base.gguf, lora: [{path: x, strength: 0.5}, y]}
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufmerge.errors import PlanError
from ggufmerge.text import human_number, shown


@dataclass(frozen=True)
class AdapterReference:
    """A LoRA adapter and the factor (llama.cpp's user scale) its change is multiplied by."""

    path: str
    strength: float = 1.0

    def __str__(self) -> str:
        if self.strength == 1 and _adapter(self.path).path == self.path:
            return self.path
        strength = repr(self.strength).replace("e+", "e")  # a plus sign begins the next adapter
        return f"{self.path}={strength}"

    @classmethod
    def parse(cls, text: str) -> AdapterReference:
        """From "path" or "path=strength"; ValueError for a strength that is not finite."""
        return _adapter(text)


NO_REVISION = (
    "a file has no revisions, and another revision is another model: name its file, on the Hub with "
    "hf:OWNER/REPO/FILE.gguf@REVISION"
)


@dataclass(frozen=True)
class ModelReference:
    """What a recipe calls a model. `str()` gives the short form, which is for people when a path contains a plus."""

    path: str
    adapters: tuple[AdapterReference, ...] = ()

    def __str__(self) -> str:
        return "+".join([self.path, *map(str, self.adapters)])

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the model, then of its adapters."""
        return (self.path, *(adapter.path for adapter in self.adapters))

    def as_file(self, folder: str | os.PathLike[str]) -> ModelReference:
        """The same reference, in which the name of a file of `folder` that has a plus sign is the name of that file."""
        parts, joined = [AdapterReference(self.path), *self.adapters], list[AdapterReference]()
        while parts:
            first, *rest = parts
            for end in range(len(parts), 1, -1):
                name = "+".join(part.path for part in parts[:end])
                plain = all(part.strength == 1 for part in parts[: end - 1])
                if plain and (Path(folder) / Path(name).expanduser()).exists():
                    first, rest = AdapterReference(name, parts[end - 1].strength), parts[end:]
                    break
            joined.append(first)
            parts = rest
        return ModelReference(joined[0].path, tuple(joined[1:])) if joined[0].strength == 1 else self

    def written(self) -> Any:
        """As a recipe writes it: the short form if that reads back as the same, else a mapping."""
        try:
            if ModelReference.parse(str(self)) == self:
                return str(self)
        except ValueError:
            pass
        return {"model": self.path, "lora": [{"path": a.path, "strength": a.strength} for a in self.adapters]}

    @classmethod
    def parse(cls, value: Any) -> ModelReference:
        """From a recipe's value (string or dict form); ValueError says what is wrong with it."""
        if isinstance(value, ModelReference):
            return value
        if isinstance(value, str):
            _check_escapes(value)
            path, *adapters = map(tidy, value.split("+"))
            if not path or not all(adapters):
                raise ValueError(f"{shown(value)} has an empty path; write base.gguf+adapter.gguf")
            return cls(path, tuple(map(_adapter, adapters)))
        if isinstance(value, dict):
            return cls._from_dict(value)
        raise ValueError(f"a model is a path such as model.gguf, not {shown(value)}")

    @classmethod
    def from_argument(cls, text: str | os.PathLike[str]) -> ModelReference:
        """What a user names on the command line: a file that exists, though its name has a plus sign, else as `parse`.

        PlanError says what is wrong with it.
        """
        text = os.fspath(text)
        if text and Path(text).exists():
            return cls(text)
        try:
            return cls.parse(text)
        except ValueError as error:
            raise PlanError(str(error)) from None

    @classmethod
    def _from_dict(cls, value: dict[str, Any]) -> ModelReference:
        if set(value) - {"model", "lora", "override_architecture"} or "model" not in value:
            raise ValueError("a model written as a mapping has the keys model and lora")
        if value.get("override_architecture"):
            raise ValueError("override_architecture has no meaning for GGUF files; remove it")
        loras = value.get("lora") or []
        return cls(_path(value["model"]), tuple(map(_lora, loras if isinstance(loras, list) else [loras])))


def _lora(value: Any) -> AdapterReference:
    if not isinstance(value, dict) or "strength" not in value:
        return AdapterReference(_path(value))
    strength = value["strength"]
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise ValueError(f"an adapter's strength is a number, not {shown(strength)}")
    return AdapterReference(_path({k: v for k, v in value.items() if k != "strength"}), _finite(strength))


def _path(value: Any) -> str:
    if isinstance(value, dict):
        if value.get("revision"):
            raise ValueError(f"revision {shown(value['revision'])}: {NO_REVISION}")
        if unknown := sorted(set(value) - {"path", "revision"}):
            raise ValueError(f'unknown key {shown(unknown[0])}; a path written as a mapping has the key "path"')
        value = value.get("path")
    if isinstance(value, str):
        _check_escapes(value)
    if not isinstance(value, str) or not tidy(value):
        raise ValueError(f"the path of a model is a text, not {shown(value)}")
    return tidy(value)


def _check_escapes(path: str) -> None:
    """ValueError for `"C:\\new"` in double quotes, where YAML makes a line break of the backslash and the letter."""
    if any(character in path for character in _ESCAPED):
        raise ValueError(
            f"the path {shown(path)} holds a control character: in double quotes a backslash begins an escape: "
            "write the path with /, or in single quotes"
        )


# what \a, \b, \t, \n, \v, \f, \r, \e, \N, \_, \L and \P are in double quotes: C:\Llama begins a line
_ESCAPED = "\a\b\t\n\v\f\r\x1b\x85\xa0\u2028\u2029"


def tidy(path: str) -> str:
    """The path without blanks around it and without a leading `./`, so that one file has one name in a recipe."""
    path = path.strip()
    while path.startswith(("./", ".\\")):
        path = path[2:].lstrip("/\\")
    return path


def _adapter(text: str) -> AdapterReference:
    path, sign, strength = map(str.strip, text.rpartition("="))
    if sign and path:
        try:
            number = float(strength)
        except ValueError:
            if (meant := human_number(strength)) is not None:
                raise ValueError(f"{shown(text)}: an adapter's strength is a number: write {path}={meant:g}") from None
            if path.lower().endswith(_FILES):
                raise ValueError(
                    f"{shown(text)}: an adapter's strength is a number, not {shown(strength)}: write {path}=0.5"
                ) from None
            # else the path itself has an equals sign
        else:
            return AdapterReference(path, _finite(number))
    return AdapterReference(text)


_FILES = (".gguf", ".safetensors")


def _finite(strength: float) -> float:
    try:
        number = float(strength)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"an adapter's strength is a finite number, not {shown(strength)}")
    return number
