"""Names of files and folders that every system takes.

Source of what Windows refuses: "Naming Files, Paths, and Namespaces" in Microsoft's documentation.
"""

from __future__ import annotations

import re

from ggufmerge.errors import PlanError
from ggufmerge.text import quoted

_MAX = 100  # letters: LM Studio's own limit; file systems have 255 bytes, and work files have longer names
_FORBIDDEN = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE | re.DOTALL)
# llama.cpp (`is_mmproj_file`, `is_draft_file` in common/preset.cpp) and LM Studio take such files for parts of others
_COMPANION = re.compile(r"mmproj|^(mtp|dspark|dflash)-", re.IGNORECASE)


def check_part(part: str, label: str) -> None:
    """PlanError, which begins with `label`, unless a folder or file may be called so everywhere."""
    problem = _problem(part)
    if problem:
        raise PlanError(f"{label}: {quoted(part)} cannot be the name of a folder: {problem}")


def check_stem(stem: str, label: str) -> None:
    """PlanError unless programs take a file of this name for a model of its own."""
    check_part(stem, label)
    if _COMPANION.search(stem):
        raise PlanError(f"{label}: programs take a file called {stem}.gguf for a part of another model; rename it")


def safe_stem(text: str) -> str:
    """The closest name to a text that every system takes, "model" when nothing is left of it."""
    stem = re.sub(r"[\s\-]+", "-", _FORBIDDEN.sub("-", "".join(c if c.isprintable() else "-" for c in text)))
    stem = _COMPANION.sub("", stem)[:_MAX].strip(" .-")
    return f"{stem}-model" if _DEVICES.fullmatch(stem) else stem or "model"


def _problem(part: str) -> str:
    if not part:
        return "it is empty"
    if found := _FORBIDDEN.search(part):
        return f"it has {quoted(found[0])} in it"
    if part != part.strip(" ") or part.strip(".") != part:
        return "it begins or ends with a space or a dot"
    if len(part) > _MAX:
        return f"it has more than {_MAX} letters"
    if not part.isprintable():
        return "it has letters that cannot be seen"
    return "Windows has a device of this name" if _DEVICES.fullmatch(part) else ""
