"""`ggufmerge docs`: the pages of the documentation, read on a terminal.

The pages are those of docs/ in the repository. A wheel carries them in `ggufmerge/docs` (force-include in
pyproject.toml); in a checkout they are read where they are.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

HELP = """Read the documentation; without TOPIC, list the pages.

On a terminal a page opens in a pager (q ends it). In a pipe it is plain Markdown.

[bold]Examples[/bold]

  ggufmerge docs

  ggufmerge docs first-merge

  ggufmerge docs methods | grep -A 12 "### slerp"
"""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FOR_THE_SITE = re.compile(r"^::: .*\n(?:[ ]+.*\n)*", re.MULTILINE)  # where it puts docstrings
_IN_LINES = re.MULTILINE | re.IGNORECASE
_MEANT = {  # words that no page has, and the page for them
    **dict.fromkeys(("troubleshooting", "troubleshoot", "faq", "problem", "problems", "errors", "bug"), "nonsense"),
    **dict.fromkeys(("start", "quickstart", "getting-started", "tutorial", "install", "introduction"), "first-merge"),
    **dict.fromkeys(("speed", "benchmark", "benchmarks", "ram", "vram", "gpu", "cuda"), "performance"),
    **dict.fromkeys(("options", "commands", "reference", "help"), "cli"),
}
_LISTS = ("index", "cli", "api")  # pages that name everything and explain little
_PAGE = re.compile(r"(?:([\w-]+)\.md)?(?:#[\w-]+)?")


def docs(
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", help="The name of a page, such as recipes.", show_default=False)
    ] = None,
) -> None:
    from ggufmerge.cli.terminal import console, say, show_table

    pages = _pages()
    if topic is None:
        show_table(("topic", "page"), [(name, _title(path)) for name, path in pages.items()])
        say("ggufmerge docs TOPIC shows a page.")
        return
    text = _read(_found(topic, pages))
    if console().is_terminal:
        _show(text)
    else:
        typer.echo(text, nl=False)


def _pages() -> dict[str, Path]:
    """Pages by topic, in the order in which the start page names them; what it does not name comes last."""
    from ggufmerge.errors import GgufmergeError

    package = Path(__file__).parents[1]
    # a checkout comes first: it may have been installed as a wheel before, whose pages are older
    folders = [folder for folder in (package.parent / "docs", package / "docs") if (folder / "index.md").is_file()]
    if not folders:
        raise GgufmergeError(f"{package / 'docs'}: the pages are missing: install ggufmerge again")
    found = {path.stem: path for path in sorted(folders[0].glob("*.md"))}
    named = [match[1] for _, _, target in _LINK.findall(_read(found["index"])) if (match := _PAGE.fullmatch(target))]
    order = dict.fromkeys(["index", *(name for name in named if name in found), *found])
    return {name: found[name] for name in order}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _title(path: Path) -> str:
    return _read(path).partition("\n")[0].removeprefix("# ")


def _found(topic: str, pages: dict[str, Path]) -> Path:
    """The page that a user means, however its name is spelt.

    GgufmergeError names the nearest page: one whose name is alike, else the one that says most about the word.
    """
    from difflib import get_close_matches

    from ggufmerge.errors import GgufmergeError, close_to
    from ggufmerge.text import quoted

    name = Path(topic).name.lower().removesuffix(".md").replace("_", "-").replace(" ", "-")
    if name in pages:
        return pages[name]
    texts = {page: _read(path) for page, path in pages.items() if page not in _LISTS}
    words = set(re.findall(r"[a-z]{4,}", "\n".join(texts.values()).lower()))
    if name in _MEANT:
        hint = f"see: ggufmerge docs {_MEANT[name]}"
    elif about := _most_about(name, texts):
        hint = f"see: ggufmerge docs {about}"
    elif spelt := close_to(name, pages):
        hint = f'did you mean "{spelt}"?'
    elif about := _most_about(next(iter(get_close_matches(name, words, 1, 0.75)), ""), texts):
        hint = f"see: ggufmerge docs {about}"
    else:
        hint = f'the nearest is "{get_close_matches(name, pages, 1, 0)[0]}"; ggufmerge docs lists all'
    raise GgufmergeError(f"no page is called {quoted(topic)}: {hint}")


def _most_about(name: str, texts: dict[str, str]) -> str:
    """The page that says most about a word, above all in its headings; "" when none has it."""
    word = r"\b" + "[- ]".join(map(re.escape, name.split("-")))
    said = {page: len(re.findall(word, text, re.IGNORECASE)) for page, text in texts.items()}
    said |= {page: n + 10 * len(re.findall(rf"^#+ .*{word}", texts[page], _IN_LINES)) for page, n in said.items()}
    most = max(said, key=lambda page: said[page])
    return most if said[most] and re.search("[a-z0-9]{3}", name) else ""


def _show(text: str) -> None:
    """A page with its headings, tables and code set for the terminal, in the user's pager."""
    from rich.markdown import Markdown

    from ggufmerge.cli.terminal import console

    # less shows colours, and ends by itself when the page fits the screen; a user's own setting wins
    os.environ.setdefault("LESS", "-FRX")
    out = console()
    with out.pager(styles=sys.platform != "win32"):  # more of Windows shows colours as codes
        out.print(Markdown(_for_terminal(text), hyperlinks=False))


def _for_terminal(text: str) -> str:
    """Markdown in which links to other pages say how to read them here, and pictures are left out."""

    def shown(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        if picture:
            return ""
        page = _PAGE.fullmatch(target)
        if page is None:
            return match[0]
        return f"{label} (`ggufmerge docs {page[1]}`)" if page[1] else label

    return _LINK.sub(shown, _FOR_THE_SITE.sub("", text))
