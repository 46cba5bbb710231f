"""Errors, warnings and notes on standard error: a line each in a file or pipe, folded between words on a terminal.

This module imports next to nothing, since errors are told whenever they happen.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from ggufmerge.text import folded, message

_INDENT = "  "  # of what is folded, so that no text out of a file begins a line
_COLUMNS = 80  # where nobody knows how many there are


def show(line: str) -> None:
    """Print a line on standard error, as one complaint whatever it holds; nothing when that is closed."""
    if sys.stderr is None:
        return
    text, width = message(line), _columns(sys.stderr)
    for part in [text] if width is None else folded(text, max(20, width - 1), _INDENT):
        print(part, file=sys.stderr)


def _columns(stream: TextIO) -> int | None:
    """How wide the terminal behind a stream is; None when there is none."""
    try:
        if not stream.isatty():
            return None
        given = os.environ.get("COLUMNS", "")
        return int(given) if given.isdecimal() else os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS
