"""Ctrl-C and SIGTERM: an exception, wherever the program is, that nothing swallows.

Python raises it in the function that happens to run. Where C code has called that function (a callback of LLVM's while
kernels are compiled, a destructor), the exception cannot go further: Python prints it and goes on as if nothing had
been. So there it is put off, and what was swallowed anyway is raised again a moment later.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_MOMENT = 0.02  # seconds; a callback takes less
_CALLBACKS = ("_raw_object_cache_notify", "_raw_object_cache_getbuffer")  # of llvmlite.binding.executionengine


class Interruptible:
    """While this context is open, SIGINT (unless the program was started to ignore it, as background jobs are) and
    SIGTERM (a shutdown) raise KeyboardInterrupt in the main thread.
    """

    def __enter__(self) -> Interruptible:
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        signal.signal(signal.SIGTERM, _interrupt)
        if self._handlers[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def _unraisable(self, what: Any) -> None:
        if what.exc_type is not None and issubclass(what.exc_type, KeyboardInterrupt):
            _put_off(signal.SIGTERM)  # which is never ignored
        else:
            self._hook(what)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name in _CALLBACKS:
            _put_off(number)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _put_off(number: int) -> None:
    """Let the signal come again in a moment."""
    timer = threading.Timer(_MOMENT, _thread.interrupt_main, (number,))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # the program is at its end
        timer.start()
