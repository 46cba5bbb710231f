"""What a YAML error means, in words of the text: PyYAML speaks of tokens, and the user has moved a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from ggufmerge.text import quoted

# of lines that may have a million letters, so nothing in them is gone through twice
_KEY = re.compile(r"([^\s'\"{}\[\],&*#?|\-<>=!%@:][^:#]*):(?:\s|$)")
_DASHES = re.compile(r" *((?:- +)*)")
_MAX_LISTS = 20  # within each other on one line; the reader takes no more


def explain(error: yaml.MarkedYAMLError, text: str) -> str:
    """What is wrong, and what to do about it; "" for an error that is not known here."""
    context, problem = error.context or "", error.problem or ""
    mark = error.problem_mark or error.context_mark
    lines = text.split("\n")
    if mark is None or mark.line >= len(lines):
        mark = error.context_mark
    if mark is None:
        return ""
    number, column = mark.line, mark.column
    if "'\\t'" in problem:
        return f"line {number + 1} is indented with a tab: indent with spaces"
    if "double-quoted" in context and "escape" in problem:
        return "in double quotes a backslash begins an escape: write the path with /, or in single quotes"
    if "quoted scalar" in context:
        return f"the quote in {_at(error.context_mark)} is never closed"
    if match := re.match(r"expected ',' or '([}\]])'", problem):
        opened = {"}": "{", "]": "["}[match[1]]
        return f'the "{opened}" in {_at(error.context_mark)} is not closed: a comma or a "{match[1]}" is missing'
    if "alias" in context + problem:
        return '"*" begins an alias in YAML: write the text in quotes'
    if lines[number].lstrip().startswith(("```", "~~~")):
        return "a code fence, and not of one recipe: keep one recipe, without the fences around it"
    if match := re.match(r"found character ('.'|\"'\") that cannot start any token", problem):
        return f"a value cannot begin with {match[1]}: write it in quotes"
    if "could not find expected ':'" in problem and error.context_mark is not None:
        return _without_colon(lines[error.context_mark.line], error.context_mark.line)
    if "mapping values are not allowed" in problem:
        return _second_colon(lines, number, column)
    if "sequence entries are not allowed" in problem:
        return 'a list begins below its key: put the "- " on a line of its own'
    if "expected <block end>" in problem or "expected '<document start>'" in problem:
        return _misindented(lines, number, context)
    return ""


@dataclass(frozen=True)
class _Level:
    """A column in which a list ("-") or a mapping (its key) of the lines above stands."""

    column: int
    line: int
    word: str


def _at(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the text"


def _levels(lines: Sequence[str], number: int) -> list[_Level]:
    """What is open above a line, the innermost first."""
    found: list[_Level] = []
    for at in range(number - 1, -1, -1):
        for level in reversed(_of_line(lines[at], at)):
            if not found or level.column < found[-1].column:
                found.append(level)
    return found


def _of_line(line: str, at: int) -> list[_Level]:
    """The columns in which the lists and the mapping of one line begin."""
    dashes = _DASHES.match(line)
    assert dashes is not None, "the expression matches nothing, too"
    columns = [dashes.start(1) + i for i, letter in enumerate(dashes[1]) if letter == "-"]
    found = [_Level(column, at, "-") for column in columns[:_MAX_LISTS]]
    if match := _KEY.match(line, dashes.end()):
        found.append(_Level(dashes.end(), at, match[1].rstrip()))
    return found


def _misindented(lines: Sequence[str], number: int, context: str) -> str:
    line = lines[number]
    column = len(line) - len(line.lstrip(" "))
    levels = _levels(lines, number)
    is_entry = line.lstrip(" ").startswith("- ")
    same_kind = [level for level in levels if (level.word == "-") == is_entry]
    beside = next((level for level in levels if level.column == column), None)
    if beside is not None and beside in same_kind:
        return ""
    if beside is not None and is_entry:
        return f'line {number + 1} begins with "-" in the column of {_named(beside)}: indent it more, or remove the "-"'
    deeper = [level for level in same_kind if level.column > column]
    if beside is not None and not deeper:
        return ""
    level = deeper[-1] if deeper else next((level for level in levels if level.column > column), None)
    return _moved(number, column, level, "less") if level else ""


def _second_colon(lines: Sequence[str], number: int, column: int) -> str:
    line = lines[number]
    own = _of_line(line, number)
    if own and own[-1].word != "-" and _KEY.match(line, own[-1].column).end() <= column:  # type: ignore[union-attr]
        return 'a value with ": " in it is written in quotes'
    above = next(
        (at for at in range(number - 1, -1, -1) if lines[at].strip() and not lines[at].lstrip().startswith("#")), None
    )
    if above is None:
        return ""
    if not _of_line(lines[above], above) or _of_line(lines[above], above)[-1].word == "-":
        return _without_colon(lines[above], above)
    start = len(line) - len(line.lstrip(" "))
    return _moved(number, start, _of_line(lines[above], above)[-1], "more")


def _moved(number: int, column: int, level: _Level, how: str) -> str:
    spaces = "1 space" if level.column == 1 else f"{level.column} spaces" if level.column else "no spaces"
    return f"line {number + 1} is indented {how} than {_named(level)}: give it {spaces}, not {column}"


def _named(level: _Level) -> str:
    return f"{quoted(level.word)} in line {level.line + 1}"


def _without_colon(line: str, at: int) -> str:
    words = line.strip().removeprefix("- ")
    if match := re.fullmatch(r"(\w+):(\S.*)", words):
        return f"line {at + 1} needs a blank after the colon: {quoted(f'{match[1]}: {match[2]}')}"
    key, _, value = words.partition(" ")
    return f"line {at + 1} lacks its colon: {quoted(f'{key}: {value}'.strip())}"
