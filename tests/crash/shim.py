"""Counts the file operations of a program, and stops, interrupts or fails the n-th of them.

`install` replaces names of the modules os, io, builtins and fcntl, once and before the program is imported, so a name
that the program binds (`from os import replace`) is the replaced one, too. Methods of Path and functions of shutil and
tempfile look these names up when they are called. Nothing happens until `arm` says below which folder operations count
and what is done at which of them.

    os        write, writev, pwrite, pwritev, sendfile, copy_file_range, fsync, fdatasync, truncate, ftruncate,
              posix_fallocate, rename, replace, unlink, remove, rmdir, mkdir, link, symlink, chmod, fchmod, utime,
              and open when it may create or empty a file
    fcntl     flock, lockf
    io, builtins  open for writing. Each write of the file object to the system counts, at the moment when its buffer
              is written, and each truncate, as "resize"

Two things are beyond it: what a C library writes by itself, and memory maps. `test_shim.py` compares the count with
Python's audit events and with the bytes that the kernel has counted, so neither goes unnoticed.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WAYS = ("count", "audit", "kill", "kill-after", "interrupt", "interrupt-after", "full", "broken", "pause")
KILLED = 137  # exit status of a process that was ended here

CREATES = os.O_CREAT | os.O_TRUNC
# what needs room on the disk: it fails for ever once the disk is full, while the rest goes on
_GROWS = {
    *("open", "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range"),
    *("truncate", "ftruncate", "resize", "posix_fallocate", "mkdir", "link", "symlink"),
}
# what changes nothing that another process could see
SILENT = {"fsync", "fdatasync", "flock", "lockf"}


@dataclass(frozen=True)
class Operation:
    """One call: its name, and the path below the watched folder, or of the target of two."""

    name: str
    path: str
    nbytes: int = 0

    @property
    def grows(self) -> bool:
        """Whether a full disk makes it fail."""
        return self.name in _GROWS

    @property
    def is_silent(self) -> bool:
        """Whether stopping before it is the same as stopping before the next one."""
        return self.name in SILENT

    def __str__(self) -> str:
        return f"{self.name}({self.path})"


class Watch:
    """What is counted below a folder, and what happens at operation `at`, counted from 1.

    way: one of WAYS: kill ends the process at once before (or after) the operation, interrupt is Ctrl-C just before (or
    after) it, full makes it and all later ones that need room fail with ENOSPC, broken makes it fail once with EIO,
    pause stops the process until it gets SIGCONT.  acted: told of the operation just before something is done.
    """

    def __init__(self, root: str, way: str, at: int, acted: Callable[[Operation], None]) -> None:
        assert way in WAYS, way
        self.root, self.way, self.at, self.acted = os.path.realpath(root), way, at, acted
        self.operations: list[Operation] = []
        self._lock = threading.Lock()
        self._told = False

    def covers(self, path: str) -> bool:
        """Whether a path is the watched folder or below it."""
        return path == self.root or path.startswith(self.root + os.sep)

    def before(self, name: str, path: str, nbytes: int) -> int:
        """Count an operation and do what is to be done before it; its number."""
        operation = Operation(name, os.path.relpath(path, self.root), nbytes)
        with self._lock:
            self.operations.append(operation)
            number = len(self.operations)
            hit = number == self.at or (self.way == "full" and number > self.at and operation.grows)
            if hit and not self._told:
                self._told = True
                self.acted(operation)
        if not hit:
            return number
        if self.way == "kill":
            os._exit(KILLED)
        if self.way == "interrupt":
            _interrupt()
        if self.way == "pause":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.way in ("full", "broken"):
            number = errno.ENOSPC if self.way == "full" else errno.EIO
            raise OSError(number, os.strerror(number), *([path] if name not in _BY_DESCRIPTOR else []))
        return number

    def after(self, number: int) -> None:
        """Do what is to be done after an operation."""
        if number == self.at and self.way == "kill-after":
            os._exit(KILLED)
        if number == self.at and self.way == "interrupt-after":
            _interrupt()


_watch: Watch | None = None


def arm(watch: Watch | None) -> None:
    """Begin to count, or stop it."""
    global _watch
    _watch = watch


def watching() -> Watch | None:
    """What was given to `arm`."""
    return _watch


def install() -> None:
    """Replace the names. To be called once, before the program is imported."""
    by_descriptor = {"write": _length, "writev": _lengths, "pwrite": _length, "pwritev": _lengths}
    for name in ("sendfile", "fsync", "fdatasync", "ftruncate", "posix_fallocate", "fchmod"):
        by_descriptor[name] = _nothing
    for name, size in by_descriptor.items():
        _replace(os, name, _first_descriptor, size)
    _replace(os, "copy_file_range", lambda source, target, *_, **__: of_descriptor(target))
    for name in ("unlink", "remove", "rmdir", "mkdir", "chmod", "truncate", "utime"):
        _replace(os, name, _first_path)
    for name in ("rename", "replace", "link", "symlink"):
        _replace(os, name, _second_path)
    for name in ("flock", "lockf"):
        _replace(fcntl, name, _first_descriptor)
    os.open = _counted("open", os.open, _created, _nothing)  # type: ignore[assignment]
    io.open = builtins.open = _open_file  # type: ignore[assignment]


_BY_DESCRIPTOR = {
    *("write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "fsync", "fdatasync", "ftruncate"),
    *("resize", "posix_fallocate", "fchmod", "flock", "lockf"),
}


def _replace(module: Any, name: str, place: Callable[..., str | None], size: Callable[..., int] | None = None) -> None:
    original = getattr(module, name, None)
    if original is not None:
        setattr(module, name, _counted(name, original, place, size or _nothing))


def _counted(
    name: str, original: Callable[..., Any], place: Callable[..., str | None], size: Callable[..., int]
) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        watch = _watch
        if watch is None or (path := place(*arguments, **named)) is None or not watch.covers(path):
            return original(*arguments, **named)
        number = watch.before(name, path, size(*arguments))
        # the death of a process loses nothing that it has written, so forcing it to the disk only costs time here
        result = None if name in ("fsync", "fdatasync") else original(*arguments, **named)
        watch.after(number)
        return result

    call.__name__ = name
    for kind in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if original in kind:
            kind.add(call)
    return call


class _File(io.FileIO):
    """A file whose writes count; the buffers above it are Python's own."""

    def write(self, data: Any, /) -> int:
        return _at(self, "write", memoryview(data).nbytes, lambda: io.FileIO.write(self, data))

    def truncate(self, size: int | None = None, /) -> int:
        return _at(self, "resize", 0, lambda: io.FileIO.truncate(self, size))


def _at(file: io.FileIO, name: str, nbytes: int, act: Callable[[], int]) -> int:
    watch = _watch
    path = of_descriptor(file.fileno())
    if watch is None or path is None or not watch.covers(path):
        return act()
    number = watch.before(name, path, nbytes)
    result = act()
    watch.after(number)
    return result


_original_open = io.open


def _open_file(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[str, int], int] | None = None,
) -> Any:
    """`open`, with a `_File` below what it gives when that is for writing below the watched folder."""
    watch = _watch
    writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    path = of_descriptor(file) if isinstance(file, int) else absolute(file)
    if watch is None or not writes or path is None or not watch.covers(path):
        return _original_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    number = None
    if not isinstance(file, int) and opener is None and any(letter in mode for letter in "wax"):
        number = watch.before("open", path, 0)  # an opener calls os.open, which counts itself
    raw: Any = _File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if number is not None:
        watch.after(number)
    if buffering == 0:
        return raw
    text = "b" not in mode
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    binary = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
    if not text:
        return binary
    wrapper = io.TextIOWrapper(binary, encoding, errors, newline, buffering == 1)
    wrapper.mode = mode  # type: ignore[misc]
    return wrapper


def _interrupt() -> None:
    """As Ctrl-C does it: to the main thread, which may be waiting for others."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def of_descriptor(descriptor: Any) -> str | None:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    try:
        return os.readlink(f"/proc/self/fd/{number}").removesuffix(" (deleted)")  # noqa: PTH115
    except OSError:
        return None


def absolute(path: Any, folder: int | None = None) -> str | None:
    """The path with its folder resolved; a link itself is what is renamed or removed, not what it leads to."""
    if isinstance(path, int):
        return of_descriptor(path)
    text = os.fsdecode(os.fspath(path))
    if folder is not None and not text.startswith(os.sep):
        text = os.path.join(of_descriptor(folder) or "", text)  # noqa: PTH118
    above, name = os.path.split(os.path.abspath(text))  # noqa: PTH100
    return os.path.join(os.path.realpath(above), name)  # noqa: PTH118


def _first_descriptor(descriptor: Any, *_: Any, **__: Any) -> str | None:
    return of_descriptor(descriptor)


def _first_path(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
    return absolute(path, dir_fd)


def _second_path(
    _: Any, path: Any, *__: Any, dst_dir_fd: int | None = None, dir_fd: int | None = None, **___: Any
) -> str | None:
    return absolute(path, dst_dir_fd if dst_dir_fd is not None else dir_fd)


def _created(path: Any, flags: int, *_: Any, dir_fd: int | None = None, **__: Any) -> str | None:
    return absolute(path, dir_fd) if flags & CREATES else None


def _nothing(*_: Any) -> int:
    return 0


def _length(_: Any, data: Any, *__: Any) -> int:
    return memoryview(data).nbytes


def _lengths(_: Any, pieces: Any, *__: Any) -> int:
    return sum(memoryview(piece).nbytes for piece in pieces)
