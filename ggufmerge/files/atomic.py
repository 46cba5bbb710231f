"""Small files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ggufmerge.errors import OutputError
from ggufmerge.files.lock import open_locked


def write_file(path: Path, data: bytes, *, folder: Path | None = None, mode: int | None = None) -> None:
    """Write `data` under a temporary name, force it to the disk, then give it its name, replacing what has that.

    The rest: see `replacing`.
    """
    with replacing(path, folder=folder, mode=mode) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, folder: Path | None = None, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write that gets the name `path` when the block ends well; else it is gone and `path` as it was.

    folder: where the temporary file is, on the file system of `path`; beside it when None. What killed processes have
    left there is removed.  mode: permissions, those that the user's umask gives when None.
    """
    folder = folder or path.parent
    remove_abandoned(folder)
    temporary = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
    descriptor = open_locked(temporary)  # the lock tells others that the file is not abandoned
    try:
        with os.fdopen(descriptor, "r+b", closefd=os.name == "nt") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        with contextlib.suppress(OSError):  # Windows renames no open file, so it is closed there already
            os.close(descriptor)
    fsync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of `replacing` that a killed process has left in a folder."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError, OutputError):  # somebody is writing it
            descriptor = open_locked(path, create=False)
            try:
                path.unlink()
            finally:
                os.close(descriptor)


# no Ollama store takes such a name for a blob, so Ollama, too, removes a file that is left over
_PREFIX, _SUFFIX = ".ggufmerge-", ".tmp"


def fsync_folder(folder: Path) -> None:
    """Force the names of a folder to the disk; where folders cannot be opened (Windows) the system sees to it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, as `remove_file` does."""
    for _ in range(2):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def remove_file(path: Path) -> None:
    """Remove a file that is of no use any more. One that the disk does not let go of, at a second try, stays."""
    for _ in range(2):
        try:
            path.unlink(missing_ok=True)
            return
        except OSError:
            continue
