"""Small inputs: recipes, configurations, manifests, whatever is read whole.

A path may lead to a pipe that nobody writes to, to a device without end, or to a file of many gigabytes; and a JSON
text may nest without end, or hold numbers that nothing can compute with. All of that is refused here, with an OSError
or a ValueError whose text is one line without the path, for the caller to put in its own words.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ggufmerge.errors import PlanError
from ggufmerge.text import quoted

_MAX_DIGITS = 20  # of a whole number, which is then below 2^67; files hold numbers of 64 bits at most


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file (or a link to one), open for reading bytes.

    OSError when it is something else, such as a pipe, a device or a folder, or cannot be opened; never waits.
    """
    text = os.fspath(path)
    try:
        # a pipe would wait for its writer to open it, and the type of a file may change before it is opened
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
        _check_type(os.stat(text).st_mode, text)  # noqa: PTH116 - opening some devices does something
        descriptor = os.open(text, flags)
    except ValueError:
        raise OSError(errno.EINVAL, "the path holds a zero byte", text) from None
    try:
        _check_type(os.fstat(descriptor).st_mode, text)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_small(path: str | os.PathLike[str], limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes; OSError when it has more, or as in `open_regular`."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes, too many for such a file", os.fspath(path))
    return data


def read_json(path: str | os.PathLike[str], limit: int, *, lenient: bool = False) -> dict[str, Any]:
    """The mapping in a small file; OSError as in `read_small`, ValueError as in `parse_json` or for another value."""
    return parse_mapping(read_small(path, limit), lenient=lenient)


def parse_mapping(data: bytes | str, *, lenient: bool = False) -> dict[str, Any]:
    """`parse_json` of a text that must be a mapping."""
    content = parse_json(data, lenient=lenient)
    if not isinstance(content, dict):
        raise ValueError("it is not a mapping")
    return content


def parse_json(data: bytes | str, *, lenient: bool = False) -> Any:
    """The value of a JSON text. ValueError says in a few words what is wrong with it.

    Refused are: what is not UTF-8 or not JSON, nesting without end, a key that appears twice in one mapping, whole
    numbers of more than 20 digits, numbers that no float holds, and NaN and Infinity, which some programs write.
    lenient: such numbers are null.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(
            text,
            object_pairs_hook=_mapping,
            parse_int=partial(_whole, lenient),
            parse_float=partial(_finite, lenient),
            parse_constant=partial(_constant, lenient),
        )
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def file_name(path: str | os.PathLike[str]) -> str:
    """The last part of a path that names a file; PlanError for `.`, `/`, `..` and nothing."""
    name = Path(path).name
    if not name or name == "..":
        raise PlanError(f"{os.fspath(path) or 'an empty path'}: names no file: give the name of the file to write")
    return name


def _check_type(mode: int, path: str) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "this is a folder", path)
    raise OSError(errno.ENXIO, "this is not a regular file but a pipe, a socket or a device", path)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} appears twice in one mapping")
    return found


def _whole(lenient: bool, digits: str) -> int | None:
    count = len(digits.lstrip("-"))
    if count > _MAX_DIGITS:
        _allow(lenient, f"a number of {count} digits is too large")
        return None
    return int(digits)


def _finite(lenient: bool, digits: str) -> float | None:
    number = float(digits)
    if not math.isfinite(number):
        _allow(lenient, f"the number {digits[:20]} is too large")
        return None
    return number


def _constant(lenient: bool, word: str) -> None:
    _allow(lenient, f"{word} is not a number in JSON")


def _allow(lenient: bool, why: str) -> None:
    if not lenient:
        raise ValueError(why)
