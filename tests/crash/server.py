"""A process that has everything imported and compiled, and forks one child for each run of the command line.

    python -m tests.crash.server

It reads a JSON object a line and answers with one a line; `client.py` has the other end. A run takes as long as its
work, not the second that Python and numba need to start. The process has a single thread whenever it forks.
"""

from __future__ import annotations

import atexit
import functools
import gc
import http.client
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash import shim

shim.install()

import typer.main  # noqa: E402

import ggufmerge.cli  # noqa: E402
from ggufmerge.errors import GgufmergeError  # noqa: E402
from tests.no_ollama import refusing  # noqa: E402

Answer = dict[str, Any]
_raised: list[str] = []


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    _prepare()
    runs = Runs()
    commands: dict[str, Callable[..., Answer]] = {
        "warm": _warm,
        "run": runs.run,
        "resume": runs.resume,
        "kill": runs.kill,
    }
    for line in sys.stdin:
        request = json.loads(line)
        answer = commands[request.pop("do")](**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _prepare() -> None:
    """Make calls of the command line cheap, and remember what came out of its code."""
    http.client.HTTPConnection.connect = refusing  # type: ignore[method-assign]
    typer.main.get_command = functools.cache(typer.main.get_command)  # half of the time of a small build
    call = typer.Typer.__call__

    def recording(self: typer.Typer, *arguments: Any, **named: Any) -> Any:
        try:
            return call(self, *arguments, **named)
        except BaseException as error:
            known = (GgufmergeError, KeyboardInterrupt, SystemExit)
            name = next((kind.__name__ for kind in known if isinstance(error, kind)), repr(error))
            _raised.append(name)
            raise

    typer.Typer.__call__ = recording  # type: ignore[method-assign]


def _warm(arguments: list[str], folder: str) -> Answer:
    """Run a command here, so that its kernels and modules are in every child."""
    os.chdir(folder)
    code = _command(arguments)
    gc.collect()
    gc.freeze()  # the children's collector shall not touch, and so copy, this memory
    return {"code": code}


def _command(arguments: list[str]) -> int:
    sys.argv = ["ggufmerge", *arguments]
    try:
        ggufmerge.cli.main()
    except SystemExit as end:
        if end.code is None:
            return 0
        if isinstance(end.code, int):
            return end.code
        print(end.code, file=sys.stderr)
        return 1
    return 0


class Runs:
    """The runs that have not ended, by their process."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[tuple[int, ...], float]] = {}

    def run(self, arguments: list[str], folder: str, root: str, way: str, at: int, patience: float) -> Answer:
        """Fork a child that runs a command under the shim; what came of it, or that it stopped or is not over yet."""
        assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose the other threads"  # noqa: PTH208
        files = told, out, err = tuple(map(os.memfd_create, ("told", "out", "err")))
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            _child(arguments, folder, shim.Watch(root, way, at, lambda o: _tell(told, acted=str(o))), told, out, err)
        self._open[process] = files, started
        return self._wait(process, patience)

    def resume(self, process: int, patience: float) -> Answer:
        """Let a stopped run go on, or wait longer for one that is not over."""
        os.kill(process, signal.SIGCONT)
        return self._wait(process, patience)

    def kill(self, process: int, patience: float) -> Answer:
        """End a run that stopped."""
        os.kill(process, signal.SIGKILL)
        return self._wait(process, patience)

    def _wait(self, process: int, patience: float) -> Answer:
        """Look at the process until it ends or stops; after `patience` seconds it is left running."""
        descriptor = os.pidfd_open(process)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + patience
        wait = 1
        try:
            while True:
                found, status = os.waitpid(process, os.WNOHANG | os.WUNTRACED)
                if found and os.WIFSTOPPED(status):
                    return {"state": "stopped", "process": process}
                if found:
                    return self._result(process, os.waitstatus_to_exitcode(status))
                if time.monotonic() > end:
                    return {"state": "running", "process": process}
                poll.poll(wait)  # tells of an end at once, but not of a stop
                wait = min(2 * wait, 4)
        finally:
            os.close(descriptor)

    def _result(self, process: int, code: int) -> Answer:
        files, started = self._open.pop(process)
        texts = []
        for descriptor in files:
            os.lseek(descriptor, 0, os.SEEK_SET)
            with os.fdopen(descriptor, errors="replace") as file:
                texts.append(file.read())
        told, out, err = texts
        facts: Answer = {"out": out, "err": err, "seconds": time.monotonic() - started}
        for line in told.splitlines():
            facts |= json.loads(line)
        return {"state": "ended", "code": code, **facts}


def _tell(told: int, **facts: Any) -> None:
    os.write(told, json.dumps(facts).encode() + b"\n")


def _child(arguments: list[str], folder: str, watch: shim.Watch, told: int, out: int, err: int) -> None:
    """Run the command and leave; never returns."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.disable()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(folder)
        tempfile.tempdir = None
        _raised.clear()
        written = _written()
        events = _Events(watch) if watch.way == "audit" else None
        shim.arm(watch)
        try:
            code = _command(arguments)
            gc.collect()
        except BaseException:
            traceback.print_exc()
            code = 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        atexit._run_exitfuncs()
        shim.arm(None)
        sys.stdout.flush()
        sys.stderr.flush()
        written = _written() - written
        _tell(told, raised=_raised)
        if watch.way in ("count", "audit"):
            _tell(told, written=written, operations=[(o.name, o.path, o.nbytes) for o in watch.operations])
        if events is not None:
            _tell(told, events=events.seen)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _written() -> int:
    """Bytes that this process has handed to the system with calls that write."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


class _Events:
    """What Python itself reports of changes below the watched folder: (event, path)."""

    def __init__(self, watch: shim.Watch) -> None:
        self.seen: list[tuple[str, str]] = []
        self._watch = watch
        self._busy = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or shim.watching() is None:
            return
        if not (event == "open" or event == "mmap.__new__" or event.startswith(("os.", "fcntl."))):
            return
        self._busy = True
        try:
            self._note(event, arguments)
        finally:
            self._busy = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            named = isinstance(path, str | bytes | os.PathLike) and flags & shim.CREATES
            place = shim.absolute(path) if named else None
        elif event == "mmap.__new__":
            place = shim.of_descriptor(arguments[0]) if arguments[0] >= 0 and arguments[2] in (0, 2) else None
        elif event in ("os.rename", "os.link", "os.symlink"):
            place = shim.absolute(arguments[1], arguments[-1] if arguments[-1] != -1 else None)
        elif event in ("os.remove", "os.rmdir"):
            place = shim.absolute(arguments[0], arguments[1] if arguments[1] != -1 else None)
        elif event == "os.mkdir":
            place = shim.absolute(arguments[0], arguments[2] if arguments[2] != -1 else None)
        elif event in ("os.truncate", "os.chmod", "os.utime"):
            place = shim.absolute(arguments[0])
        elif event in ("fcntl.flock", "fcntl.lockf"):
            place = shim.of_descriptor(arguments[0])
        else:
            return
        if place is not None and self._watch.covers(place):
            self.seen.append((event, os.path.relpath(place, self._watch.root)))


if __name__ == "__main__":
    main()
