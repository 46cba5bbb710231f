"""Texts on their way out: the gate for what strangers wrote, and how numbers of bytes and weights look.

Names, keys and messages come out of files that anybody may have made. On a terminal they could move the cursor, hide
lines or turn letters around, and in a line-based format a line break begins a new line. Whatever leaves the program as
text passes `printable` first.
"""

from __future__ import annotations

import math
import re
import reprlib
import textwrap
from collections.abc import Sequence
from typing import Any

_LONG = 60
_ENDLESS = 2000


def printable(text: str) -> str:
    """The text on one line, with every character that does not print (`str.isprintable`) written as its escape.

    Bytes of file names that are not UTF-8 are shown as bytes.

    >>> printable("a\\x1b[2Jb\\n\\udcff")
    'a\\\\x1b[2Jb\\\\n\\\\xff'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def message(text: str) -> str:
    """A complaint or warning on one line, without the middle of one that a file has made endless.

    >>> len(message("x" * 10_000)) < 2_100
    True
    """
    text = printable(text)
    return text if len(text) <= _ENDLESS else f"{text[: _ENDLESS // 2]} ... {text[-_ENDLESS // 2 :]}"


def shortened(text: str, width: int) -> str:
    """A name without its middle, so that its beginning and its end, which tell names apart, fit into `width`.

    >>> shortened("models/base-Q4_K_M.gguf", 16)
    'models/...M.gguf'
    """
    if len(text) <= width or width < 5:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[len(text) - end :]}"


def folded(line: str, width: int, indent: str = "") -> list[str]:
    """A printable line as several of at most `width` characters, broken at spaces, all but the first behind `indent`.

    A word that is longer than a line, such as a path, stays whole, so that it can be copied.

    >>> folded("error: models/base-Q4_K_M.gguf: no such file", 20, "  ")
    ['error:', '  models/base-Q4_K_M.gguf:', '  no such file']
    """
    whole = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return whole.wrap(line) or [""]


def duration(seconds: float) -> str:
    """A time as one says it, no more exact than an estimate is: 12 s, 3 min, 2 h 10 min."""
    if seconds < 9.5:
        return f"{seconds:.1f} s" if seconds < 1 else f"{seconds:.0f} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def one_line(text: str, limit: int = 500) -> str:
    """Running text, such as another program's message: all blanks and line breaks as one space, cut after `limit`."""
    words = " ".join(text[: 4 * limit].split())
    return printable(words if len(words) <= limit else words[: limit - 3] + "...")


def quoted(text: str) -> str:
    """A name as messages show it: in quotes, printable, cut after 60 characters."""
    return '"' + printable(text if len(text) <= _LONG else text[: _LONG - 3] + "...") + '"'


def shown(value: Any) -> str:
    """A value as messages show it: on one line, shortened, without characters that steer a terminal."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to write very long ones
        return f"a number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    return printable(_SHORT.repr(value))


def human_number(text: str) -> float | None:
    """The number that `0,5` or `50%` means, which YAML reads as a text; None for any other text."""
    found = _HUMAN.fullmatch(text.strip())
    return float(found[1].replace(",", ".")) / (100 if found[2] else 1) if found else None


def utf8(text: str) -> str:
    """The text as valid Unicode: what stands for bytes that are no UTF-8 becomes U+FFFD."""
    return _HALVES.sub("\ufffd", text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def count(number: int) -> str:
    """A number of weights: 134.52M."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.2f}{letter}"
    return str(number)


def counted(number: int, thing: str) -> str:
    """How many there are of a thing whose plural ends in s: 1 model, 3 models."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def first_few(names: Sequence[str], most: int) -> str:
    """The first names of a list, with how many there are besides: a, b and 5 more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def series(names: Sequence[str]) -> str:
    """Names as a sentence has them: a; a and b; a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def size(number: int) -> str:
    """A number of bytes: 98.4 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} bytes"


_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of surrogates; the others stand for bytes (PEP 383)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that Python could not decode (PEP 383)
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


_HUMAN = re.compile(r"([-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+))[ \t]*(%?)", re.ASCII)


class _Short(reprlib.Repr):
    """Values within values are shown as `shown` does it."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 200 else shown(x)


_SHORT = _Short()
