"""The terminal that the recorded screens are of."""

from __future__ import annotations

from tests.cli.emulator import Emulator


def shown(text: str, columns: int = 10, rows: int = 4) -> str:
    screen = Emulator(columns, rows)
    screen.feed(text)
    return screen.text()


def test_what_is_erased_is_gone() -> None:
    """As progress does it: back to the start of the line, a line up, erase."""
    assert shown("working 1\rworking 2\r\x1b[2Kdone\r\n") == "done"
    assert shown("a\r\nb\r\nc\x1b[2K\x1b[1A\x1b[2K\rB") == "a\nB"
    assert shown("longer\rno") == "nonger"
    assert shown("longer\rno\x1b[K") == "no"


def test_a_line_too_long_is_broken_and_marked() -> None:
    """A line that just fits is not."""
    assert shown("0123456789\r\nx") == "0123456789\nx"
    assert shown("0123456789ab") == "0123456789↩\nab"


def test_what_was_scrolled_away_cannot_be_reached() -> None:
    """The cursor stops at the top of the screen; the lines above stay."""
    assert shown("1\r\n2\r\n3\r\n4", rows=2) == "1\n2\n3\n4"
    assert shown("1\r\n2\r\n3\r\n4\r\x1b[9Ax", rows=2) == "1\n2\nx\n4"


def test_colours_are_seen_and_not_shown() -> None:
    """Bold is no colour; a line whose colour was erased has none."""
    screen = Emulator(10, 4)
    screen.feed("\x1b[1mbold\x1b[0m\r\n")
    assert (screen.coloured, screen.tinted) == (False, set())
    screen.feed("\x1b[1;31mred\x1b[0m")
    assert (screen.text(), screen.tinted) == ("bold\nred", {1})
    screen.feed("\r\x1b[2K")
    assert (screen.coloured, screen.tinted) == (True, set())
