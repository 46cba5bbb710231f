"""llama.cpp in a process of its own: what it refuses with an assertion ends that process, not the tests.

`LlamaWorker().ask(path)` gives what llama.cpp says of a file, and its logits for some tokens.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Answer:
    """words: why a file was refused, or why nothing was computed; "" when all went well.

    logits: float32 [tokens, vocabulary], None when nothing was computed.
    """

    loads: bool
    words: str
    logits: np.ndarray | None


class LlamaWorker:
    """The process, started when it is first asked and again after it ended. Use it as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> LlamaWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def ask(self, path: Path, tokens: list[int] | None = None) -> Answer:
        """Load a model; with tokens, compute their logits as well."""
        if self._process is None or self._process.poll() is not None:
            environment = os.environ | {"GGML_NO_BACKTRACE": "1", "PYTHONPATH": str(ROOT)}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.llama_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=ROOT,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        out = Path(self._folder.name) / "logits.npy"
        out.unlink(missing_ok=True)
        asked = {"path": str(path.resolve()), "tokens": tokens, "out": str(out)}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        loads = False
        while line := self._process.stdout.readline():
            found = json.loads(line)
            loads = loads or found["loads"]
            if found["done"]:
                return Answer(loads, found["words"], np.load(out) if out.exists() else None)
        words = self._process.stderr.read()[-300:]
        self._process = None
        return Answer(loads, words or "llama.cpp ended", None)


def main() -> None:
    """Answer questions of standard input, a line each."""
    from ggufmerge.errors import GgufmergeError
    from ggufmerge.evaluation.llama import LlamaModel

    for line in sys.stdin:
        asked = json.loads(line)
        loads, words = False, ""
        try:
            with LlamaModel(asked["path"], context=64, threads=1) as model:
                loads = True
                print(json.dumps({"loads": True, "words": "", "done": False}), flush=True)
                if asked["tokens"]:
                    np.save(asked["out"], model.logits(asked["tokens"]))
        except GgufmergeError as error:
            words = str(error)
        print(json.dumps({"loads": loads, "words": words, "done": True}), flush=True)


if __name__ == "__main__":
    main()
