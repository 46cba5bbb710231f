"""Nothing that a stranger wrote steers a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufmerge.errors import GgufmergeError
from ggufmerge.text import count, counted, first_few, one_line, printable, quoted, series, size, utf8


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢 [red]", "plain ü 漢 [red]"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nerror: b", r"a\nerror: b"),
        ("a\r\t\x0b\x85\u2028\u2029b", r"a\r\t\x0b\x85\u2028\u2029b"),
        ("\u202eevil\u202c\u2066x\u2069\u200f", r"\u202eevil\u202c\u2066x\u2069\u200f"),
        ("\udcff.gguf", r"\xff.gguf"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    """Letters stay, all that moves the cursor or turns the text around is shown as its escape."""
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_every_text_becomes_one_printable_line(text: str) -> None:
    """Printable, one line, writable as UTF-8; and a text that was so stays."""
    for shown in (printable(text), one_line(text), quoted(text)):
        assert shown.isprintable()
        assert len(f"{shown}x".splitlines()) == 1
        shown.encode()
    assert printable(printable(text)) == printable(text)
    utf8(text).encode()


def test_names_that_are_no_utf8_become_replacement_characters() -> None:
    """As where a file is shown on the Hub."""
    assert utf8("a\udcff") == "a\ufffd"
    assert utf8("漢") == "漢"


def test_long_texts_are_cut() -> None:
    """A message of another program may be a book."""
    assert len(one_line("x" * 10_000)) == 500
    assert len(quoted("x" * 10_000)) == 62


def test_numbers() -> None:
    """Weights in powers of 1000, as all tables have them."""
    assert [count(999), count(1000), count(134_515_008)] == ["999", "1.00K", "134.52M"]
    assert [size(999), size(98_400_000), size(2 * 10**9)] == ["999 bytes", "98.4 MB", "2.0 GB"]


def test_an_error_has_a_line_for_each_complaint_of_its_own() -> None:
    """A line break in a complaint is not the end of it."""
    assert GgufmergeError("a\nb").lines == ("a\nb",)
    assert GgufmergeError("a", "b\nc").lines == ("a", "b\nc")
    assert str(GgufmergeError("a", "b")) == "a\nb"


@pytest.mark.parametrize(("number", "shown"), [(0, "0 models"), (1, "1 model"), (2, "2 models")])
def test_things_are_counted_in_words(number: int, shown: str) -> None:
    """One of them without an s."""
    assert counted(number, "model") == shown


def test_lists_in_sentences() -> None:
    """As one says them, whole or with the first few."""
    assert [series(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert [first_few(list("abc"), most) for most in (1, 2, 3, 9)] == [
        "a and 2 more",
        "a, b and 1 more",
        "a, b, c",
        "a, b, c",
    ]
