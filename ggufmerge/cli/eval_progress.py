"""How far `ggufmerge eval` is, by tokens over all models and texts, and how long it will take, before it takes long."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ggufmerge.cli.terminal import complain, console
from ggufmerge.evaluation.scores import Watcher
from ggufmerge.text import duration, printable

if TYPE_CHECKING:
    from rich.console import Console

_LONG = 20.0  # seconds that are worth a line about how many they are
_PLAIN_INTERVAL = 10.0  # seconds between lines when nobody watches


class EvalProgress(Watcher):
    """A bar on a terminal, a plain line now and then elsewhere; on standard error.

    models: how many are measured.
    """

    def __init__(self, models: int, out: Console | None = None) -> None:
        self._out = out or console(stderr=True)
        self._models = models
        self._done = self._total = 0
        self._quick: int | None = None
        self._computing = 0.0  # seconds of reading, without loading
        self._since = self._last = time.monotonic()
        self._estimated = False
        self._text = ""
        self._bar: Progress | None = None
        if self._out.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._out,
                transient=True,
                expand=True,
            )
            self._task = self._bar.add_task("", total=None, left="")

    def __enter__(self) -> EvalProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def says(self, text: str) -> None:
        """What is being done now."""
        self._text = printable(text)
        self._since = time.monotonic()
        if self._bar is not None:
            room = max(20, self._out.width - 30)
            short = self._text if len(self._text) <= room else "..." + self._text[3 - room :]
            self._bar.update(self._task, description=short)

    def notes(self, text: str) -> None:
        """Something that is good to know before the work is done."""
        complain(f"note: {text}")

    def expect(self, tokens: int, quick: int | None = None) -> None:
        """All that is to be read, as far as is known, in tokens; quick: how many it were with --quick."""
        self._total, self._quick = max(tokens, self._done), quick
        if self._bar is not None:
            self._bar.update(self._task, total=self._total or None)

    def advance(self, tokens: int) -> None:
        now = time.monotonic()
        self._computing += now - self._since
        self._since = now
        self._done += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=f"{duration(self._left())} left")
        if not self._estimated:
            self._estimated = True
            self._estimate()
            self._last = now
        elif self._bar is None and now - self._last >= _PLAIN_INTERVAL:
            self._last = now
            percent = 100 * self._done // max(self._total, 1)
            complain(f"{self._text}: {percent} % of all, {duration(self._left())} left")

    def _left(self) -> float:
        return (self._total - self._done) * self._computing / self._done if self._done else 0.0

    def _estimate(self) -> None:
        """A line about how long it takes, if that is long."""
        seconds = self._left()
        if seconds < _LONG:
            return
        what = f"{self._models} models" if self._models > 1 else "the model"
        line = f"about {duration(seconds)} for {what} ({self._total:,} tokens)"
        if self._quick is not None:
            line += f"; --quick takes {duration(self._quick * self._computing / self._done)}"
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            complain(line)
