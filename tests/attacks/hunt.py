"""Runs many cases in processes that are watched, counts, and keeps those that broke the law."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import json
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.attacks import kinds
from tests.attacks.case import OPEN, Case, differences
from tests.attacks.law import SECONDS, Fault
from tests.attacks.seeds import seed

_COMPILING = 240.0  # seconds; the first use of a kernel compiles it
_KEPT = 5  # cases that are saved of one sort of fault


@dataclasses.dataclass
class Tally:
    cases: int = 0
    built: int = 0
    refused: int = 0
    compared: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Summary:
    """by_kind: counts.  failures: signature -> names of the cases, or the files where they were saved."""

    by_kind: dict[str, Tally] = dataclasses.field(default_factory=lambda: collections.defaultdict(Tally))
    failures: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    details: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> Tally:
        columns = zip(*(dataclasses.astuple(t) for t in self.by_kind.values()), strict=True)
        return Tally(*(sum(column) for column in columns)) if self.by_kind else Tally()

    def lines(self) -> Iterator[str]:
        yield f"{'kind':<12}{'cases':>9}{'built':>9}{'refused':>9}{'compared':>10}{'failed':>8}{'seconds':>9}"
        for kind, t in [*sorted(self.by_kind.items()), ("together", self.total)]:
            yield f"{kind:<12}{t.cases:>9,}{t.built:>9,}{t.refused:>9,}{t.compared:>10,}{t.failed:>8,}{t.seconds:>9.0f}"
        for signature, cases in sorted(self.failures.items(), key=lambda item: -len(item[1])):
            yield ""
            yield f"{len(cases)} x {signature}: {' '.join(cases[:3])}"
            yield "    " + self.details[signature].strip().replace("\n", "\n    ")


Task = dict[str, Any]


def hunt(
    tasks: Iterator[Task],
    *,
    workers: int = 1,
    save: Path | None = None,
    status: Callable[[Summary], None] | None = None,
    environment: dict[str, str] | None = None,
) -> Summary:
    """Run cases until there are no more; a case that breaks the law is made smaller and saved.

    environment: further variables of the processes that run the cases.
    """
    summary, lock, started = Summary(), threading.Lock(), time.monotonic()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with Worker(environment) as worker:
                while True:
                    with lock:
                        task = next(tasks, None)
                    if task is None or errors:
                        return
                    result = worker.run(task)
                    saved = _keep(worker, task, result, save, summary) if result.faults else ""
                    with lock:
                        _count(summary, task, result, saved)
                        summary.seconds = time.monotonic() - started
                        if status is not None:
                            status(summary)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.2)
    except KeyboardInterrupt:
        errors.append(KeyboardInterrupt())
        for thread in threads:
            thread.join(60)
    if errors and not isinstance(errors[0], KeyboardInterrupt):
        raise errors[0]
    return summary


def tasks(
    chosen: Sequence[str], start: int, *, cases: int | None = None, seconds: float | None = None
) -> Iterator[Task]:
    """Cases of these kinds, in their shares: `cases` of them, or for some seconds, or without end."""
    numbers: dict[str, int] = collections.defaultdict(int)
    rng = random.Random(start)
    shares = [kinds.SHARES[kind] for kind in chosen]
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    while (cases is None or done < cases) and (end is None or time.monotonic() < end):
        [kind] = rng.choices(chosen, shares)
        yield {"kind": kind, "seed": start, "number": numbers[kind]}
        numbers[kind] += 1
        done += 1


@dataclasses.dataclass
class Result:
    faults: list[Fault]
    code: int = 0
    built: bool = False
    compared: int = 0
    seconds: float = 0.0
    out: str = ""
    err: str = ""


class Worker:
    """A process that runs cases; started anew when it dies or hangs."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        descriptor, name = tempfile.mkstemp(prefix="ggufmerge-fuzz-")
        os.close(descriptor)
        self._places = Path(name)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._places.unlink(missing_ok=True)

    def run(self, task: Task) -> Result:
        """Run one case; one that takes too long is run again with time to compile kernels, and then once more."""
        result = self._once(task, SECONDS)
        if isinstance(result, Result):
            return result
        if result.what == "hang":
            compiling = "numba/core" in result.detail or "llvmlite" in result.detail
            again = self._once(task, _COMPILING if compiling else 3 * SECONDS)
            if isinstance(again, Result) and again.seconds > SECONDS:
                again = self._once(task, SECONDS)
            if isinstance(again, Result):
                return again
            result = again
        return Result([result], code=-1)

    def _once(self, task: Task, seconds: float) -> Result | Fault:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**task, "seconds": seconds}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._line(seconds + 30)
        if line:
            facts = json.loads(line)
            return Result(**(facts | {"faults": [Fault(**fault) for fault in facts["faults"]]}))
        code = self._stop()
        text = self._places.read_text(errors="replace")
        starts = [text.rfind(mark) for mark in ("Timeout (", "Fatal Python error", "Traceback (most recent")]
        text = text[max(0, *starts) :]
        if "Timeout" in text or code is None:
            return Fault("hang", _place(text), text[:3000])
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Fault(f"crash: {name}", _place(text), text[:3000])

    def _start(self) -> None:
        self._places.write_bytes(b"")
        with self._places.open("ab") as places:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.attacks.worker"],
                cwd=Path(__file__).parents[2],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=places,
            )
        self._buffer = b""
        if self._line(_COMPILING * 2) != b"ready":
            self._stop()
            said = self._places.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the process that runs cases does not start: {said}")

    def _line(self, seconds: float) -> bytes:
        """The next line of the process; empty when it ended, or after some seconds without one."""
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(end - time.monotonic(), 0)):
                    return b""
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    return b""
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _stop(self) -> int | None:
        """The exit code if the process ended by itself."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        code: int | None = None
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        return code


def _place(text: str) -> str:
    """The innermost function of the program in a dump of all threads, of the main thread first."""
    found = re.findall(r'File "[^"]*/ggufmerge/([^"]+)", line \d+ in (\S+)', text)
    return f"{found[0][0]}:{found[0][1]}" if found else "?"


def _count(summary: Summary, task: Task, result: Result, saved: str) -> None:
    tally = summary.by_kind[str(task.get("kind", "file"))]
    tally.cases += 1
    tally.built += result.built
    tally.refused += result.code == 1 and not result.faults
    tally.compared += result.compared
    tally.failed += bool(result.faults)
    tally.seconds += result.seconds
    for fault in result.faults:
        summary.failures[fault.signature].append(saved or _name(task))
        summary.details.setdefault(fault.signature, fault.detail)


def _name(task: Task) -> str:
    return str(task["file"]) if "file" in task else f"{task['kind']}/{task['seed']}/{task['number']}"


def _keep(worker: Worker, task: Task, result: Result, folder: Path | None, summary: Summary) -> str:
    """Save the case that `task` is, made smaller; returns the file's path, or nothing if there are enough such."""
    if folder is None or "file" in task:
        return ""
    signature = result.faults[0].signature
    number = len(summary.failures.get(signature, ()))
    if number >= _KEPT:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^A-Za-z0-9]+", "-", signature).strip("-").lower()[:80]
    path = folder / f"{task['kind']}-{slug}-{task['seed']}-{task['number']}.json"
    case = kinds.make(task["kind"], task["seed"], task["number"])
    case.save(path, signature)
    if not signature.startswith(("hang", "memory")):
        shrink(worker, path, signature)
    return str(path)


def shrink(worker: Worker, path: Path, signature: str) -> None:
    """Leave out of a case file what is not needed to break the law in the same way."""
    case, trial = Case.load(path), path.with_suffix(".trial")
    note = json.loads(path.read_text(encoding="utf-8")).get("note", "")
    for _ in range(2):
        for change in _changes(case):
            smaller = change(copy.deepcopy(case))
            if smaller == case:
                continue
            smaller.save(trial)
            if any(fault.signature == signature for fault in worker.run({"file": str(trial)}).faults):
                case = smaller
    trial.unlink(missing_ok=True)
    case.save(path, note)


def _changes(case: Case) -> list[Callable[[Case], Case]]:
    """What may be left out of a case: files, the damage of files or parts of it, options."""
    found: list[Callable[[Case], Case]] = []
    if case.refuse:
        return found  # without its damage it is no error any more
    for path, data in case.files.items():
        found.append(partial(_without_file, path=path))
        if path in case.origins and isinstance(data, bytes):
            found.append(partial(_with_seed, path=path))
            parts = differences(seed(case.origins[path]), data)
            found += [partial(_without_part, path=path, at=at) for at in range(len(parts)) if len(parts) > 1]
    if OPEN not in case.command:
        for count in (1, 2):
            words = reversed(range(1, len(case.command) - count + 1))
            found += [partial(_without_words, at=at, count=count) for at in words]
    return found


def _without_file(case: Case, path: str) -> Case:
    case.files.pop(path, None)
    return case


def _with_seed(case: Case, path: str) -> Case:
    if path in case.files:
        case.add(path, case.origins[path])
    return case


def _without_part(case: Case, path: str, at: int) -> Case:
    """at: number of the part among the differences that the file had at first; those left out since come last."""
    old, data = seed(case.origins[path]), case.files.get(path)
    if isinstance(data, bytes) and len(data) == len(old):
        parts = differences(old, data)
        if at < len(parts):
            start, removed, _ = parts[at]
            case.files[path] = data[:start] + old[start : start + removed] + data[start + removed :]
    return case


def _without_words(case: Case, at: int, count: int) -> Case:
    if len(case.command) > count:
        del case.command[at : at + count]
    return case
