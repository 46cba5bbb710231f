"""Builds that were interrupted, as they are found next to their outputs, without touching them."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ggufmerge.errors import OutputError
from ggufmerge.files.journal import Record, State, replay
from ggufmerge.files.lock import open_locked
from ggufmerge.files.output import work_files
from ggufmerge.files.reader import MAGIC
from ggufmerge.files.shards import ShardName
from ggufmerge.files.writer import partial_path

_MAX_JOURNAL = 1 << 26  # bytes, as in `files.output`
_SUFFIX = ".journal"
_BEGINNING = struct.Struct("<4sIQ")  # magic, version, number of tensors


@dataclass(frozen=True)
class Unfinished:
    """What is left of a build. output: the file that it is for (of shards the first one).

    record: what its journal says.  tensors: how many there will be, None when the unfinished file does not tell.
    files: what lies there; `nbytes` is what it takes on the disk.  running: whether a process is at work on it now.
    """

    output: Path
    record: Record
    tensors: int | None
    files: tuple[Path, ...]
    nbytes: int
    running: bool

    @property
    def done(self) -> int:
        """Tensors that are written."""
        return len(self.record.done)

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        if self.record.state in (State.SEALED, State.PUBLISHED):
            return "all tensors written"
        if not self.record.done:
            return "no tensor written yet"
        of = f" of {self.tensors}" if self.tensors is not None else ""
        return f"{self.done}{of} tensors written"


def look(output: Path) -> Unfinished | None:
    """What is left of a build of this output; None when there is nothing, or nothing that one can look at."""
    journal, stages, *_ = work_files(output)
    try:
        if journal.is_symlink() or not journal.is_file() or journal.stat().st_size > _MAX_JOURNAL:
            return None
        record = replay(journal.read_bytes().decode("utf-8", "replace"))
    except OSError:
        return None
    if not record.identity:
        return None
    partials = [path for path in map(partial_path, _shards(output)) if path.is_file()]
    files = [journal, *partials, *([stages] if stages.is_dir() else [])]
    return Unfinished(output, record, _tensors(partials), tuple(files), sum(map(_on_disk, files)), _is_locked(journal))


def find_unfinished(folders: Iterable[Path], outputs: Iterable[Path] = ()) -> list[Unfinished]:
    """The unfinished builds in some folders (not below them), and those of these outputs, by their paths."""
    wanted: dict[Path, None] = dict.fromkeys(map(_plain, outputs))
    for folder in folders:
        with contextlib.suppress(OSError):
            for journal in sorted(Path(folder).glob(f".?*{_SUFFIX}")):
                wanted[_plain(journal.with_name(journal.name[1 : -len(_SUFFIX)]))] = None
    return [found for path in sorted(wanted) if (found := look(path)) is not None]


def _plain(path: Path) -> Path:
    """From the root, without steps up; what is a link stays one."""
    return Path(os.path.normpath(path.absolute()))


def _shards(output: Path) -> list[Path]:
    """All files of an output; its journal goes by the first."""
    shard = ShardName.parse(output.name)
    return [output] if shard is None else [output.with_name(str(name)) for name in shard.all()]


def _tensors(partials: Iterable[Path]) -> int | None:
    """Tensors of the unfinished files, whose headers are complete from the start."""
    total = 0
    for path in partials:
        try:
            with path.open("rb") as file:
                magic, _, count = _BEGINNING.unpack(file.read(_BEGINNING.size))
        except (OSError, struct.error):
            return None
        if magic != MAGIC:
            return None
        total += count
    return total or None


def _on_disk(path: Path) -> int:
    if path.is_dir():
        return sum(_on_disk(inner) for inner in path.rglob("*") if inner.is_file())
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size
    return 0


def _is_locked(journal: Path) -> bool:
    try:
        os.close(open_locked(journal, create=False))
    except FileNotFoundError:
        return False
    except OutputError:
        return True
    return False
