"""Errors that are the user's to read: one line that says what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
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

    def speak_python(self) -> None:
        """Name Python's arguments instead of the command line's options, for a caller that is a Python program."""
        self.lines = tuple(map(in_python, self.lines))
        self.args = ("\n".join(self.lines),)


class FormatError(GgufmergeError):
    """A file is not a GGUF file that llama.cpp would accept."""


class DamageError(GgufmergeError):
    """A file holds weights that are no finite numbers, or an adapter makes such of them."""


class ShapeError(GgufmergeError, ValueError):
    """An array or a row has a size that does not go with a type, or with another array."""


class UnknownTensorError(GgufmergeError, KeyError):
    """A file has no tensor of this name."""

    __str__ = Exception.__str__  # a KeyError shows its text as Python writes it, with quotes around it


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


class PluginError(GgufmergeError):
    """Something that another package adds does not work: the package is to blame, not the recipe or the files."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A phrase that suggests the choice closest to `word`, or lists the choices when none is close.

    >>> nearest("densty", ["weight", "density"])
    'did you mean "density"?'
    """
    choices = list(choices)
    close = close_to(word, choices)
    return f'did you mean "{close}"?' if close is not None else "known: " + ", ".join(choices)


def close_to(word: str, choices: Iterable[str], ratio: float = 0.6) -> str | None:
    """The choice closest to `word`, whatever the case of both; None when none is close.

    ratio: how alike they must be, from 0 to 1 (difflib's ratio: twice the letters in common by those of both).
    """
    folded = {c.lower(): c for c in choices}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=ratio)
    return folded[close[0]] if close else None


@contextmanager
def collected(lines: list[str]) -> Iterator[None]:
    """Errors in the block put their complaints to `lines` and end it, so that what follows is looked at, too."""
    try:
        yield
    except GgufmergeError as error:
        lines += error.lines


# what the command line calls otherwise than a Python function does
_ARGUMENTS = {
    "type": "out_type=...",
    "tensor-type": "tensor_types=...",
    "imatrix": "imatrix=[...]",
    "include": "include=[...]",
    "exclude": "exclude=[...]",
    "like": "like=...",
    "output": "output=...",
    "base": "base=...",
    "rank": "rank=...",
    "rounding": "rounding=...",
    "noise-aware": "noise_aware=...",
    "max-size": "max_size=...",
    "max-bpw": "max_bpw=...",
    "threads": "threads=...",
    "chunk": "chunk=...",
    "output-tensor-type": "output_tensor_type=...",
    "token-embedding-type": "token_embedding_type=...",
    "split-max-size": "split=SplitLimit(...)",
    "split-max-tensors": "split=SplitLimit(...)",
    "overwrite": "overwrite=True",
    "embeddings": "embeddings=True",
    "pure": "pure=True",
    "leave-output-tensor": "leave_output_tensor=True",
    "weight": "weights=...",
    "method": "method=...",
}
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])(?: (?:FILE|MODEL|TYPE|FILTER|NAME|BASE)\b)?(?![\w-])")


def in_python(text: str) -> str:
    """A message with the arguments of Python functions in the place of the command line's options.

    >>> in_python("out.gguf: exists: use --overwrite to replace it")
    'out.gguf: exists: use overwrite=True to replace it'
    """
    return _OPTION.sub(lambda found: _ARGUMENTS.get(found[1], found[0]), text)
