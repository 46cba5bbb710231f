"""Notices when the files that a build reads are changed under it.

Sources are mapped, not copied, so what another program writes into them while they are read gets into the result.
A file that was *replaced* (renamed over, deleted) is no danger: the mapping keeps the one that was opened, which is
also the one that is digested. One that was *written into* is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ggufmerge.errors import GgufmergeError
from ggufmerge.files.tensor import MappedFile, Stamp


class Watch:
    """Files that are read, as they were when they were opened.

    mapped: those that are open.  paths: all, in order, with small ones among them that were read when they were opened.
    The attribute `paths` has each once.
    """

    def __init__(self, mapped: Iterable[MappedFile], paths: Iterable[Path]) -> None:
        self._mapped = {file.path: file for file in mapped}
        self.paths = list(dict.fromkeys(paths))
        stamps = {path: file.stamp for path, file in self._mapped.items()}
        self._stamps = {path: stamps[path] if path in stamps else Stamp.of(path.stat()) for path in self.paths}

    def stamps(self) -> list[list[int]]:
        """Size and time of each file: what a fingerprint of the contents reads too little to notice."""
        return [[stamp.size, stamp.written] for stamp in self._stamps.values()]

    def size(self, path: Path) -> int:
        return self._stamps[path].size

    def bytes(self, path: Path, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the file that was opened, whatever its path leads to now."""
        if path in self._mapped:
            return self._mapped[path].bytes[start:stop].data
        return memoryview(path.read_bytes())[start:stop]  # a small file of settings

    def check(self) -> list[str]:
        """Warnings for files that were replaced; GgufmergeError when one was written into since it was opened."""
        return [warning for path in self.paths for warning in self._check(path)]

    def _check(self, path: Path) -> Iterable[str]:
        stamp = self._stamps[path]
        try:
            now = Stamp.of(path.stat())
        except OSError:
            yield f"{path}: was removed while it was read; the result was made from the file as it was"
            return
        if path in self._mapped and not now.same_file(stamp):
            yield f"{path}: was replaced while it was read; the result was made from the file that was there before"
        elif now != stamp:
            raise GgufmergeError(f"{path}: was changed while it was read: give the command again when it is complete")
