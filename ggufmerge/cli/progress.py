"""A build's progress: one line that is drawn again and again on a terminal, a plain line now and then elsewhere.

The line is written and the cursor put back to its first column. So what has to go, when the line is drawn anew or the
terminal was made narrower and has folded it, is always what stands from the cursor on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ggufmerge.cli import bus_error, voice
from ggufmerge.cli.terminal import complain, show_warnings
from ggufmerge.running.progress import Progress as ProgressEvents
from ggufmerge.text import duration, printable, series, shortened, size

if TYPE_CHECKING:
    from ggufmerge.engine import BuildReport, Plan
    from ggufmerge.planning.opened import Opened
    from ggufmerge.running.rates import Measured

_PLAIN_INTERVAL = 10.0  # seconds between lines when nobody watches
_REDRAWN = 0.1  # seconds between drawings that events bring about
_TICK = 0.5  # seconds between those that nothing brings about but time, and a terminal that was resized
_SOON = 2.0  # seconds of work before a time is given
_BAR = 30  # characters, at most


def run_with_progress(plan: Plan, opened: Opened, output: Path, **options: Any) -> BuildReport:
    """`running.run` with its progress on standard error; an interruption ends the program with a line how to go on."""
    from ggufmerge.running.run import run

    with progress_display(output) as progress:
        return run(plan, opened, output, progress=progress, **options)


@contextmanager
def progress_display(output: Path | None = None) -> Iterator[ProgressDisplay]:
    """A display on standard error; an interruption ends the program with lines that say how to go on.

    output: the file that is made (of shards, what their names begin with).
    """
    from ggufmerge.cli.unfinished import listed

    bus_error.install()
    progress = ProgressDisplay(Console(stderr=True, highlight=False))
    try:
        with listed(output):
            yield progress
    except KeyboardInterrupt:
        progress.end()
        kept = list(_what_is_kept(output))
        if kept or output is None:
            complain(f"interrupted: give the same command again to go on ({progress.summary()})")
        else:
            complain("interrupted: give the same command again (nothing was finished yet, nothing is kept)")
        for line in kept:
            complain(f"kept: {line}")
        raise typer.Exit(1) from None
    finally:
        progress.end()


def _what_is_kept(output: Path | None) -> Iterator[str]:
    from ggufmerge.cli.unfinished import how_to_drop, of_output

    for found in of_output(output) if output is not None else ():
        yield f"{size(found.nbytes)} in {found.output.parent}; to drop it: {how_to_drop(found)}"


class ProgressDisplay(ProgressEvents):
    """Draws the events of a run on `console` (standard error, so that results can be piped).

    One measure holds for the bar, the percentage and the time that is left: the work, of which an earlier run may have
    done a part. Tensors are only counted beside it. With --quiet nothing is drawn, with --verbose each tensor gets a
    line, with --log everything goes to the file as well (`voice`).
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._voice = voice.current()
        self._draws = console.is_terminal and not console.is_dumb_terminal and not console.legacy_windows
        self._draws = self._draws and not self._voice.quiet
        self._lock = threading.RLock()
        self._text = ""  # what is being done
        self._total = self._tensors = 0
        self._done = self._before = 0  # units of work: all that is done, and what an earlier run had done of it
        self._finished = self._taken = 0  # the same of tensors
        self._moving = 0.0  # when this run's work began
        self._last = time.monotonic()  # when something was shown
        self._since = time.monotonic()  # when the current phase began
        self._startup: float | None = None
        self._alive: threading.Event | None = None

    # Events

    def warn(self, warnings: Sequence[str]) -> None:
        with self._aside():
            show_warnings(warnings)

    def begin(self, total: int, tensors: int) -> None:
        self._total, self._tensors = total, tensors
        self._done = self._before = self._finished = self._taken = 0
        self._moving = self._last = time.monotonic()
        if self._startup is None:
            self._startup = time.process_time()
        self._start()

    def taken_over(self, total: int, tensors: int) -> None:
        self._done += total
        self._before += total
        self._finished += tensors
        self._taken += tensors
        self._draw()

    def compiling(self, kernels: Sequence[str], seconds: float) -> None:
        names = list(dict.fromkeys(_name_of(kernel) for kernel in kernels))
        shown = names if len(names) < 5 else [*names[:3], f"{len(names) - 3} more"]
        self._phase(f"compiling kernels for {series(shown)}, first time on this machine, about {duration(seconds)}")
        if not self._draws and seconds >= _PLAIN_INTERVAL / 2:
            self._plain(self._text)

    def phase(self, text: str) -> None:
        if text == "merging" and self._taken:
            self.note(f"going on: {self._taken} of {self._tensors} tensors are there")
        self._phase(text)
        if not self._draws and time.monotonic() - self._last >= _PLAIN_INTERVAL:
            self._plain(self._text)

    def tensor(self, name: str) -> None:
        self._text = name
        self._draw()

    def advance(self, units: int) -> None:
        self._done += units
        if self._draws:
            self._draw()
        elif (now := time.monotonic()) - self._last >= _PLAIN_INTERVAL:
            left = self._left(now)
            self._plain(self.summary() + (f", {left:.0f} s left" if left is not None else ""))

    def tensor_done(self, name: str) -> None:
        self._finished += 1
        if self._voice.verbose:
            self.note(f"{self._finished} of {self._tensors}: {name}")
        else:
            self._voice.log(f"{self._finished} of {self._tensors}: {name}")

    def measured(self, sums: Mapping[str, Measured]) -> None:
        from ggufmerge.running.rates import Measured, Rates

        rates = Rates.load()
        rates.learn(sums)
        if "stretch" in sums and self._startup is not None:  # of the run itself, not of what is made of its file
            rates.learn({"start": Measured(1, self._startup)})
        rates.save()

    def end(self) -> None:
        if self._alive is not None:
            self._alive.set()
            self._alive = None
            with self._lock:
                self._write("\x1b[J")

    # What others ask

    def note(self, line: str) -> None:
        """A line of its own above the progress; not with --quiet."""
        self._voice.log(line)
        if not self._voice.quiet:
            with self._aside():
                self._console.print(printable(line), markup=False, soft_wrap=True)

    def summary(self) -> str:
        """How far the work is, over all of it: `12 of 272 tensors, 34 %`."""
        return f"{self._finished} of {self._tensors} tensors, {self._percent} %" if self._tensors else "nothing yet"

    @property
    def _percent(self) -> int:
        return min(100, 100 * self._done // self._total) if self._total else 0

    def _left(self, now: float) -> float | None:
        """Seconds until all is done, at the speed of this run; None as long as that says nothing."""
        here, passed = self._done - self._before, now - self._moving
        if here <= 0 or passed < _SOON:
            return None
        return passed * max(0, self._total - self._done) / here

    def _phase(self, text: str) -> None:
        self._text, self._since = text, time.monotonic()
        if self._done == self._before:
            self._moving = self._since  # compiling kernels says nothing about the speed
        self._voice.log(text)
        self._start()
        self._draw(now=True)

    def _plain(self, line: str) -> None:
        self._last = time.monotonic()
        self._voice.log(line)
        if not self._voice.quiet:
            self._console.print(printable(line), markup=False, soft_wrap=True)

    # Drawing

    def _start(self) -> None:
        if self._draws and self._alive is None:
            self._alive = threading.Event()
            threading.Thread(target=self._keep_drawing, args=(self._alive,), daemon=True).start()

    def _keep_drawing(self, ended: threading.Event) -> None:
        while not ended.wait(_TICK):
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                self._draw(now=True)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Clear the line for others to print, and draw it again."""
        with self._lock:
            if self._alive is not None:
                self._write("\x1b[J")
            yield
            if self._alive is not None:
                self._draw(now=True)

    def _draw(self, *, now: bool = False) -> None:
        if self._alive is None:
            return
        with self._lock:
            moment = time.monotonic()
            if self._alive is None or (not now and moment - self._last < _REDRAWN):
                return
            self._last = moment
            self._write(f"\x1b[J{self._line(moment, self._console.width - 1)}\r")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()

    def _line(self, now: float, width: int) -> str:
        """The line for a terminal that is so wide: what is being done, and how far the whole is."""
        text = printable(self._text)
        left = self._left(now)
        if left is not None:
            figures = f"{self._percent:3} %  {_clock(left)} left"
        elif self._done:
            figures = f"{self._percent:3} %"
        else:
            figures = _clock(now - self._since)
        room = width - len(figures) - 2
        bar = min(_BAR, room - 2 - min(len(text), 40)) if self._total and self._done else 0
        if bar < 8:
            return f"{shortened(text, room):<{max(room, 0)}}  {figures}"[: max(width, 0)]
        full = bar * self._done // self._total
        letters = ("━", " ") if "utf" in (self._console.encoding or "").lower() else ("#", ".")
        drawn = letters[0] * full + letters[1] * (bar - full)
        return f"{shortened(text, room - bar - 2):<{room - bar - 2}}  {drawn}  {figures}"[: max(width, 0)]


def _clock(seconds: float) -> str:
    """0:07, 12:30, 3:05:00."""
    whole = int(seconds)
    hours = f"{whole // 3600}:{whole // 60 % 60:02}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02}"


def _name_of(kernel: str) -> str:
    """What a kind of kernels is about: a type, a method, adapters."""
    word, _, rest = kernel.partition(" ")
    named = {"survey": "the survey", "signal": "rounding noise", "adapt": "adapters"}
    return named.get(word) or (rest.upper() if word == "merge" and len(rest) < 5 else rest.split()[0])
