"""Files that appear whole or not at all, and what they are called by their contents."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

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

    folder: where the temporary file is, on the file system of `path`; beside it when None.  mode: permissions, those
    that the user's umask gives when None.
    """
    temporary = temporary_name(folder or path.parent)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def temporary_name(folder: Path) -> Path:
    """A name that nobody has and that no Ollama store takes for a blob, so Ollama removes a file that is left over."""
    return folder / f".ggufmerge-{secrets.token_hex(8)}.tmp"


def sync_folder(folder: Path) -> None:
    """Force the names of a folder to the disk; where folders cannot be opened (Windows) the system sees to it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
