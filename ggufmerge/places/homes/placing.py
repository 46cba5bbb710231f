"""Puts the files and the entry of a model into its home.

Files are linked, so that they need no space, or copied where that is not possible. All are complete before the first
one gets its name, and of shards the one to open gets it last, so what a program finds is whole.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ggufmerge.errors import OutputError, PlanError
from ggufmerge.files.atomic import fsync_folder, remove_abandoned, write_file
from ggufmerge.files.digest import STEP
from ggufmerge.files.lock import open_locked, try_lock
from ggufmerge.files.output import work_files
from ggufmerge.files.small import read_small
from ggufmerge.files.writer import check_place, exists, partial_path
from ggufmerge.places.homes.home import Entry, Placed
from ggufmerge.text import size

_MAX_SETTINGS = 1 << 22  # bytes
_TRIES = 10  # of an entry that other programs come between


def check_folder(root: Path, targets: Sequence[Path], *, overwrite: bool) -> None:
    """PlanError when files cannot get these names, in folders below `root` that need not be there yet."""
    if not root.is_dir():
        raise PlanError(f"{root}: there is no such folder: create it first")
    for target in targets:
        folder = next(found for found in (target.parent, *target.parent.parents) if os.path.lexists(found))
        if not folder.is_dir():
            raise PlanError(f"{target}: {folder} is not a folder: take it away or choose another name")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PlanError(f"{target}: the folder {folder} is not writable: choose another or change its permissions")
        if folder == target.parent:
            check_place(target)
            if os.path.lexists(target) and not overwrite:
                raise exists(target)


def check_space(root: Path, source: Path, nbytes: int) -> None:
    """OutputError when files of the folder `source` would have to be copied below `root` and have no room there."""
    source = next(found for found in (source, *source.parents) if found.is_dir())
    free = shutil.disk_usage(root).free
    if root.stat().st_dev != source.stat().st_dev and free < nbytes:
        raise OutputError(f"{root}: the copy needs {size(nbytes)} but only {size(free)} are free; free some space")


@contextmanager
def folders_for(targets: Sequence[Path]) -> Iterator[None]:
    """Makes the folders of some files; when the block fails, those are gone again that nothing is in."""
    made: list[Path] = []
    try:
        for target in targets:
            for folder in reversed([f for f in (target.parent, *target.parent.parents) if not os.path.lexists(f)]):
                try:
                    folder.mkdir()
                except OSError as error:
                    raise OutputError(f"{folder}: cannot be created ({error.strerror}): check its folder") from None
                made.append(folder)
        yield
    except BaseException:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def place_files(sources: Sequence[Path], targets: Sequence[Path], *, overwrite: bool, link: bool = True) -> None:
    """Give each source's content the name of its target too, all or none; the first one is the one to open.

    link: whether a target may be another name of its source.
    Targets that have the content stay as they are. OutputError when another file has the name and `overwrite` is not
    set, or another process is writing it.
    """
    pairs = list(zip(sources, targets, strict=True))
    if all(_has_content(target, source) for source, target in pairs):
        return
    for source, target in pairs:
        check_place(target)
        if os.path.lexists(target) and not overwrite and not _has_content(target, source):
            raise exists(target)
    with ExitStack() as stack:
        for source, target in pairs:
            _check_no_build(target)
            stack.enter_context(_duplicate(source, partial_path(target), link=link))
        if len(targets) > 1:
            targets[0].unlink(missing_ok=True)  # what is left of an old set must not look complete
        for target in reversed(targets):
            partial_path(target).replace(target)
    for folder in {target.parent for target in targets}:
        fsync_folder(folder)


@contextmanager
def _duplicate(source: Path, path: Path, *, link: bool) -> Iterator[None]:
    """A link to a file, or a copy of it, of this name, which is gone after the block if it was not renamed."""
    _remove_left(path)
    descriptor, ours = -1, False
    try:
        if link:
            descriptor = _locked(source.resolve())  # its link is locked, then, from the moment it is made
        ours = link and _linked(source, path)
        if not ours:
            if descriptor >= 0:
                os.close(descriptor)
                descriptor = -1
            descriptor, ours = open_locked(path), True
            with source.open("rb") as original, os.fdopen(descriptor, "r+b", closefd=False) as copy:
                shutil.copyfileobj(original, copy, STEP)
                copy.flush()
                os.fsync(descriptor)
        if os.name == "nt":  # it renames no open file
            os.close(descriptor)
            descriptor = -1
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if ours:
            path.unlink(missing_ok=True)


def _linked(source: Path, path: Path) -> bool:
    """Give a file another name; False where that is not possible: another disk, or a file system without links."""
    try:
        os.link(source.resolve(), path)
    except OSError:
        return False
    return True


def remove_left(targets: Sequence[Path]) -> None:
    """Remove what a killed process has left beside these files, for builds that will not get there any more."""
    for folder in {target.parent for target in targets if target.parent.is_dir()}:
        remove_abandoned(folder)
    for target in targets:
        with contextlib.suppress(OSError, OutputError):
            _check_no_build(target)
            _remove_left(partial_path(target))


def _check_no_build(target: Path) -> None:
    """OutputError when an unfinished build of this output has a temporary file of the same name."""
    journal = work_files(target)[0]
    if os.path.lexists(journal):
        raise OutputError(f"{target}: an unfinished build has this name: finish it, or delete {journal}")


def _remove_left(path: Path) -> None:
    """Remove what a killed process has left under this temporary name; OutputError when a process is at it."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = _locked(path) if _is_another_name(path) else open_locked(path, create=False)
        try:
            path.unlink()
        finally:
            os.close(descriptor)


def _is_another_name(path: Path) -> bool:
    """Whether this is one of several names of a file, so a link that `_duplicate` has made."""
    return path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1


def _locked(path: Path) -> int:
    """Open and lock a file of several names, which tells others that a process is at it; see `open_locked`."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    if not try_lock(descriptor):
        os.close(descriptor)
        raise OutputError(f"{path}: another process is writing it: wait for that, or choose another name")
    return descriptor


def _has_content(path: Path, source: Path) -> bool:
    """Whether a file is there and is another, byte for byte."""
    try:
        return path.samefile(source) or filecmp.cmp(path, source, shallow=False)
    except OSError:
        return False


def check_entry(entry: Entry, placed: Placed, *, overwrite: bool) -> None:
    """PlanError when an entry cannot be written, or is there and `overwrite` is not set."""
    path = _real(entry)
    check_place(path)
    old = _content(path)
    if old is not None and entry.exists(old) and not overwrite and entry.edited(old, placed) != old:
        raise PlanError(f"{entry.path}: has an entry for this model ({entry.name}): use --overwrite to renew it")
    entry.edited(old, placed)


def write_entry(entry: Entry, placed: Placed, *, overwrite: bool) -> None:
    """Write an entry into its file, in one rename. PlanError as in `check_entry`."""
    path = _real(entry)
    for _ in range(_TRIES):
        check_entry(entry, placed, overwrite=overwrite)
        old = _content(path)
        new = entry.edited(old, placed)
        if new == old:
            return
        mode = stat.S_IMODE(path.stat().st_mode) if old is not None else None
        if _content(path) == old:
            write_file(path, new, mode=mode)
            return
    raise OutputError(f"{entry.path}: other programs keep writing it: give the same command again")


def _real(entry: Entry) -> Path:
    """Settings may be a link, to a folder under version control, say; the file that it leads to has the entry."""
    return Path(os.path.realpath(entry.path))


def _content(path: Path) -> bytes | None:
    try:
        return read_small(path, _MAX_SETTINGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}): check the file") from None
