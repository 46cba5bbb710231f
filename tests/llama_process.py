"""A program of the tests in a process of its own: what llama.cpp refuses with an assertion ends that, not the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent


class LlamaProcess:
    """Runs `program`, a module of the tests that answers each line of JSON with lines of JSON. It is started when it is
    first asked, and again after it ended. Use it as a context manager.
    """

    program: str

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def send(self, question: Any) -> None:
        """Ask something."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
            )
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)

    def line(self) -> str:
        """The next line of the answer; "" when the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def last_words(self) -> str:
        """What a process said that has ended; the next question starts another."""
        assert self._process is not None
        _, words = self._process.communicate()
        self._process = None
        return words
