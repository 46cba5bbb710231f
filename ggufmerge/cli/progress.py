"""A build's progress: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ggufmerge.cli import bus_error
from ggufmerge.cli.terminal import complain, show_warnings
from ggufmerge.engine.progress import Progress as ProgressEvents
from ggufmerge.text import printable

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.engine.planner import Opened

_PLAIN_INTERVAL = 10.0  # seconds between lines when nobody watches


def run_with_progress(plan: Plan, opened: Opened, output: Path, **options: Any) -> BuildReport:
    """`engine.run` with its progress on standard error; an interruption ends the program with a line how to go on."""
    from ggufmerge.engine.run import run

    with progress_display() as progress:
        return run(plan, opened, output, progress=progress, **options)


@contextmanager
def progress_display() -> Iterator[ProgressDisplay]:
    """A display on standard error; an interruption ends the program with a line how to go on."""
    bus_error.install()
    progress = ProgressDisplay(Console(stderr=True, highlight=False))
    try:
        yield progress
    except KeyboardInterrupt:
        progress.end()
        complain(f"interrupted: give the same command again to go on ({progress.summary()})")
        raise typer.Exit(1) from None


class ProgressDisplay(ProgressEvents):
    """Draws the events of a run on `console` (standard error, so that results can be piped)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: int = 0
        self._total = self._done = self._tensors = self._finished = 0
        self._started = self._last = time.monotonic()

    def warn(self, warnings: Sequence[str]) -> None:
        show_warnings(warnings)

    def begin(self, total_bytes: int, tensors: int) -> None:
        self._total, self._tensors = total_bytes, tensors
        self._done = self._finished = 0  # a recipe of several documents begins several times
        self._started = self._last = time.monotonic()
        if not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description:<28.28}", markup=False),  # names of tensors may look like markup
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[tensors]}"),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("starting", total=total_bytes, tensors=f"0/{tensors}")
        self._bar.start()

    def phase(self, text: str) -> None:
        if self._bar is None and time.monotonic() - self._last >= _PLAIN_INTERVAL:
            self._console.print(printable(text), markup=False, soft_wrap=True)
        if not self._done:
            self._started = self._last = time.monotonic()  # compiling kernels says nothing about the speed
        self._describe(text)

    def tensor(self, name: str) -> None:
        self._describe(name)

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._bar is not None:
            self._bar.advance(self._task, nbytes)  # type: ignore[arg-type]
        elif (now := time.monotonic()) - self._last >= _PLAIN_INTERVAL:
            self._last = now
            rate = self._done / (now - self._started)
            left = (self._total - self._done) / rate
            self._console.print(f"{self.summary()}, {rate / 1e6:.0f} MB/s, {left:.0f} s left", soft_wrap=True)

    def tensor_done(self, name: str) -> None:
        self._finished += 1
        if self._bar is not None:
            self._bar.update(self._task, tensors=f"{self._finished}/{self._tensors}")  # type: ignore[arg-type]

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def summary(self) -> str:
        """How far the run is: `12 of 272 tensors, 34 %`."""
        percent = 100 * self._done // self._total if self._total else 0
        return f"{self._finished} of {self._tensors} tensors, {percent} %"

    def _describe(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=printable(text))  # type: ignore[arg-type]
