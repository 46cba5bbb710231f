"""llama.cpp's opinion of files. It may abort on a strange one, so it is asked for in a process of its own.

As a program it reads lines of JSON, {"what": "header" or "model", "path": ...}, and answers yes or no to each.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

Verdict = Literal["yes", "no", "died"]


class Judge:
    """Asks a process that is started when needed, and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def accepts(self, path: Path) -> Verdict:
        """Whether `gguf_init_from_file` reads the header."""
        return self._ask("header", path)

    def loads(self, path: Path) -> Verdict:
        """Whether llama.cpp loads the model, all its weights checked."""
        return self._ask("model", path)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _ask(self, what: str, path: Path) -> Verdict:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.attacks.judge"],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"what": what, "path": str(path)}) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer == "yes":
            return "yes"
        if answer == "no":
            return "no"
        self.close()
        return "died"


def _serve() -> None:
    from tests.files import oracle

    # what llama.cpp prints is no answer
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        path = Path(question["path"])
        good = oracle.accepts(path) if question["what"] == "header" else _loads(path)
        answers.write("yes\n" if good else "no\n")


def _loads(path: Path) -> bool:
    from ggufmerge.evaluation.libllama import library

    lib = library()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.check_tensors = 0, True
    loaded = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not loaded:
        return False
    lib.llama_model_free(loaded)
    return True


if __name__ == "__main__":
    _serve()
