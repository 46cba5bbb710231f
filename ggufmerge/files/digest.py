"""What files are called by their contents, and who is told how far reading them is."""

from __future__ import annotations

import hashlib
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
