"""docs/methods.md names every method and every parameter with the default it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ggufmerge.methods import NAMES, method
from ggufmerge.methods.parameters import REQUIRED
from ggufmerge.methods.task_vectors import TaskVectors

TEXT = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def section(name):
    """The text under the heading of a method, or of the task vectors for that family."""
    heading = "## Task vectors" if isinstance(method(name), TaskVectors) else f"### {name}"
    found = re.search(rf"^{heading}\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found[1]


def shown(value):
    if value is REQUIRED:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else value


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_of_a_method_are_documented(name):
    """Name, scope, default and meaning, as the code has them."""
    chosen, text = method(name), section(name)
    for q in chosen.parameters:
        per_method = isinstance(chosen, TaskVectors) and q.name in ("normalize", "rescale")
        default = "as above" if per_method else shown(q.default)
        scope = "tensor" if q.scope == "shared" else "model"
        assert f"| `{q.name}` | per {scope} | {default} | {q.doc} |\n" in text


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(method(n), TaskVectors)])
def test_the_defaults_of_a_task_vector_method_are_in_the_table(name):
    """Whether it votes, normalizes and rescales unless told otherwise."""
    chosen = method(name)
    normalize, rescale = chosen.parameter("normalize"), chosen.parameter("rescale")
    cells = ["yes" if chosen.vote else "no", shown(normalize.default), shown(rescale.default) if rescale else "–"]
    (row,) = re.findall(rf"^\| `{name}` \|.*$", section(name), re.MULTILINE)
    assert [cell.strip() for cell in row.split("|")[3:6]] == cells


@pytest.mark.parametrize("name", NAMES)
def test_the_source_of_a_method_is_documented(name):
    """The paper's number or the address stands in its section; what has none says where it comes from."""
    reference = method(name).reference
    if reference and name != "ramplus_tl":
        assert reference.split("arXiv:")[-1].split("https://")[-1].split()[-1] in section(name)
