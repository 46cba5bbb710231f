"""Imports point one way: down the list of rooms, and never in a circle.

The list is the table "Packages" of docs/architecture.md, outermost first. An import inside a function counts, too.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import runpy
from pathlib import Path

import ggufmerge

PACKAGE = Path(ggufmerge.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"


@functools.cache
def modules() -> dict[str, Path]:
    """All modules by name, `quants.k`; the front door is ``."""
    paths = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(part for part in parts if part != "__init__"): path for path, parts in paths.items()}


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the others; names out of a package lead to the module that has them."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ggufmerge":
                package = node.module.removeprefix("ggufmerge").lstrip(".")
                names = (f"{package}.{alias.name}".lstrip(".") for alias in node.names)
                found[name] |= {one if one in modules() else package for one in names}
            elif isinstance(node, ast.Import):
                parts = (alias.name.partition(".") for alias in node.names)
                found[name] |= {rest for first, _, rest in parts if first == "ggufmerge"}
        found[name].discard(name)
    return found


def rooms() -> list[str]:
    """The rooms of the architecture page, outermost first."""
    text = ARCHITECTURE.read_text("utf-8")
    table = text[text.index("| package |") :].split("\n\n")[0].splitlines()[2:]
    return [room for line in table for room in re.findall(r"`([\w/.]+)`", line.split("|")[1])]


def place(module: str) -> int:
    """Where in the list the room of a module is."""
    names = [module.split(".")[0] + "/", module + ".py", "ggufmerge/" + (module or "__init__") + ".py"]
    [found] = [i for i, room in enumerate(rooms()) if room in names]
    return found


def test_every_room_is_in_the_list() -> None:
    """And the list has no room that is not there."""
    assert {rooms()[place(module)] for module in modules()} == set(rooms())


def test_imports_point_downwards() -> None:
    """A room uses what is below it in the list, and itself."""
    upwards = [f"{a} -> {b}" for a, used in imports().items() for b in used if place(b) < place(a)]
    assert upwards == []


def test_there_are_no_circles() -> None:
    """No module imports itself by way of others. A package that gathers the names of its modules is no module here."""
    graph = {a: {b for b in used if "__init__" not in modules()[b].name} for a, used in imports().items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_architecture_page_names_every_module() -> None:
    """Each once, with the sentence that its docstring begins with; when not: python scripts/make_module_docs.py."""
    made = runpy.run_path(str(PACKAGE.parent / "scripts" / "make_module_docs.py"))
    page = made["page"]()
    assert ARCHITECTURE.read_text("utf-8") == page
    listed = re.findall(r"^- `([\w/.]+)`: (.+)", page, re.M)
    assert sorted(name for name, _ in listed) == sorted(
        str(p.relative_to(PACKAGE).as_posix()) for p in modules().values()
    )
    assert [name for name, question in listed if len(question) < 20] == []
