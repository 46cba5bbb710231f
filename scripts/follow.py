"""Prints how a recipe gets from the front door to its plan: the functions that are called, module by module.

    python scripts/follow.py RECIPE.yaml [--all]

The path is an indented tree. A call that leaves its module is an entry into the other one; of several calls of one
function from the same other function only the first is shown and counted. After the tree comes how often each module is
entered. Calls that go down to the ground (`files`, `formats`, `quants`, ..., whose modules serve everybody) are left
out unless `--all` is given.
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
from ggufmerge.engine.progress import Progress

PACKAGE = Path(ggufmerge.__file__).parent
GROUND = (
    "chat",
    "files",
    "formats",
    "methods",
    "quants",
    "tokenizers",
    "kernels",
    "patterns",
    "types",
    "errors",
    "text",
)

Call = tuple[int, str, str]  # depth, module, function


class PlannedError(Exception):
    """The plan is made: nothing more is to be followed."""


class Follower(Progress):
    """Notes the calls of this thread until the plan is made."""

    def __init__(self, *, ground: bool) -> None:
        self._ground = ground
        self._modules: dict[CodeType, str] = {}
        self._seen: set[tuple[str, str]] = set()
        self._stack: list[FrameType] = []
        self.calls: list[Call] = []
        self.entries: Counter[str] = Counter()

    def warn(self, warnings: Any) -> None:
        """The first that a build tells of is what it planned."""
        sys.setprofile(None)
        raise PlannedError

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """As `sys.setprofile` wants it."""
        if event == "return" and self._stack and self._stack[-1] is frame:
            self._stack.pop()
        elif event == "call" and (module := self._module(frame.f_code)):
            self._note(frame, module)

    def _note(self, frame: FrameType, module: str) -> None:
        if self._stack and _of_one_function(frame, self._stack[-1]):
            return  # a comprehension, or a function inside of another
        caller = self._name(self._stack[-1]) if self._stack else ""
        name = self._name(frame)
        if (caller, name) not in self._seen:
            self._seen.add((caller, name))
            self.calls.append((len(self._stack), module, name.partition(":")[2]))
            self.entries[module] += caller.partition(":")[0] != module
        self._stack.append(frame)

    def _name(self, frame: FrameType) -> str:
        return f"{self._module(frame.f_code)}:{frame.f_code.co_qualname}"

    def _module(self, code: CodeType) -> str:
        """`engine/planner.py`; empty for what is not followed."""
        if code not in self._modules:
            path = Path(code.co_filename)
            name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else ""
            hidden = code.co_name.startswith("<") or (not self._ground and name.split("/")[0].split(".")[0] in GROUND)
            self._modules[code] = "" if hidden or name.endswith("__init__.py") else name
        return self._modules[code]


def _of_one_function(inner: FrameType, outer: FrameType) -> bool:
    return inner.f_code.co_qualname.startswith(f"{outer.f_code.co_qualname}.<locals>.")


def follow(recipe: str, *, ground: bool = False) -> Follower:
    """The calls from `engine.build.build` down to the plan of a recipe."""
    follower = Follower(ground=ground)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(follower.profile)
        try:
            build(recipe, Path(folder) / "out.gguf", progress=follower)
        except PlannedError:
            pass
        finally:
            sys.setprofile(None)
    return follower


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--all"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    follower = follow(arguments[0], ground="--all" in sys.argv)
    width = max(len(module) for _, module, _ in follower.calls)
    for depth, module, name in follower.calls:
        print(f"{module:{width}}  {'  ' * depth}{name}")
    print()
    for module, count in follower.entries.most_common():
        print(f"{count:4}  {module}")
    print(f"{sum(follower.entries.values()):4}  entries in {len(follower.calls)} calls")


if __name__ == "__main__":
    main()
