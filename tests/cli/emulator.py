"""A terminal of few abilities: what stands on the screen after a program has written to it."""

from __future__ import annotations

import re

_PIECES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b.|[\r\n]|[^\x1b\r\n]+", re.DOTALL)

FOLDED = "↩"


class Emulator:
    """Takes text, line ends, moves of the cursor up and down, and erasing; colours are only counted.

    lines: all that is left, also what was scrolled away. folded: those that were too long, so that the terminal broke
    them, and tinted: those with colours, by their numbers. coloured: whether there ever was a colour.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines, self.coloured = [""], False
        self.folded: set[int] = set()
        self.tinted: set[int] = set()
        self._row = self._column = 0
        self._colour = False

    def feed(self, text: str) -> None:
        for piece in _PIECES.finditer(text):
            if piece[2]:
                self._control(piece[1], piece[2])
            elif piece[0] == "\r":
                self._column = 0
            elif piece[0] == "\n":
                self._down()
            elif not piece[0].startswith("\x1b"):
                for letter in piece[0]:
                    self._put(letter)

    def _control(self, argument: str, letter: str) -> None:
        number = int(argument) if argument.isdigit() else 0
        line = self.lines[self._row]
        if letter == "A":  # never above what is still on the screen
            self._row = max(self._row - max(number, 1), len(self.lines) - self.rows, 0)
        elif letter == "B":
            self._row = min(self._row + max(number, 1), len(self.lines) - 1)
        elif letter == "K":
            self.lines[self._row] = "" if number == 2 else line[: self._column]
            if not self.lines[self._row]:
                self.tinted.discard(self._row)
                self.folded.discard(self._row)
        elif letter == "J":
            self.lines[self._row :] = [line[: self._column]]
            self.tinted = {row for row in self.tinted if row < self._row}
            self.folded = {row for row in self.folded if row < self._row}
        elif letter == "m":
            self._colour = bool(re.search(r"(^|;)([349][0-7]|10[0-7]|[34]8)(;|$)", argument))
            self.coloured |= self._colour
        else:
            assert letter in "hl", f"the screen does not know {argument}{letter}"  # cursor hidden and shown

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")

    def _put(self, letter: str) -> None:
        if self._column == self.columns:
            self.folded.add(self._row)
            self._column = 0
            self._down()
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
        self._column += 1
        if self._colour:
            self.tinted.add(self._row)

    def text(self) -> str:
        """The lines without the spaces at their ends; `FOLDED` stands behind those that the terminal broke."""
        shown = (line + FOLDED if row in self.folded else line.rstrip() for row, line in enumerate(self.lines))
        return "\n".join(shown).rstrip("\n")
