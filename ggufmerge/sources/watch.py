"""Notices when the files that a build reads are changed under it.

Sources are mapped, not copied, so what another program writes into them while they are read gets into the result.
A file that was *replaced* (renamed over, deleted) is no danger: the mapping keeps the one that was opened, which is
also the one that is digested. One that was *written into* is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ggufmerge.errors import GgufmergeError
from ggufmerge.files.tensor import MappedFile, Stamp
from ggufmerge.sources.model import Source


class Watch:
    """The files of some sources, as they were when they were opened. `paths`: each once, in the sources' order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        mapped = {file.path: file for source in sources for file in source.mapped()}
        self._mapped: dict[Path, MappedFile] = mapped
        self.paths = list(dict.fromkeys(path for source in sources for path in source.files()))
        self._stamps = {p: mapped[p].stamp if p in mapped else Stamp.of(p.stat()) for p in self.paths}

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
