"""Write the list of all modules into docs/architecture.md: each once, with the first sentence of its docstring.

    python scripts/make_module_docs.py

Run it after a module came, went or changed what it is for; tests/test_imports.py fails until it was run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
HEAD = "## Every module, and the question it answers\n"


def page() -> str:
    """The whole of docs/architecture.md as it should be."""
    text = PAGE.read_text("utf-8")
    own = text.partition(HEAD)[0].rstrip()
    return f"{own}\n\n{HEAD}Made by `scripts/make_module_docs.py` from the first sentence of each.\n\n{_list(own)}"


def _list(text: str) -> str:
    """A heading for each room that is a package, in the order of the table of rooms, and a line for each module."""
    table = text[text.index("| package |") :].split("\n\n")[0].splitlines()[2:]
    rooms = [room for line in table for room in re.findall(r"`([\w/.]+)`", line.split("|")[1])]
    packages = [room.rstrip("/") for room in rooms if room.endswith("/")]
    parts = ["\n".join(_line(ROOT / "ggufmerge" / name) for name in _top(rooms))]
    for package in packages:
        folder = ROOT / "ggufmerge" / package
        lines = [_line(path) for path in sorted(folder.rglob("*.py"), key=_order)]
        parts.append(f"### {package}/\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _top(rooms: list[str]) -> Iterator[str]:
    """The modules outside of packages, by name."""
    return (Path(room).name for room in rooms if room.endswith(".py"))


def _order(path: Path) -> tuple[str, bool, str]:
    """A package before its modules, and these before those of packages within it."""
    return str(path.parent), path.name != "__init__.py", path.name


def _line(path: Path) -> str:
    name = path.relative_to(ROOT / "ggufmerge").as_posix()
    return f"- `{name}`: {question(path)}"


def question(path: Path) -> str:
    """The first sentence of a module's docstring, as one line that ends in a full stop or a question mark."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    first = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.?])\s+(?=[A-Z`])", first)[0]
    return sentence if sentence.endswith((".", "?")) else sentence + "."


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
