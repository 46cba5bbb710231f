"""Prints how a recipe gets from the front door to its plan: the functions that are called, module by module.

    python scripts/follow.py RECIPE.yaml [--all]

The path is an indented tree, from `engine.build.build` to the plan. Calls of one function from the same other function
are shown and counted once. Below the tree, for each module: how many functions of it are entered from other modules,
how often (each pair of caller and function once), and how often other modules ask an object of it that they were
handed. Calls to the ground (`files`, `formats`, `quants`, ..., whose modules serve everybody) are left out unless
`--all` is given.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import ggufmerge
from ggufmerge.engine.build import build

PACKAGE = Path(ggufmerge.__file__).parent
GROUND = {
    "architectures",
    "chat",
    "files",
    "formats",
    "methods",
    "quants",
    "tokenizers",
    "kernels",
    "keys",
    "patterns",
    "types",
    "errors",
    "text",
}
END = "planned_documents"  # a context manager: what it gives is the plan


class PlannedError(Exception):
    """The plan is made: nothing more is to be followed."""


class Follower:
    """Notes the calls of this thread until the plan is made."""

    def __init__(self, *, ground: bool) -> None:
        self._ground = ground
        self._modules: dict[CodeType, str] = {}
        self._seen: set[tuple[str, str]] = set()
        self._stack: list[FrameType] = []
        self.calls: list[tuple[int, str, str]] = []  # (depth, module, function)
        self.entries: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.doors: dict[str, set[str]] = {}

    def profile(self, frame: FrameType, event: str, value: Any) -> None:
        """As `sys.setprofile` wants it."""
        if event == "return" and self._stack and self._stack[-1] is frame:
            self._stack.pop()
            if frame.f_code.co_name == END and value is not None:
                sys.setprofile(None)
                raise PlannedError
        elif event == "call" and (module := self._module(frame.f_code)):
            self._note(frame, module)

    def _note(self, frame: FrameType, module: str) -> None:
        caller = self._name(self._stack[-1]) if self._stack else ""
        name = self._name(frame)
        function = name.partition(":")[2]
        if (caller, name) not in self._seen and not name.startswith(f"{caller}.<locals>."):
            self._seen.add((caller, name))
            self.calls.append((len(self._stack), module, function))
            if caller.partition(":")[0] != module:
                is_method = frame.f_code.co_varnames[:1] == ("self",) and frame.f_code.co_name != "__init__"
                (self.asked if is_method else self.entries)[module] += 1
                if not is_method:
                    self.doors.setdefault(module, set()).add(function)
        self._stack.append(frame)

    def _name(self, frame: FrameType) -> str:
        return f"{self._module(frame.f_code)}:{frame.f_code.co_qualname}"

    def _module(self, code: CodeType) -> str:
        """`planning/planner.py`; empty for what is not followed."""
        if code not in self._modules:
            path = Path(code.co_filename)
            name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ""
            hidden = code.co_name.startswith("<") or (not self._ground and name.split("/")[0].split(".")[0] in GROUND)
            self._modules[code] = "" if hidden or name.endswith("__init__.py") else name
        return self._modules[code]


def follow(recipe: str, *, ground: bool = False) -> Follower:
    """The calls from `engine.build.build` down to the plan of a recipe."""
    follower = Follower(ground=ground)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(follower.profile)
        try:
            build(recipe, Path(folder) / "out.gguf")
        except PlannedError:
            pass
        finally:
            sys.setprofile(None)
    return follower


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--all"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    found = follow(arguments[0], ground="--all" in sys.argv)
    width = max(len(module) for _, module, _ in found.calls)
    for depth, module, name in found.calls:
        print(f"{module:{width}}  {'  ' * depth}{name}")
    print(f"\n{'':{width}}  functions  entered  asked")
    for module in sorted(found.entries | found.asked, key=lambda m: (-found.entries[m], -found.asked[m])):
        doors = len(found.doors.get(module, ()))
        print(f"{module:{width}}  {doors:9}  {found.entries[module]:7}  {found.asked[module]:5}")
    print(f"{'together':{width}}  {'':9}  {found.entries.total():7}  {found.asked.total():5}")


if __name__ == "__main__":
    main()
