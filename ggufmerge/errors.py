"""Errors that are the user's to read: one line that says what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GgufmergeError(Exception):
    """Something a user can mend; the command line prints its text on one line and exits with 1."""


class FormatError(GgufmergeError):
    """A file is not a GGUF file that llama.cpp would accept."""


class RecipeError(GgufmergeError):
    """A recipe says something that cannot be carried out."""


class PlanError(GgufmergeError):
    """The recipe is fine but these files, this disk or this output path do not allow it."""


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
