"""Who is told what a sink has to say while it works; the command line shows it, a program may ignore it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from ggufmerge.files.digest import Advance, nobody


class Telling:
    """Tells nobody. What is told is not lost: warnings are in the report, and an error has what to do in its notes."""

    def warn(self, warnings: Iterable[str]) -> None:
        """Warnings that came up after work began."""

    def complain(self, line: str) -> None:
        """What is left, and how to go on, before an error ends the build."""

    def advancing(self, text: str, nbytes: int) -> AbstractContextManager[Advance]:
        """Something slow goes on with so many bytes; what the block gets is told how many of them are done."""
        return nullcontext(nobody)
