"""Packages as `pip install` leaves them behind, for tests of plug-ins."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

EXAMPLE = Path(__file__).parent / "plugin_example"


def write_package(
    site: Path, name: str, groups: Mapping[str, Mapping[str, str]], modules: Mapping[str, str] | None = None
) -> None:
    """A package with entry points by group, and the text of its modules, in a folder for sys.path."""
    facts = site / f"{name.replace('-', '_')}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (facts / "entry_points.txt").write_text("\n".join([*lines, ""]), "utf-8")
    for module, text in (modules or {}).items():
        (site / f"{module}.py").write_text(text, "utf-8")


def write_example(site: Path) -> None:
    """The example of docs/plugins.md."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    write_package(site, project["name"], project["entry-points"])
    shutil.copytree(EXAMPLE / "ggufmerge_example", site / "ggufmerge_example")
