"""Errors that are the user's to read: one line that says what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self


class GgufmergeError(Exception):
    """Something a user can mend; the command line prints its text and exits with 1.

    lines: its complaints, one line each. A line break within one comes out of a file or a path and ends no line.
    """

    def __init__(self, *complaints: str) -> None:
        super().__init__("\n".join(complaints))
        self.lines = complaints

    def at(self, where: str) -> Self:
        """This error with the place that its complaints are about, such as `recipe.yaml:7:5`; "" for none."""
        if where:
            self.lines = tuple(f"{where}: {line}" for line in self.lines)
            self.args = ("\n".join(self.lines),)
        return self


class FormatError(GgufmergeError):
    """A file is not a GGUF file that llama.cpp would accept."""


class DamageError(GgufmergeError):
    """A file holds weights that are no finite numbers, or an adapter makes such of them."""


class RecipeError(GgufmergeError):
    """A recipe says something that cannot be carried out."""


class PlanError(GgufmergeError):
    """The recipe is fine but these files, this disk or this output path do not allow it."""


class RoleError(PlanError):
    """A file is sound but not what it was given as: an adapter in the place of a model, a model in that of an adapter.

    what: the file and what it is.  todo: what to do about it; a command that knows better says so with `to_do`.
    wanted, found: what the file should be and what it is, "model", "adapter" or "" for anything else.
    """

    def __init__(self, what: str, todo: str, *, wanted: str, found: str) -> None:
        super().__init__(f"{what}; {todo}")
        self.what, self.wanted, self.found = what, wanted, found

    def to_do(self, todo: str) -> RoleError:
        """The same error with other advice."""
        return RoleError(self.what, todo, wanted=self.wanted, found=self.found)


class OutputError(PlanError):
    """The output cannot be written here and now: no space, an error of the disk, another process, a name that is taken.

    The inputs are not to blame, so what is finished is kept, and the same command goes on with it.
    """


def nearest(word: str, choices: Iterable[str]) -> str:
    """A phrase that suggests the choice closest to `word`, or lists the choices when none is close.

    >>> nearest("densty", ["weight", "density"])
    'did you mean "density"?'
    """
    choices = list(choices)
    folded = {c.lower(): c for c in choices}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{folded[close[0]]}"?'
    return "known: " + ", ".join(choices)


@contextmanager
def collected(lines: list[str]) -> Iterator[None]:
    """Errors in the block put their complaints to `lines` and end it, so that what follows is looked at, too."""
    try:
        yield
    except GgufmergeError as error:
        lines += error.lines


def option(name: str, value: object = None) -> str:
    """How the caller writes an argument of the library: `overwrite=True` in Python, `--overwrite` on the command line.

    Messages name arguments through this, so that they say what can be typed where they are read.

    >>> option("imatrix", "FILE")
    'imatrix=FILE'
    """
    return _spelling(name, value)


@contextmanager
def spoken(spelling: Callable[[str, object], str]) -> Iterator[None]:
    """While the block runs, `option` spells arguments so."""
    global _spelling
    before, _spelling = _spelling, spelling
    try:
        yield
    finally:
        _spelling = before


def _in_python(name: str, value: object) -> str:
    return name if value is None else f"{name}={value}"


_spelling: Callable[[str, object], str] = _in_python
