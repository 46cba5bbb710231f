"""The unfinished work of a calibration, kept beside its result: arrays in one file that is replaced as a whole.

The file begins with a line of JSON: what it is of, how far the work is, and the arrays that follow in this order.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.files.atomic import remove_file, replacing
from ggufmerge.files.small import open_regular, parse_mapping

_LONGEST_LINE = 1 << 24

Arrays = Mapping[str, NDArray[Any]]


def checkpoint_path(output: Path) -> Path:
    """Where the unfinished work for an output is."""
    return output.with_name(f".{output.name}.unfinished")


class Checkpoint:
    """identity: what tells the work from any other, such as a hash of its inputs."""

    def __init__(self, output: Path, identity: str) -> None:
        self.path, self._identity = checkpoint_path(output), identity

    def save(self, done: int, arrays: Arrays) -> None:
        """Keep arrays, and how far the work is."""
        check = 0
        for array in arrays.values():
            check = zlib.crc32(np.ascontiguousarray(array).data.cast("B"), check)
        head = {
            "identity": self._identity,
            "done": done,
            "check": check,
            "arrays": {key: [array.dtype.str, *array.shape] for key, array in arrays.items()},
        }
        with replacing(self.path) as file:
            file.write(json.dumps(head).encode() + b"\n")
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)

    def load(self, into: Arrays) -> int:
        """Put what was kept into arrays of the same names and shapes; how far the work was, 0 when nothing is kept that
        fits, and then the arrays are as they were.
        """
        with suppress(OSError, GgufmergeError, ValueError), open_regular(self.path) as file:
            head = parse_mapping(file.readline(_LONGEST_LINE))
            wanted = {key: [array.dtype.str, *array.shape] for key, array in into.items()}
            if head.get("identity") != self._identity or head.get("arrays") != wanted:
                return 0
            found, check = {}, 0
            for key, array in into.items():
                raw = file.read(array.nbytes)
                if len(raw) != array.nbytes:
                    return 0
                check = zlib.crc32(raw, check)
                found[key] = np.frombuffer(raw, array.dtype).reshape(array.shape)
            done = head.get("done")
            if check != head.get("check") or not isinstance(done, int):
                return 0
            for key, array in into.items():
                array[...] = found[key]
            return done
        return 0

    def remove(self) -> None:
        """Drop what is kept, if there is something."""
        remove_file(self.path)
