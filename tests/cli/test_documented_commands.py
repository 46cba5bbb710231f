"""The command lines in the docs are ones that the program takes."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from ggufmerge.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "recipes" / "demo" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def declared() -> dict[str, set[str]]:
    """The options of each command, by its name."""
    made = runpy.run_path(str(ROOT / "scripts" / "make_cli_docs.py"))
    return {
        command.name: {name for p in command.parameters for name in re.findall(r"(?<=`)--?[\w-]+", p.option())}
        for command in made["_commands"](made["app"], ())
    }


HIDDEN = {command.name or command.callback.__name__ for command in app.registered_commands if command.hidden}


def lines(page: Path) -> list[str]:
    """What is written as code and begins with the program's name, up to a comment or the next program."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    code = re.findall(r"^ {4,}(?:\$ )?(ggufmerge .*)$|`(ggufmerge [^`]+)`", text, re.MULTILINE)
    return [re.split(r"\s#|\s[|>]\s|&&", "".join(pair).replace("\n", " "))[0] for pair in code]


DECLARED = declared()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_commands_exist(page: Path) -> None:
    """With all the options that are shown."""
    for line in lines(page):
        words = line.split()[1:]
        if words[0].isupper() or words[0].startswith("-") or words[0] in HIDDEN:  # such as COMMAND
            continue
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in DECLARED), None)
        assert name, line
        options = {word.split("=")[0] for word in re.sub(r'"[^"]*"', "", line).split() if re.match(r"--?[a-z]", word)}
        assert options <= DECLARED[name] | {"--help"}, line
