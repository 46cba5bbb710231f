"""`scripts/changelog.py`: fragments become the section of a release, and none is lost."""

from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DAY = datetime.date(2027, 1, 31)
OLDER = "## [0.9.0] - 2026-01-01\n\n### Fixed\n- An old fault.\n"


@pytest.fixture(scope="module")
def changelog() -> ModuleType:
    spec = importlib.util.spec_from_file_location("changelog", ROOT / "scripts" / "changelog.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose next version is 1.0.0, with three fragments and an older release."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.0.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\nOf all things.\n\n{OLDER}")
    folder = tmp_path / "changelog.d"
    folder.mkdir()
    (folder / "README.md").write_text("# Fragments\n")
    (folder / "b.added.md").write_text("Two lines\nof one change.\n")
    (folder / "a.added.md").write_text("Another.\n\nWith a paragraph.\n")
    (folder / "12.fixed.md").write_text("A fault.\n")
    return tmp_path


def test_a_release_stands_above_older_ones_by_kind(changelog: ModuleType, project: Path) -> None:
    """Each fragment is an item, added before fixed, and the fragments are gone."""
    changelog.write(project, DAY)
    assert (project / "CHANGELOG.md").read_text() == (
        "# Changelog\n\nOf all things.\n\n## [1.0.0] - 2027-01-31\n\n"
        "### Added\n- Another.\n\n  With a paragraph.\n- Two lines\n  of one change.\n\n### Fixed\n- A fault.\n\n"
        + OLDER
    )
    assert [path.name for path in (project / "changelog.d").iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda p: (p / "changelog.d" / "c.improved.md").write_text("x"), "NAME.KIND.md"),
        (lambda p: (p / "changelog.d" / "added.md").write_text("x"), "NAME.KIND.md"),
        (lambda p: (p / "changelog.d" / "c.added.md").write_text("\n"), "is empty"),
        (lambda p: (p / "pyproject.toml").write_text('[project]\nversion = "0.9.0"\n'), "is there already"),
        (lambda p: [path.unlink() for path in (p / "changelog.d").glob("*.*.md")], "no fragment"),
    ],
)
def test_what_cannot_be_released_is_said_and_stays(
    changelog: ModuleType, project: Path, change: object, complaint: str
) -> None:
    """A wrong name, an empty fragment, a version that was released, nothing to release: no file changes."""
    change(project)  # type: ignore[operator]
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(changelog.ChangelogError, match=complaint):
        changelog.write(project, DAY)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_the_fragments_of_this_project_can_be_released(changelog: ModuleType) -> None:
    """Every name has a kind and every file a text; right after a release there are none."""
    if any(changelog.fragments(ROOT / "changelog.d").values()):
        assert changelog.section(ROOT, DAY).startswith("## [")
