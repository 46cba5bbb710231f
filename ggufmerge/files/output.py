"""One owner of an output, from the first byte to the last: `Output`.

Beside the files of an output lie, while it is made, and nothing else:

    .NAME.journal   how far it is (`files.journal`); its lock says whose it is. Made first, removed last
    .NAME.partial   each unfinished file, at its full size
    .NAME.old       old shards, while new ones get their names
    .NAME.stages/   models that only the last step of a recipe of several documents reads

NAME is that of the file; the journal and the stages of a split output go by its first shard. Only the process that has
the lock writes or removes any of them. Whatever ends that process, the next one with the same work goes on, and one
with other work starts over; `resumption` says which.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ggufmerge.errors import GgufmergeError, OutputError
from ggufmerge.files.atomic import fsync_folder, remove_abandoned, remove_file, remove_folder
from ggufmerge.files.journal import FORMAT, Decision, Move, Record, Seen, State, decide, replay
from ggufmerge.files.lock import locks_work, open_locked
from ggufmerge.files.metadata import MetadataEditor
from ggufmerge.files.sharded import ShardedWriter, SplitLimit
from ggufmerge.files.shards import SplitKeys
from ggufmerge.files.tensor import TensorInfo
from ggufmerge.files.writer import (
    GGUFWriter,
    aside_path,
    check_place,
    exists,
    partial_path,
    publish,
    seal_of,
    unpublish,
)

Writer = GGUFWriter | ShardedWriter
_MAX_JOURNAL = 1 << 26  # bytes; 100,000 tensors need half of it


class Output:
    """The files that one build writes, all or nothing. Use it as a context manager.

        with Output([path]) as output:
            if output.take_up(identity) in (Move.START, Move.RESUME):
                with output.writer(metadata, tensors) as writer:
                    ...  # writer.write(...), output.finished(tensor, crc)
                    output.seal(facts)
            output.publish()
            output.complete()

    files: all files, the one to open first.  overwrite: replace files that are there.

    Leaving the block without `complete`: an error that the same inputs must repeat (any GgufmergeError but OutputError)
    removes what was written; everything else, such as Ctrl-C, a full disk or no memory, keeps finished tensors, sealed
    files and stages for the same call. `kept` then says whether there is anything. Once the files have their names they
    stay, and any error leaves the rest to be done by the same call.

    PlanError when files of these names cannot be written; OutputError when another process is writing them, or they
    exist and are not to be replaced. An OSError leaves the block as an OutputError.
    """

    def __init__(self, files: Sequence[Path], *, overwrite: bool = False) -> None:
        self.files, self.overwrite = list(files), overwrite
        for path in self.files:
            check_place(path)
            _check_own(partial_path(path))
            _check_own(aside_path(path))
        self.journal_path, self._stages, *_ = work_files(self.files[0])
        self.decision = Decision(Move.START)
        self.kept = False
        self._identity = ""
        self._finished = 0
        self._working = False  # whether this process has begun to write
        self._writer: Writer | None = None
        self._complete = False
        _check_own(self._stages, folder=True)
        self._journal = open_locked(self.journal_path)
        try:
            self.has_lock = locks_work(self._journal)
            self.record = self._read()
            if self.record.state in (State.NEW, State.WRITING):  # later ones may have published files themselves
                self._check_free()
        except BaseException:
            self._release(remove=not os.fstat(self._journal).st_size)
            raise

    @property
    def path(self) -> Path:
        """The file to open when all is done."""
        return self.files[0]

    @property
    def resumption(self) -> str:
        """What became of earlier work, for people; empty when there was none."""
        if self.decision.reason:
            return f"an interrupted build was started over: {self.decision.reason}"
        return {Move.PUBLISH: _FINISHED, Move.FINISH: _FINISHED}.get(self.decision.move, "")

    def take_up(self, identity: str) -> Move:
        """What to do for a build of this identity, a hash of all that its bytes depend on.

        OutputError when the files exist and are not to be replaced; what was found then stays as it is.
        """
        self.decision = decide(self.record, identity, self._look())
        if self.decision.undo:
            unpublish(self.files, self._given())
        if self.decision.move is Move.START:
            if self.record.state in (State.SEALED, State.PUBLISHED) and not self.decision.reason:
                self._remove_stages()  # that build was complete but for the removal of these and of its journal
                self._empty()
            self._check_free()
            if self.record.state is not State.NEW:
                self._empty()
            self.record = Record()
        self._identity = identity
        return self.decision.move

    def writer(
        self,
        metadata: MetadataEditor,
        tensors: Sequence[TensorInfo],
        split: SplitLimit | None = None,
        *,
        keys: SplitKeys | None = None,
    ) -> Writer:
        """The writer of the files, after `take_up`; `record.done` has the tensors that it may count as written.

        split: cut the model into several files.  keys: what a single file says of its place among shards.
        """
        self._working = True
        resume = self.decision.move is Move.RESUME
        self._writer = (
            GGUFWriter(self.path, metadata, tensors, overwrite=True, resume=resume, split=keys)
            if split is None
            else ShardedWriter(self.path, metadata, tensors, split, overwrite=True, resume=resume)
        )
        if not resume or not self._writer.resumed:
            self._empty()
            self._note({"build": self._identity, "format": FORMAT})
        return self._writer

    def finished(self, tensor: str, checksum: int, facts: Mapping[str, Any]) -> None:
        """Note that all bytes of a tensor are written.

        facts: what was found out, for a run that goes on from here, anything that JSON holds.
        """
        self._append(json.dumps({"tensor": tensor, "crc32": checksum, "facts": dict(facts)}).encode() + b"\n")
        self._finished += 1

    def seal(self, facts: Mapping[str, Any]) -> None:
        """All is written: force it to the disk. From here only names are missing.

        facts: for the report of a run that goes on from here, anything that JSON holds.
        """
        assert self._writer is not None
        self._writer.finish()
        self._note({"sealed": self._writer.seals, "facts": dict(facts)}, force=True)

    def publish(self) -> None:
        """Give the files their names. OutputError when that is not possible; all is then as it was, and kept."""
        writer = self._writer
        if self.record.taken is None:
            closing = writer.release if writer is not None else None
            publish(self.files, overwrite=self.overwrite, given=self._given(), closing=closing)
        else:
            for path in self.files:
                path.unlink(missing_ok=True)
        if writer is not None:
            writer.release()
        if self.record.state is not State.PUBLISHED:
            self._note({"published": True}, force=True)

    def owns(self, name: str) -> bool:
        """Whether an interrupted run of this output has begun to write `name`, so what is there may be its own.

        It is if it has the content that is to be written; anything else is somebody's.
        """
        return name in self.record.claimed

    def claim(self, name: str) -> None:
        """Note that `name`, a file or a name in a store, is about to be written for this output, which is published."""
        self._note({"claimed": name}, force=True)

    def give_away(self, facts: Mapping[str, Any]) -> None:
        """Note that the files, which are published, belong somewhere else now, and remove them here.

        facts: where they are, for a run that goes on from here (`record.taken`).
        """
        self._note({"taken": dict(facts)}, force=True)
        for path in self.files:
            path.unlink(missing_ok=True)

    def complete(self) -> None:
        """Everything is done: leaving the block removes what lies beside the output."""
        self._complete = True

    def stage_folder(self) -> Path:
        """The folder of the stages, made if it is not there. OutputError when something else has its name."""
        self._working = True
        with contextlib.suppress(FileExistsError):
            self._stages.mkdir(mode=0o700)
        _check_own(self._stages, folder=True)
        return self._stages

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._complete and error is None:
            self._remove_stages()
            self._release(remove=True)
            return
        repeats = isinstance(error, GgufmergeError) and not isinstance(error, OutputError)
        if not self._working or self.record.state is State.PUBLISHED:
            repeats = False  # a refusal before work began leaves what was there; what comes after may be tried again
        self.kept = error is not None and not repeats and self._has_work()
        if self._writer is not None and self.kept:
            self._writer.release()
        if not self.kept:
            self._discard()
        self._release(remove=not self.kept)
        if isinstance(error, OSError):
            error = explained(error, self.path)
            self._add_note(error)
            raise error from None
        if error is not None:
            self._add_note(error)

    def _add_note(self, error: BaseException) -> None:
        if self.kept and self._working and _KEPT not in getattr(error, "__notes__", ()):
            error.add_note(_KEPT)

    def _check_free(self) -> None:
        """OutputError when a file exists that is not to be replaced."""
        for path in self.files:
            if not self.overwrite and os.path.lexists(path):
                raise exists(path)

    def _look(self) -> list[Seen]:
        seals = [*self.record.seals, *[""] * len(self.files)]
        return [
            Seen(seal_of(partial_path(path), seal), seal_of(path, seal), os.path.lexists(aside_path(path)))
            for path, seal in zip(self.files, seals, strict=False)
        ]

    def _given(self) -> list[Path]:
        """Files that have their names already: those of an earlier run that was stopped while it published."""
        return [
            path
            for path, seal in zip(self.files, self.record.seals, strict=False)
            if seal_of(path, seal) == seal and not os.path.lexists(partial_path(path))
        ]

    def _has_work(self) -> bool:
        """Whether what is here is worth keeping."""
        if self.record.state in (State.SEALED, State.PUBLISHED) or self.record.done or self._finished:
            return True
        return self._stages.is_dir() and not self._stages.is_symlink() and any(self._stages.iterdir())

    def _discard(self) -> None:
        """Remove unfinished files and stages; a publication that was cut short is undone."""
        if self._writer is not None:
            self._writer.abort()
        if self.record.state is not State.PUBLISHED:
            unpublish(self.files, self._given() if self.record.state is State.SEALED else ())
        for path in map(partial_path, self.files):
            with contextlib.suppress(OSError, OutputError):  # another program's, or there is none
                descriptor = open_locked(path, create=False)
                path.unlink()
                os.close(descriptor)
        self._remove_stages()
        for folder in {path.parent for path in self.files}:
            remove_abandoned(folder)

    def _remove_stages(self) -> None:
        remove_folder(self._stages)

    def _read(self) -> Record:
        self._end = size = os.fstat(self._journal).st_size
        if size > _MAX_JOURNAL:
            return Record()  # no journal of ours: it is overwritten
        data = bytearray()
        with self._explained():
            while piece := _read_at(self._journal, size - len(data), len(data)):
                data += piece
        self._end = len(data)
        if data and not data.endswith(b"\n"):  # a line that a crash cut short
            self._append(b"\n")
        return replay(data.decode("utf-8", "replace"))

    def _empty(self) -> None:
        with self._explained():
            os.ftruncate(self._journal, 0)
            os.fsync(self._journal)
        self._end = 0
        self.record = Record()

    def _note(self, line: dict[str, Any], *, force: bool = False) -> None:
        self._append(json.dumps(line).encode() + b"\n")
        if force:
            with self._explained():
                os.fsync(self._journal)
        self.record = self.record.after(line)

    def _append(self, data: bytes) -> None:
        with self._explained():
            os.lseek(self._journal, self._end, os.SEEK_SET)
            view = memoryview(data)
            while view:
                view = view[os.write(self._journal, view) :]
        self._end += len(data)

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.journal_path}: cannot be written ({error.strerror}): check the disk and the folder"
            ) from None

    def _release(self, *, remove: bool) -> None:
        descriptor, self._journal = self._journal, -1
        if descriptor < 0:
            return
        if os.name == "nt":  # an open file cannot be removed there
            os.close(descriptor)
        if remove:
            remove_file(self.journal_path)
            fsync_folder(self.journal_path.parent)
        if os.name != "nt":  # closing gives up the lock, so the name goes first
            os.close(descriptor)


def work_files(path: Path) -> list[Path]:
    """What may lie beside a file while it is made: journal, stages, partial file, old shard."""
    journal, stages = (path.with_name(f".{path.name}.{kind}") for kind in ("journal", "stages"))
    return [journal, stages, partial_path(path), aside_path(path)]


def _check_own(path: Path, *, folder: bool = False) -> None:
    """OutputError when what has the name of a work file, or of the folder of stages, cannot be one: a link, say."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if folder:
        own = stat.S_ISDIR(found.st_mode) and (not hasattr(os, "geteuid") or found.st_uid == os.geteuid())
    else:
        own = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    if not own:
        raise OutputError(f"{path}: is no {'folder' if folder else 'file'} of this program: remove it")


def explained(error: OSError, path: Path) -> OutputError:
    """What the system said of a file, or, if it did not name one, of `path`."""
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path
    return OutputError(f"{where}: {error.strerror or error}: check the disk and the folder")


_KEPT = "what is finished is kept: give the same command again to go on"
_FINISHED = "an interrupted build was complete and only had to be given its name"


def _read_at(descriptor: int, count: int, position: int) -> bytes:
    os.lseek(descriptor, position, os.SEEK_SET)
    return os.read(descriptor, min(count, 1 << 20))
