"""The command line: one module per command, each a thin layer over the library.

A command's module imports heavy rooms (engine, quants, numba) inside its function, so `--help` stays fast. This module
imports next to nothing: an interruption while the rest is imported, which takes half a second, is one as any other.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings


def main() -> None:
    """Entry point of the console script: errors meant for the user become lines on stderr and exit code 1."""
    from ggufmerge.cli.interruption import Interruptible

    with Interruptible():
        try:
            code = _run()
        except KeyboardInterrupt:
            code = _fail("interrupted")
    sys.exit(code)


def _run() -> int:
    """Carry out the command; gives the exit code."""
    from ggufmerge.cli.facts import begin
    from ggufmerge.errors import GgufmergeError

    begin()
    # numbers are looked at by the program itself; numpy's warnings are lines of source to a user
    warnings.simplefilter("ignore", RuntimeWarning)
    output = _Output.in_place_of_stdout()
    try:
        from ggufmerge.cli.app import app

        app()
    except SystemExit as end:
        if end.code == 130:  # of an interruption typer says nothing
            return _fail("interrupted")
        if end.code:
            _tell("interrupted: give the same command again to go on")  # all else was told where it was found
        code = _code(end.code)
        return output.closed_with(code) if output else code
    except GgufmergeError as error:
        notes = getattr(error, "__notes__", [])  # what is left of the work
        *before, last = error.lines or ("it did not say what was wrong",)
        return _fail(*before, "; ".join([last, *notes]))
    except MemoryError:
        return _fail("there is too little memory: close other programs, or use fewer --threads")
    except OSError as error:
        if output and output.failure:
            return output.closed_with(1)
        where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
        return _fail(f"{error.strerror or error}{where}")
    finally:
        if output:
            output.put_back()
    return 0


class _Output(io.TextIOWrapper):
    """Standard output that knows whether it was written. A letter that the terminal lacks is shown as its code."""

    failure: OSError | None = None
    _original: io.TextIOWrapper

    @classmethod
    def in_place_of_stdout(cls) -> _Output | None:
        """None when standard output is closed, or no file of the system's (in tests)."""
        original = sys.stdout
        if not isinstance(original, io.TextIOWrapper) or original is not sys.__stdout__:
            return None
        original.flush()
        output = cls(original.buffer, original.encoding, "backslashreplace", line_buffering=original.line_buffering)
        output._original, sys.stdout = original, output
        return output

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise

    def closed_with(self, code: int) -> int:
        """The exit code of a command that ended with `code`: 1, after a line that says so, when its report is lost.

        Commands print when their work is done, so that is all that is lost. `| head` has closed it for a reason.
        """
        try:
            self.flush()
        except OSError:
            code = code or 1
        if self.failure is None or isinstance(self.failure, BrokenPipeError):
            return code
        reason = self.failure.strerror
        return _fail(f"standard output cannot be written ({reason}): the report is lost, what was made is complete")

    def put_back(self) -> None:
        sys.stdout = self._original
        if self.failure is not None:
            # what is left in the buffer goes nowhere; Python would try to write it again at the end, and complain
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - pathlib takes time to import
                os.dup2(nowhere.fileno(), self.fileno())
        with contextlib.suppress(OSError):
            self.detach()


def _code(code: object) -> int:
    return code if isinstance(code, int) else int(code is not None)


def _fail(*lines: str) -> int:
    from ggufmerge.cli.complaints import show

    for line in lines:
        show(f"error: {line}")
    _tell(*lines)
    return 1


def _tell(*lines: str) -> None:
    """The same as JSON on standard output, if that is asked for."""
    from ggufmerge.cli.facts import error

    told = error(lines)
    if told is not None and sys.stdout is not None:
        with contextlib.suppress(OSError):
            print(told)
