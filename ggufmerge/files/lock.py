"""Files that one process at a time may have open for writing.

POSIX: `flock`, which ends with the process, however that ends. Windows: `msvcrt.locking` of one byte far behind the
data, which ends with the process as well; other bytes stay readable. A file system without locks (some network ones)
lets everybody in; `locks_work` tells.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from ggufmerge.errors import OutputError

_LOCKED_BYTE = 1 << 62
_TRIES = 100  # a file that its last owner removes in this moment is opened again
_BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}


def open_locked(path: Path, *, create: bool = True) -> int:
    """Open a file for reading and writing, made if it is not there, that nobody else has open this way.

    Never follows a link and takes regular files with one name only: another name could be a model. Gives a descriptor;
    closing it ends the lock. OutputError when another process has it, or it cannot be opened; FileNotFoundError without
    `create`.
    """
    flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_CLOEXEC", 0) | (os.O_CREAT if create else 0)
    for _ in range(_TRIES):
        try:
            if path.is_symlink():  # Windows has no O_NOFOLLOW
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            if not create:
                raise
            raise OutputError(f"{path}: cannot be created: there is no folder {path.parent}") from None
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be created ({error.strerror}): remove it or choose another name"
            ) from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise OutputError(f"{path}: is not a file of this program: remove it or choose another name")
            if not try_lock(descriptor):
                raise OutputError(f"{path}: another process is writing it: wait for that, or choose another name")
            if names(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has just removed it
    raise OutputError(f"{path}: other processes keep writing it: wait for them, or choose another name")


def try_lock(descriptor: int) -> bool:
    """Whether nobody else has locked this open file; it then is ours. True also where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return True


def locks_work(descriptor: int) -> bool:
    """Whether the file system of this open file, which we have locked, has locks at all."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock_on_windows(descriptor: int) -> bool:
    try:
        import msvcrt
    except ImportError:
        return True
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        return error.errno not in _BUSY
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)
    return True


def names(path: Path, descriptor: int) -> bool:
    """Whether the path still names this open file, and not one that was put in its place meanwhile."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    return False
