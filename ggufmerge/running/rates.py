"""How fast this machine does each kind of work, as its own builds have measured it.

A kind is a text such as "read Q4_K" or "write Q8_0"; its rate is seconds of processor time for one unit (a value, a
byte, a tensor), or, for the kinds in `_RATIOS`, another number that builds find out. A build gathers what it took with
a `Meter`, and the command line keeps the rates in the user's cache folder, in one file for each machine. What was
never measured here has a first guess, and whoever uses the rate can tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import platformdirs

from ggufmerge.errors import OutputError
from ggufmerge.files.atomic import write_file

FORMAT = 1
_NEWEST = 0.5  # weight of the newest build among all
_ENOUGH = 1 << 13  # values or bytes; the time of fewer is that of Python, which each task takes ("task")
_LONG_ENOUGH = 0.002  # seconds; less says little of a rate that is known
_SURE = 0.1  # seconds of work that say all they can
_ONCE = ("start", "finish", "load", "compile", "memory", "stretch", "reads")  # what a build does once, however long
_MAX_FILE = 1 << 20  # bytes

# Millions of values a second: first guesses, as `docs/performance.md` has them, with memory in between.
_WRITES = {
    "F32": 2000, "F16": 1500, "BF16": 1500, "Q4_0": 800, "Q4_1": 800, "Q5_0": 800, "Q5_1": 800, "Q8_0": 1000,
    "Q2_K": 150, "Q3_K": 150, "Q4_K": 120, "Q5_K": 150, "Q6_K": 200, "IQ4_NL": 100, "IQ4_XS": 100, "TQ1_0": 1000,
    "TQ2_0": 1000, "MXFP4": 500, "NVFP4": 300, "IQ3_XXS": 12, "IQ3_S": 18, "IQ2_S": 25, "IQ2_XXS": 20, "IQ2_XS": 15,
    "IQ1_S": 40, "IQ1_M": 40,
}  # fmt: skip
_WEIGHTED = {"Q4_0": 200, "Q4_1": 100, "Q5_0": 200, "Q5_1": 100, "Q2_K": 90, "Q4_K": 100, "Q5_K": 100}
_FIRST_GUESSES = {
    "read": 1e-9,
    "adapt": 3e-10,  # for each value and rank
    "merge": 2e-9,  # for each value of each input
    "pass": 3e-9,
    "put": 0.5e-9,
    "copy": 0.7e-9,
    "digest": 0.8e-9,
    "survey": 0.01,  # for each tensor
    "task": 0.0008,  # for each chunk, whatever it is
    "load": 0.03,  # kernels of one kind, from the cache
    "compile": 3.0,  # kernels of one kind
    "sync": 1e-9,
    "finish": 0.3,  # what is made beside the file
    "start": 0.8,  # until the work begins
}
_COUNTS = ("tasks", "waited")  # what builds count for other kinds
_ALIKE = ("copy", "survey", "load", "compile")  # words whose kinds take about the same time
_RATIOS = {"reads": 1.0, "stretch": 1.1, "memory": 190e6, "compiling": 90e6}
_READS = {"linear": 1.0, "slerp": 2.0, "ties": 2.0, "model_stock": 2.0, "karcher": 4.0}  # how often values are read


@dataclass
class Measured:
    """What a kind of work took: units of work, and seconds (or the number that stands for them)."""

    units: float = 0.0
    amount: float = 0.0

    def add(self, units: float, amount: float) -> None:
        self.units += units
        self.amount += amount


@dataclass
class Rates:
    """Rates by kind, those that were measured. Plain data; `load` and `save` keep it in the user's cache."""

    known: dict[str, float] = field(default_factory=dict)

    def of(self, kind: str) -> float:
        """Of one unit of this kind: measured here, or what a kind like it took, or a first guess."""
        if kind in self.known:
            return self.known[kind]
        word, plain = kind.partition(" ")[0], _plain(kind)
        if plain in self.known:
            return self.known[plain] + first_guess(kind) - first_guess(plain)
        alike = [rate for other, rate in self.known.items() if other.startswith(f"{word} ")] if word in _ALIKE else []
        return sum(alike) / len(alike) if alike else first_guess(kind)

    def is_measured(self, kind: str) -> bool:
        """Whether builds here have measured this kind, or the same without what is small beside it."""
        return kind in self.known or _plain(kind) in self.known

    def learn(self, measured: Mapping[str, Measured]) -> None:
        """Take in what a build has measured; the newest counts half, less if it did little of a kind."""
        for kind, found in measured.items():
            if (
                kind in _COUNTS
                or not found.units > 0
                or not math.isfinite(rate := found.amount / found.units)
                or rate < 0
            ):
                continue
            old = self.known.get(kind)
            if old is None:
                self.known[kind] = rate
            elif found.amount >= _LONG_ENOUGH or kind.startswith(_ONCE):
                weight = _NEWEST if kind.startswith(_ONCE) else _NEWEST * min(1.0, found.amount / _SURE)
                self.known[kind] = old + weight * (rate - old)

    @classmethod
    def load(cls, path: Path | None = None) -> Rates:
        """Those in the user's cache; none when there is no file, or no readable one."""
        try:
            path = path or rates_path()
            if path.stat().st_size > _MAX_FILE:
                return cls()
            data = json.loads(path.read_bytes())
            if data["format"] != FORMAT:
                return cls()
            rates = {str(kind): float(rate) for kind, rate in data["rates"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()
        return cls({kind: rate for kind, rate in rates.items() if math.isfinite(rate) and rate >= 0})

    def save(self, path: Path | None = None) -> None:
        """Write them whole or not at all; nothing happens when the cache cannot be written."""
        with contextlib.suppress(OSError, OutputError):
            path = path or rates_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, (json.dumps({"format": FORMAT, "rates": self.known}, indent=1) + "\n").encode())


def cache_folder() -> Path:
    """Where the program keeps what it learns of this machine; GGUFMERGE_CACHE names another folder."""
    chosen = os.environ.get("GGUFMERGE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("ggufmerge", appauthor=False))


def rates_path() -> Path:
    """The file of this machine's rates; homes may be shared by several machines."""
    machine = f"{platform.node()}/{platform.machine()}/{os.cpu_count()}"
    return cache_folder() / f"rates-{hashlib.sha256(machine.encode('utf-8', 'replace')).hexdigest()[:12]}.json"


def first_guess(kind: str) -> float:
    """The rate of a kind that was never measured, from its first word and what follows."""
    word, _, rest = kind.partition(" ")
    if word == "write":
        name, _, how = rest.partition(" ")
        speed = _WRITES.get(name, 300)
        if "weighted" in how:
            speed = _WEIGHTED.get(name, speed)
        added = {"by chance": 3e-9, "measured": 2e-9, "calibrated": 60e-9}
        return 1e-6 / speed + sum(seconds for word, seconds in added.items() if word in how)
    if word == "reads":
        return _READS.get(rest, _RATIOS["reads"])
    return _RATIOS.get(word, _FIRST_GUESSES.get(word, 0.0))


def _plain(kind: str) -> str:
    """A kind of writing without the steps that are added to it."""
    return kind.replace(" by chance", "").replace(" measured", "")


class Meter:
    """What a run's work took, by kind, gathered by all of its threads."""

    def __init__(self) -> None:
        self.sums: dict[str, Measured] = {}
        self._waits: dict[int, float] = {}  # seconds that each thread has waited for a processor so far
        self._lock = threading.Lock()
        self._local = threading.local()

    def measure(self, kind: str, units: float) -> _Clock:
        """A context whose processor time counts as so many units of a kind; what is measured within it does not."""
        return _Clock(self, kind, units)

    def note(self, kind: str, units: float, amount: float) -> None:
        """Add to a kind what is known otherwise."""
        if not self.is_muted:
            with self._lock:
                self.sums.setdefault(kind, Measured()).add(units, amount)

    @property
    def is_muted(self) -> bool:
        """Whether this thread is within something that is measured as a whole."""
        return getattr(self._local, "depth", 0) > 0

    def mute(self, change: int) -> None:
        """Begin (1) or end (-1) something within which this thread notes nothing."""
        self._local.depth = getattr(self._local, "depth", 0) + change

    def look_at_waiting(self) -> None:
        """Note how long this thread has been ready and another program had the processor, where the system tells."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            self._waits[threading.get_ident()] = 1e-9 * int(_WAITING.read_bytes().split()[1])

    @property
    def waited(self) -> float:
        """Seconds that all threads which looked at it have waited together."""
        return sum(self._waits.values())

    def seconds(self, words: Iterable[str]) -> float:
        """What was measured of the kinds that begin with one of these words."""
        wanted = set(words)
        return sum(found.amount for kind, found in self.sums.items() if kind.partition(" ")[0] in wanted)


_WAITING = Path("/proc/thread-self/schedstat")  # nanoseconds on a processor, and ready for one (Linux)


class _Clock:
    """See `Meter.measure`. A class and no generator: it is entered for each chunk."""

    __slots__ = ("_kind", "_meter", "_started", "_units")

    def __init__(self, meter: Meter, kind: str, units: float) -> None:
        self._meter, self._kind, self._units = meter, kind, units

    def __enter__(self) -> None:
        self._meter.mute(1)
        self._started = _now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken = _now() - self._started
        self._meter.mute(-1)
        if error is None and not 1 < self._units < _ENOUGH:
            self._meter.note(self._kind, self._units, taken)


# processor time of the thread, which other programs hardly change; Windows counts it in steps of 16 ms
_now = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-4 else time.perf_counter
