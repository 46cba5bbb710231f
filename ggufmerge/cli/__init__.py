"""The command line: one module per command, each a thin layer over the library.

A command's module imports heavy rooms (engine, quants, numba) inside its function, so `--help` stays fast.
"""

from __future__ import annotations

import io
import sys

from ggufmerge.cli.app import app


def main() -> None:
    """Entry point of the console script: errors meant for the user become one line on stderr and exit code 1."""
    import signal

    from ggufmerge.errors import GgufmergeError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a letter that the terminal lacks is no reason to stop
    # a shutdown is an interruption: the work done so far is kept
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except GgufmergeError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted"))
    except OSError as error:
        where = f" {error.filename!r}" if error.filename else ""
        sys.exit(_fail(f"{error.strerror or error}{where}"))


def _fail(message: str) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 1
