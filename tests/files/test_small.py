"""Small inputs are read whole, in bounded time and memory, or refused in one line."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from ggufmerge.errors import FormatError, PlanError
from ggufmerge.files import open_gguf
from ggufmerge.files.small import file_name, open_regular, parse_json, parse_mapping, read_json, read_small
from tests.systems import needs_pipes


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def test_a_file_of_the_limit_is_read_and_a_longer_one_is_not(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_small(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_small(path, 4)


@needs_pipes
@pytest.mark.parametrize("make", [pipe, bound_socket, lambda path: Path("/dev/zero"), lambda path: path.parent])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, make: object) -> None:
    """Pipes, sockets, devices and folders; also where a GGUF file should be."""
    path = make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(OSError, match=r"this is (not a regular file|a folder)") as caught:
        read_small(path, 100)
    assert caught.value.filename == str(path)
    with pytest.raises(FormatError, match=r"save the model to disk|give the .gguf file in it"):
        open_gguf(path)


@needs_pipes
def test_a_link_to_a_pipe_is_a_pipe(tmp_path: Path) -> None:
    """What counts is what is opened."""
    (tmp_path / "link").symlink_to(pipe(tmp_path / "pipe"))
    with pytest.raises(OSError, match="a pipe, a socket or a device"):
        open_regular(tmp_path / "link")


def test_a_zero_byte_in_a_path_is_an_error_of_the_system(tmp_path: Path) -> None:
    """As all others are, so that one handler takes them."""
    with pytest.raises(OSError, match="zero byte"):
        read_small(f"{tmp_path}\0x", 5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{", "not JSON: .* line 1, column 2"),
        ("", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1' + 400 * "0" + "}", "401 digits"),
        ('{"a": 1' + 10_000 * "0" + "}", "10001 digits"),
        ('{"a": 1, "b": 2, "a": 3}', 'the key "a" appears twice'),
        (r'{"\u001b[2J": 1, "\u001b[2J": 3}', r'"\\x1b\[2J" appears twice'),
        ("[1]", "not a mapping"),
        ("1", "not a mapping"),
        ("null", "not a mapping"),
    ],
)
def test_json_that_is_refused(text: str | bytes, complaint: str) -> None:
    """In one line, as a ValueError and nothing else."""
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_mapping(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [{"a": [1, -2, 1.5, True, None, "ü\n"]}, [], 0, "x", 2**64 - 1, {"": {"": []}}])
def test_json_that_is_taken(value: object) -> None:
    """Everything else means what it means to Python; a byte order mark does not matter."""
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value


def test_numbers_that_are_none_may_stand_for_null(tmp_path: Path) -> None:
    """Configurations that Python wrote hold them."""
    path = tmp_path / "config.json"
    path.write_text(f'{{"a": [NaN, Infinity, 1, 1e999, {10**50}]}}', encoding="utf-8")
    assert read_json(path, 1000, lenient=True) == {"a": [None, None, 1, None, None]}


@pytest.mark.parametrize("path", ["", ".", "/", "..", "a/..", "//"])
def test_paths_that_name_no_file(path: str) -> None:
    """One line instead of an empty name."""
    with pytest.raises(PlanError, match="names no file"):
        file_name(path)


def test_paths_that_name_one() -> None:
    """Hidden ones and folders that do not exist yet are names."""
    assert [file_name(p) for p in ("a", "x/.a", "x/")] == ["a", ".a", "x"]
