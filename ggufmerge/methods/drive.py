"""Drives the passes of a method, here or in several places.

A method asks for its passes one after the other, each when it knows what the one before has gathered (`Method.passes`).
So whoever has what was gathered so far can find out the next pass, or after the last one the statistics that the merge
needs, without having done any of the passes: the generator of the method is replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from ggufmerge.methods.spec import Method, Pass, Problem


@dataclass(frozen=True)
class Statistics:
    """The end of the passes: what `Method.combine` is given."""

    value: Any


class Replay:
    """The passes of a method for one problem. Several threads may ask at once.

    Asked in order it is the method's own generator, which is advanced once for each pass; asked in another process, or
    for an earlier pass, a new one is replayed with what is given.
    """

    def __init__(self, method: Method, problem: Problem) -> None:
        self._method, self.problem = method, problem
        self._done = 0  # passes that the generator has got the results of
        self._current: Pass | Statistics | None = None
        self._lock = threading.Lock()

    def after(self, gathered: Sequence[Any]) -> Pass | Statistics:
        """What follows on the passes that have gathered this: the next pass, or the statistics."""
        with self._lock:
            if self._current is None or self._done > len(gathered):
                self._passes, self._done = self._method.passes(self.problem), 0
                self._current = self._advanced(None)
            while self._done < len(gathered):
                self._current, result = None, gathered[self._done]
                self._current, self._done = self._advanced(result), self._done + 1
            return self._current

    def _advanced(self, result: Any) -> Pass | Statistics:
        try:
            return self._passes.send(result)
        except StopIteration as end:
            return Statistics(end.value)


class Reading:
    """One pass under way.

    before: what each pass before it has gathered.  number: which one it is, from 0.  result: what it has gathered so
    far.  map: as in `Pass`.
    """

    def __init__(self, before: tuple[Any, ...], current: Pass) -> None:
        self.before, self.number = before, len(before)
        self.result, self.map = current.initial, current.map
        self._fold = current.fold

    def fold(self, partial: Any) -> None:
        """Take in the partial result of the next chunk, in order."""
        self.result = self._fold(self.result, partial)


def readings(replay: Replay) -> Generator[Reading, None, tuple[Any, ...]]:
    """Yields a reading for each pass, in which whoever drives it folds the partial results of all chunks before it goes
    on; returns what each pass has gathered.
    """
    gathered: tuple[Any, ...] = ()
    while isinstance(current := replay.after(gathered), Pass):
        reading = Reading(gathered, current)
        yield reading
        gathered = (*gathered, reading.result)
    return gathered
