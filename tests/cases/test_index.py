"""The table of cases leads to tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROWS = re.compile(r"^\| (?:(\d\d) \| .+? \| |[^|]+\| )`(tests/[\w/]+\.py)::(test_\w+)`", re.MULTILINE)
FOUND = ROWS.findall(Path(__file__).with_name("README.md").read_text(encoding="utf-8"))


def test_every_case_leads_to_a_test() -> None:
    """By file and name."""
    known = {
        module: {node.name for node in ast.walk(ast.parse((ROOT / module).read_text("utf-8"))) if is_function(node)}
        for module in {module for _, module, _ in FOUND}
    }
    assert [(module, name) for _, module, name in FOUND if name not in known[module]] == []
    lines = Path(__file__).with_name("README.md").read_text(encoding="utf-8").splitlines()
    assert len(FOUND) == sum("::test_" in line for line in lines)


def test_every_test_of_a_case_says_what_holds() -> None:
    """And which case it is, or it is in no table."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        tests = {node.name: ast.get_docstring(node) or "" for node in tree.body if is_function(node)}
        for number, module, name in FOUND:
            if module.endswith(f"cases/{path.name}") and number:
                text = path.read_text("utf-8")
                assert tests[name], name
                assert re.search(rf"\b{number}\b", tests[name]) or f"# {number}: " in text, f"{name}: {number}"


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
