"""What sinks say while they work, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ggufmerge.cli.terminal import complain, show_warnings
from ggufmerge.files.digest import Advance
from ggufmerge.sinks import Telling


class OnTerminal(Telling):
    """Shows all of it."""

    def warn(self, warnings: Iterable[str]) -> None:
        show_warnings(warnings)

    def complain(self, line: str) -> None:
        complain(line)

    @contextmanager
    def advancing(self, text: str, nbytes: int) -> Iterator[Advance]:
        """A bar while something slow goes on; nothing where nobody watches."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True, highlight=False)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(text, total=nbytes)
            shown = time.monotonic()
            waiting = 0

            def advance(done: int) -> None:
                nonlocal shown, waiting
                waiting += done
                if time.monotonic() - shown > 0.1:
                    bar.advance(task, waiting)
                    shown, waiting = time.monotonic(), 0

            yield advance
