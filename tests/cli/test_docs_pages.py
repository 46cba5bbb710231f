"""`ggufmerge docs`, and what holds for all pages whoever reads them: on GitHub, on the site, on a terminal."""

from __future__ import annotations

import pydoc
import re
import runpy
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from ggufmerge.cli import docs, terminal

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]
PAGES = sorted((ROOT / "docs").glob("*.md"))
READ = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*\n", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def start_page() -> list[str]:
    """The pages in the order in which the start page names them."""
    return ["index", *re.findall(r"\]\(([\w-]+)\.md\)", prose(ROOT / "docs" / "index.md"))]


def test_the_reference_of_commands_is_current() -> None:
    """When it is not: python scripts/make_cli_docs.py."""
    made = runpy.run_path(str(ROOT / "scripts" / "make_cli_docs.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == made


def test_topics_are_the_pages_in_the_order_of_the_start_page(run: Run) -> None:
    """Without a topic, all are listed with their titles."""
    code, out, _ = run("docs")
    lines = [line.split(maxsplit=1) for line in out.splitlines()[1:-2]]
    assert (code, [name for name, _ in lines]) == (0, list(dict.fromkeys(start_page())))
    assert dict(lines)["first-merge"] == "Your first merge in five minutes"


def test_every_page_is_on_the_start_page_and_on_the_site_in_one_order() -> None:
    """So nobody has to guess that a page exists."""

    def files(item: object) -> list[str]:
        if isinstance(item, str):
            return [item.removesuffix(".md")]
        values = item.values() if isinstance(item, dict) else item
        return [name for value in values for name in files(value)]  # type: ignore[attr-defined]

    nav = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert nav == list(dict.fromkeys(start_page()))
    assert sorted(nav) == [page.stem for page in PAGES]


@pytest.mark.parametrize("word", ["first-merge", "First-Merge", "first_merge", "docs/first-merge.md", "first merge"])
def test_a_page_in_a_pipe_is_its_markdown(run: Run, word: str) -> None:
    """However its name is written."""
    assert run("docs", word) == (0, (ROOT / "docs" / "first-merge.md").read_text("utf-8"), "")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("recipies", 'did you mean "recipes"?'),
        ("slerp", "see: ggufmerge docs methods"),
        ("imatrix", "see: ggufmerge docs fitting"),
        ("perplexity", "see: ggufmerge docs evaluation"),
        ("troubleshooting", "see: ggufmerge docs nonsense"),
        ("quantise", "see: ggufmerge docs "),
        ("zzzz", 'the nearest is "fuzzing"; ggufmerge docs lists all'),
    ],
)
def test_an_unknown_topic_is_an_error_that_leads_on(run: Run, word: str, hint: str) -> None:
    """To the nearest name, or to the page that says most about the word, however it is spelt."""
    code, out, err = run("docs", word)
    assert (code, out) == (1, "")
    assert err.startswith(f'error: no page is called "{word}": ')
    assert hint in err
    assert len(err) < 120


def test_words_for_a_page_lead_to_one_that_exists() -> None:
    """So a page that gets another name takes them along."""
    assert set(docs._MEANT.values()) <= set(docs._pages())
    assert not set(docs._MEANT) & set(docs._pages())


def test_a_page_on_a_terminal_opens_in_a_pager(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set for reading: no marks of Markdown, and links say which command shows their page."""
    shown: list[str] = []
    monkeypatch.setattr(pydoc, "pager", lambda text, *_, **__: shown.append(text))
    monkeypatch.setattr(terminal, "console", lambda: Console(force_terminal=True, width=200, no_color=True))
    assert run("docs", "first-merge")[0] == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", shown[0])
    assert "Your first merge in five minutes" in text
    assert "which type, which method (ggufmerge docs which)" in text
    assert "](" not in text
    assert "**" not in text


def test_the_pages_come_with_the_package(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel puts them into a folder of the package, where they are found when there is no checkout."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    [(source, target)] = build["targets"]["wheel"]["force-include"].items()
    shutil.copytree(ROOT / source, tmp_path / target)
    monkeypatch.setattr(docs, "__file__", str(tmp_path / "ggufmerge" / "cli" / "docs.py"))
    assert run("docs", "glossary")[1] == (ROOT / "docs" / "glossary.md").read_text("utf-8")
    shutil.rmtree(tmp_path / target)
    assert "the pages are missing: install ggufmerge again" in run("docs")[2]


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading of it."""
    for target in LINK.findall(prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lists_look_the_same_on_github_and_on_the_site(page: Path) -> None:
    """The site makes a list only after an empty line, a heading or another entry."""
    before = ""
    for line in prose(page).splitlines():
        if re.match(r"([-*]|\d+\.) ", line):
            assert re.match(r"$|#|[-*] |\d+\. |  ", before), f"{page.name}: {line}"
        before = line
