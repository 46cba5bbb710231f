"""--quiet, --verbose and --log FILE: how much a command says, and where it says it as well.

`voiced` gives a command these options; what prints (`terminal`, `progress`) asks `current`. Errors and warnings are
always shown. A log takes all that is said, with times, also what --quiet keeps from the screen, and is added to.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from ggufmerge.errors import GgufmergeError, OutputError
from ggufmerge.text import printable

_PANEL = "Messages"
_STAMP = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # what each line begins with
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.", rich_help_panel=_PANEL)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a line for each tensor.", rich_help_panel=_PANEL)]
Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="Add all messages to this file, too.", rich_help_panel=_PANEL),
]


class Voice:
    """How much is said. quiet: only warnings and errors.  verbose: also what is done with each tensor.

    file: of the log, opened for text; None without one.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False, file: TextIO | None = None) -> None:
        self.quiet, self.verbose, self._file = quiet, verbose, file

    def log(self, line: str) -> None:
        """Add a line to the log, if there is one."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk: the build is worth more than its log
                self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(line)}\n")
                self._file.flush()


_current = Voice()


def current() -> Voice:
    """Of the command that is running."""
    return _current


def voiced(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with the options --quiet, --verbose and --log behind its own."""
    own = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, default, kind in (("quiet", False, Quiet), ("verbose", False, Verbose), ("log", None, Log))
    ]

    @functools.wraps(command)
    def wrapped(*args: Any, quiet: bool = False, verbose: bool = False, log: Path | None = None, **given: Any) -> None:
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose exclude each other: give one of them", param_hint="--quiet")
        with _speaking(quiet=quiet, verbose=verbose, log=log, printed=bool(given.get("json"))):
            command(*args, **given)

    wrapped.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (*own.parameters.values(), *added)}
    return wrapped


@contextlib.contextmanager
def _speaking(*, quiet: bool, verbose: bool, log: Path | None, printed: bool) -> Iterator[None]:
    """Be quiet, verbose or logged while the block runs. printed: what goes to standard output is wanted in any case."""
    global _current
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(log)) if log is not None else None
        before, _current = _current, Voice(quiet=quiet, verbose=verbose, file=file)
        stack.callback(_restore, before)
        voice = _current
        voice.log("ggufmerge " + " ".join(sys.argv[1:]))
        if (quiet and not printed) or file is not None:
            out = _Heard(sys.stdout if printed or not quiet else None, voice)
            stack.enter_context(contextlib.redirect_stdout(out))
        began = time.monotonic()
        try:
            yield
        except GgufmergeError as error:
            for line in error.lines:
                voice.log(f"error: {line}")
            raise
        except BaseException as error:
            code = getattr(error, "exit_code", None)
            if code != 0:
                voice.log(f"ended after {time.monotonic() - began:.1f} s: {error or type(error).__name__}")
            raise
        voice.log(f"done in {time.monotonic() - began:.1f} s")


def _restore(voice: Voice) -> None:
    global _current
    _current = voice


def _opened(path: Path) -> TextIO:
    """The log, to be added to. OutputError for what is no log: a model or recipe is never written into."""
    try:
        if path.exists() and not _is_log(path):
            raise OutputError(f"{path}: exists and is not a log of this program: give another --log, or remove it")
        return path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{path}: the log cannot be written ({error.strerror}): give another --log") from None


def _is_log(path: Path) -> bool:
    """Whether lines may be added to a file: it has such lines, or none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begins = file.read(20)
    return not begins or _STAMP.match(begins) is not None


class _Heard(io.TextIOBase):
    """Standard output whose lines go to the log, too. out: where it was; None to keep it to the log."""

    def __init__(self, out: TextIO | None, voice: Voice) -> None:
        self._out, self._voice, self._line = out, voice, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._out, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._out is not None:
            self._out.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.strip():
                self._voice.log(line.rstrip())
        return len(text)

    def flush(self) -> None:
        if self._out is not None:
            self._out.flush()

    def isatty(self) -> bool:
        return self._out is not None and self._out.isatty()

    def fileno(self) -> int:
        if self._out is None:
            raise io.UnsupportedOperation("there is no file")
        return self._out.fileno()

    def writable(self) -> bool:
        return True
