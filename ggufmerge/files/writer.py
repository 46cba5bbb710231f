"""Writes a GGUF file as a stream: all offsets are known before the first byte, so threads may write in any order.

The file grows under a temporary name beside its target, at full size from the start, so that a full disk shows at once
and not after an hour; `commit` checks that every byte was written and renames it in one atomic step. Until then the
target, if there is one, stays as it was. What a killed process leaves behind can be taken up again; `output.Output`
knows when, and owns the files of a whole build.

The alignment is always 32 and `general.alignment` is dropped: llama-quantize copies another value but pads with 32,
and makes files that nothing can open. Source: ggml's `docs/gguf.md`; the reading side is `reader.py`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError, OutputError, PlanError
from ggufmerge.files import shards
from ggufmerge.files.atomic import fsync_folder, remove_file, write_file
from ggufmerge.files.lock import open_locked
from ggufmerge.files.metadata import MetadataEditor, ValueKind
from ggufmerge.files.reader import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS, MAX_NAME, check_header
from ggufmerge.files.tensor import TensorInfo as TensorInfo
from ggufmerge.files.tensor import map_readonly

VERSION = 3


class Layout:
    """Where everything lies in a file with this metadata and these tensors, which follow each other in this order.

    metadata: what is written: without the keys that describe the container (alignment, shards), but with those of
    `split` when it is given.
    header: all bytes before the data.  offsets: name -> first byte of a tensor.  total_bytes: size of the file.

    GgufmergeError for what llama.cpp would not read back: names that are too long or double, rows that are no whole
    number of blocks.
    """

    def __init__(
        self, metadata: MetadataEditor, tensors: Iterable[TensorInfo], split: shards.SplitKeys | None = None
    ) -> None:
        self.metadata = MetadataEditor(metadata)
        for key in (ALIGNMENT_KEY, *shards.KEYS):
            self.metadata.remove(key)
        if split is not None:
            split.write_to(self.metadata)
        self.tensors: dict[str, TensorInfo] = {}
        for tensor in tensors:
            _check(tensor)
            if tensor.name in self.tensors:
                raise GgufmergeError(f"tensor {tensor.name!r} would be in the file twice: rename one")
            self.tensors[tensor.name] = tensor
        relative, size = [], 0
        for tensor in self.tensors.values():
            relative.append(size)
            size = _pad(size + tensor.nbytes)
        header = b"".join(
            (
                MAGIC,
                struct.pack("<IQQ", VERSION, len(self.tensors), len(self.metadata)),
                self.metadata.encode(),
                *(_info(tensor, offset) for tensor, offset in zip(self.tensors.values(), relative, strict=True)),
            )
        )
        self.header = header.ljust(_pad(len(header)), b"\0")
        self.offsets = {name: len(self.header) + offset for name, offset in zip(self.tensors, relative, strict=True)}
        self.total_bytes = len(self.header) + size

    def value_offset(self, key: str) -> int:
        """Where in the file the value of a key starts; see `MetadataEditor.value_offset`."""
        return len(MAGIC) + struct.calcsize("<IQQ") + self.metadata.value_offset(key)


class GGUFWriter:
    """A GGUF file being written. Use it as a context manager: an exception removes what was written.

        with GGUFWriter(path, metadata, tensors) as writer:
            writer.write("token_embd.weight", 0, data)
            ...
            writer.commit()

    overwrite: replace an existing target, at commit.
    resume: take up what an earlier run with the same metadata and tensors left (see `resumed`), else start anew. The
    caller knows that it was the same; only the size is looked at, and the header is written anew.
    split: the place of the file among the shards of a model; `sharded.ShardedWriter` writes them all.

    PlanError when the target or its folder does not allow it: it exists, is a folder; OutputError when it is being
    written by another process or the disk is too small. GgufmergeError as in `Layout`. `write` may be called by several
    threads at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: MetadataEditor,
        tensors: Sequence[TensorInfo],
        *,
        overwrite: bool = False,
        resume: bool = False,
        split: shards.SplitKeys | None = None,
    ) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self._layout = Layout(metadata, tensors, split)
        self._header = bytearray(self._layout.header)
        self._written = dict.fromkeys(self._layout.tensors, 0)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._writing = 0  # calls of `write` that are under way
        self._kept = False
        check_target(self.path, overwrite=overwrite)
        self._descriptor = open_locked(self.partial_path)
        try:
            self._resumed = resume and os.fstat(self._descriptor).st_size == self.total_bytes
            if not self._resumed:
                self._start()
        except BaseException:
            self._close(remove=True)
            raise

    @property
    def partial_path(self) -> Path:
        """The temporary file, always the same for a target."""
        return partial_path(self.path)

    @property
    def total_bytes(self) -> int:
        """Size of the complete file."""
        return self._layout.total_bytes

    @property
    def seal(self) -> str:
        """What tells the finished file from all others; see `seal_of`. It changes with `patch`."""
        return _seal(self.total_bytes, bytes(self._header))

    @property
    def resumed(self) -> bool:
        """Whether the work of an earlier run was found; its finished tensors are then to be named with `mark_done`."""
        return self._resumed

    @property
    def seals(self) -> list[str]:
        """The seal of each file: of this one."""
        return [self.seal]

    def offset(self, name: str) -> int:
        """First byte of a tensor in the file."""
        return self._layout.offsets[name]

    def write(self, name: str, offset: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Write bytes into a tensor, `offset` bytes from its start. Each byte of a tensor is to be written once.

        data: anything contiguous. ValueError when it does not fit the tensor.
        """
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        tensor = self._layout.tensors[name]
        if not 0 <= offset <= offset + view.nbytes <= tensor.nbytes:
            raise ValueError(f"{name}: bytes [{offset}, {offset + view.nbytes}) of a tensor of {tensor.nbytes}")
        with self._lock:
            descriptor = self._open()
            self._writing += 1
        try:
            if view.nbytes:  # memoryview cannot flatten arrays without elements
                self._pwrite(descriptor, view.cast("B"), self.offset(name) + offset)
        except BaseException:
            self._end_write(name, 0)
            raise
        self._end_write(name, view.nbytes)

    def read(self, name: str) -> NDArray[np.uint8]:
        """uint8 [nbytes]: what was written of a tensor so far (zeros elsewhere), a read-only view of the file.

        Let go of it before `commit`: Windows does not rename files that somebody looks at.
        """
        start = self.offset(name)
        return map_readonly(self._open(), start, start + self._layout.tensors[name].nbytes)

    def mark_done(self, name: str) -> None:
        """Count a tensor as written: an earlier run has done so, and the caller has verified it."""
        with self._lock:
            if self._written[name]:
                raise ValueError(f"{name}: bytes of this tensor were already written")
            self._written[name] = self._layout.tensors[name].nbytes

    def patch(self, key: str, value: str) -> None:
        """Replace a string of the metadata by one of the same length, to be written at `commit`.

        For what is known only at the end, such as a digest of the data. ValueError for another length or type.
        """
        metadata, data = self._layout.metadata, value.encode()
        if metadata.kind(key) != ValueKind.STRING or len(data) != len(metadata.raw(key)) - 12:
            raise ValueError(f"{key}: only a string can be patched, by one of the same length")
        start = self._layout.value_offset(key)
        self._header[start : start + len(data)] = data

    def commit(self) -> None:
        """Check that all was written, force it to the disk, and give the file its name. The writer is then closed.

        OutputError when the target appeared meanwhile or cannot be replaced: finished work is then kept for `resume`.
        ValueError when bytes are missing.
        """
        self.finish()
        self.publish()

    def verify(self) -> None:
        """Read the header back; FormatError when it is not one that llama.cpp reads."""
        check_header(self.partial_path)

    def finish(self) -> None:
        """The first half of `commit`: all that can fail slowly. The file is complete, under its temporary name."""
        descriptor = self._open()
        for name, count in self._written.items():
            if count != (wanted := self._layout.tensors[name].nbytes):
                raise ValueError(f"{name}: {count} of {wanted} bytes were written")
        self.keep()
        try:
            os.fsync(descriptor)
            self._pwrite(descriptor, memoryview(self._header), 0)
            os.fsync(descriptor)
        except OSError as error:
            self._refuse(error)
        if (size := os.fstat(descriptor).st_size) != self.total_bytes:
            raise OutputError(f"{self.partial_path}: has {size} of {self.total_bytes} bytes: something else wrote it")

    def publish(self) -> None:
        """The second half of `commit`: the file gets its name. The writer is then closed."""
        publish([self.path], overwrite=self.overwrite, closing=self.release)
        self.release()

    def release(self) -> None:
        """Close the writer and leave its file where it is."""
        self._close(remove=False)

    def keep(self) -> None:
        """From now on leave the temporary file behind when the context ends without `commit`, for `resume`."""
        self._kept = True

    def abort(self) -> None:
        """Close the writer and remove the temporary file; nothing happens after `commit`."""
        self._close(remove=True)

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(remove=not self._kept)

    def _end_write(self, name: str, count: int) -> None:
        with self._lock:
            self._written[name] += count
            self._writing -= 1
            self._idle.notify_all()

    def _start(self) -> None:
        try:
            os.ftruncate(self._descriptor, 0)
            _preallocate(self._descriptor, self.path.parent, self.total_bytes)
            # last, so a file with a header has its full size
            self._pwrite(self._descriptor, memoryview(self._header), 0)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)  # so that the message counts all that is free
            self._refuse(error)

    def _pwrite(self, descriptor: int, view: memoryview, position: int) -> None:
        try:
            while view:  # a system may write less than it is given
                if hasattr(os, "pwrite"):
                    count = os.pwrite(descriptor, view, position)
                else:
                    with self._lock:
                        os.lseek(descriptor, position, os.SEEK_SET)
                        count = os.write(descriptor, view)
                view, position = view[count:], position + count
        except OSError as error:
            self._refuse(error)

    def _refuse(self, error: OSError) -> NoReturn:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            free = shutil.disk_usage(self.path.parent).free
            raise OutputError(
                f"{self.path}: the file needs {_gigabytes(self.total_bytes)} but {_gigabytes(free)} are free: "
                "make room or write to another disk"
            ) from None
        if error.errno == errno.EFAULT:  # what is written lies in a mapped file that has lost this part
            raise GgufmergeError("a source became shorter while it was read: start again when it is complete")
        if error.errno == errno.EFBIG:
            raise OutputError(
                f"{self.path}: this file system holds no file of {_gigabytes(self.total_bytes)}: write to another disk"
            ) from None
        raise OutputError(f"{self.path}: cannot be written ({error.strerror}): check the disk and the folder") from None

    def _open(self) -> int:
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: the writer is closed")
        return self._descriptor

    def _close(self, *, remove: bool) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            # the system gives the number of a closed file to the next one, and a late write would go there
            self._idle.wait_for(lambda: not self._writing)
        if descriptor < 0:
            return
        if os.name == "nt":
            os.close(descriptor)
        if remove:
            with contextlib.suppress(FileNotFoundError):
                self.partial_path.unlink()
        if os.name != "nt":  # closing gives up the lock, so the name goes first
            os.close(descriptor)


def partial_path(path: Path) -> Path:
    """The temporary file of a target that is being written."""
    return path.with_name(f".{path.name}.partial")


def aside_path(path: Path) -> Path:
    """Where an old shard waits until the new ones have their names."""
    return path.with_name(f".{path.name}.old")


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """PlanError when a file cannot be written under this name; to be asked before any work is done."""
    check_place(path)
    if os.path.lexists(path) and not overwrite:
        raise exists(path)


def check_place(path: Path) -> None:
    """PlanError when no file of this name can be written, whether there is one or not.

    Only regular files and links are replaced: a device, a pipe or a socket is no file that somebody made.
    """
    if path.is_dir() or not path.name:
        raise PlanError(f"{path}: this is a folder: give the name of a file in it")
    if not path.parent.is_dir():
        raise PlanError(f"{path}: there is no folder {path.parent}: create it first")
    check_regular(path)
    if not os.access(path.parent, os.W_OK):
        raise PlanError(f"{path}: the folder {path.parent} is not writable: choose another or change its permissions")


def check_regular(path: Path) -> None:
    """PlanError when there is something of this name that is no file or link, and no folder."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            with contextlib.suppress(OSError, RuntimeError):  # a link to nothing or to itself is only a link
                mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise PlanError(f"{path}: this is not a regular file, so it is not replaced: give another name")


def exists(path: Path) -> OutputError:
    """The error for a target that is there and must not be replaced."""
    return OutputError(f"{path}: exists: use --overwrite to replace it")


def write_new(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write a small file, whole or not at all. OutputError when there is another one and `overwrite` is not set; one
    with this content is what an interrupted run has written.
    """
    check_place(path)
    if os.path.lexists(path) and not overwrite:
        if path.read_bytes() == data:
            return
        raise exists(path)
    write_file(path, data)


def publish(
    paths: Sequence[Path],
    *,
    overwrite: bool = False,
    closing: Callable[[], None] | None = None,
    given: Collection[Path] = (),
) -> None:
    """Give finished files, which have their temporary names, their own: all of them or none.

    Several files are shards: the old ones are put aside, all of them, before the first new one gets its name, and the
    first shard, which is the one to open, comes last, so no mixture looks complete. What an earlier call has published
    already (`given`) stays; what it has put aside goes at the end.
    closing: closes the files, which Windows needs before it renames them; elsewhere their locks are held to the end.
    OutputError when a target appeared meanwhile or cannot be replaced: then all is as it was.
    """
    waiting = [path for path in paths if path not in given]
    for path in waiting:
        check_place(path)
        if not overwrite and os.path.lexists(path):
            raise exists(path)
    if os.name == "nt" and closing is not None:
        closing()
    moved: list[Path] = []
    published: list[Path] = []
    try:
        if len(paths) > 1:
            for path in waiting:  # the first one first: what is left of the old set must not look complete
                if os.path.lexists(path):
                    path.replace(aside_path(path))
                    moved.append(path)
        for path in reversed(waiting):
            partial_path(path).replace(path)
            published.append(path)
    except OSError as error:
        for path in published:
            path.replace(partial_path(path))
        for path in reversed(moved):
            aside_path(path).replace(path)
        raise OutputError(f"{paths[0]}: cannot be written ({error.strerror}): close what uses it") from None
    for folder in {path.parent for path in paths}:
        fsync_folder(folder)
    for path in paths:
        if len(paths) > 1:
            remove_file(aside_path(path))


def unpublish(paths: Sequence[Path], given: Collection[Path]) -> None:
    """Undo a publication that was cut short: new files (`given`) are gone, old ones that waited aside are back."""
    for path in paths:
        if path in given:
            path.unlink()
        if os.path.lexists(aside_path(path)):
            if os.path.lexists(path):
                aside_path(path).unlink()
            else:
                aside_path(path).replace(path)


def seal_of(path: Path, like: str) -> str | None:
    """The seal of a file on disk, by its size and the bytes of its header, read where the seal `like` has it.

    None when there is no file; a text that is no seal when it cannot be one like this.
    """
    try:
        if not stat.S_ISREG((found := os.lstat(path)).st_mode):
            return ""
        size, length, _ = like.split("-") if like.count("-") == 2 else ("", "", "")
        if str(found.st_size) != size or not length.isdecimal() or int(length) > found.st_size:
            return ""
        with path.open("rb") as file:
            return _seal(found.st_size, file.read(int(length)))
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _seal(size: int, header: bytes) -> str:
    return f"{size}-{len(header)}-{hashlib.sha256(header).hexdigest()}"


def same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file, through links or differently spelt; they need not exist."""
    first, second = Path(a), Path(b)
    with contextlib.suppress(OSError):
        return first.samefile(second)
    # not Path.resolve, which has no answer for a link that leads to itself
    return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))


def _check(tensor: TensorInfo) -> None:
    if not 0 < len(_utf8(tensor.name)) <= MAX_NAME:
        raise GgufmergeError(f"tensor {tensor.name!r}: llama.cpp reads names of 1 to {MAX_NAME} bytes: shorten it")
    if len(tensor.shape) > MAX_DIMENSIONS or min(tensor.shape, default=0) < 0:
        raise GgufmergeError(f"tensor {tensor.name!r}: shape {tensor.shape} is not one that GGUF can hold")
    if tensor.n % tensor.type.block_size:
        raise GgufmergeError(
            f"tensor {tensor.name!r}: rows of {tensor.n} values are no whole number of {tensor.type} blocks of "
            f"{tensor.type.block_size}: choose another type"
        )


def _info(tensor: TensorInfo, offset: int) -> bytes:
    name = _utf8(tensor.name)
    dimensions = len(tensor.shape)
    return struct.pack(
        f"<Q{len(name)}sI{dimensions}QIQ",
        *(len(name), name, dimensions, *reversed(tensor.shape), tensor.type.id, offset),
    )


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _pad(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count} bytes"


def _preallocate(descriptor: int, folder: Path, size: int) -> None:
    """Make the file this long, all zeros, with its blocks reserved where the file system can do that."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(descriptor, size)
