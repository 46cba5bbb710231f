"""Files that appear whole or not at all, and what they are called by their contents."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ggufmerge.errors import OutputError
from ggufmerge.files.lock import open_locked

Advance = Callable[[int], None]  # told how many bytes more are done
STEP = 1 << 20  # bytes read at a time


def nobody(nbytes: int) -> None:
    """An `Advance` for when nobody watches."""


def file_digest(path: Path, advance: Advance = nobody) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(STEP):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


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
    sync_folder(path.parent)


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


def sync_folder(folder: Path) -> None:
    """Force the names of a folder to the disk; where folders cannot be opened (Windows) the system sees to it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
