"""What a build has finished so far, so that a killed one can go on where it was.

A journal is a text file beside the unfinished output: a first line that identifies the build (plan, sources, chunk
size), then a line per finished tensor with a checksum of its bytes. Lines are appended as tensors are completed; a line
cut short by a crash is ignored, and a tensor counts as finished only if the bytes on disk still have the checksum.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TextIO


class Journal:
    """The journal of one output. `done` maps tensors that an earlier run finished to the checksum of their bytes."""

    def __init__(self, output: Path, identity: str) -> None:
        self.path = output.with_name(f".{output.name}.journal")
        self.identity = identity
        self.done = self._read()
        self._file: TextIO | None = None
        self._kept = False

    def start(self) -> None:
        """Begin to write: a fresh journal, or the continuation of one of the same identity."""
        fresh = not self.done
        self._file = self.path.open("w" if fresh else "a", encoding="utf-8")
        if fresh:
            self._line({"build": self.identity})
        elif not self._ends_with_newline():
            self._file.write("\n")

    def finished(self, tensor: str, checksum: int) -> None:
        """Note that all bytes of a tensor are written."""
        self._line({"tensor": tensor, "crc32": checksum})

    def keep(self) -> None:
        """From now on leave the journal behind when the context ends, for the run that continues this one."""
        self._kept = True

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if not self._kept:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def _line(self, entry: dict[str, str | int]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def _read(self) -> dict[str, int]:
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        entries = [e for e in entries if isinstance(e, dict)]
        if not entries or entries[0].get("build") != self.identity:
            return {}
        return {e["tensor"]: e["crc32"] for e in entries[1:] if "tensor" in e and "crc32" in e}

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as f:
            f.seek(0, os.SEEK_END)
            if not f.tell():
                return True
            f.seek(-1, os.SEEK_END)
            return f.read(1) == b"\n"
