"""Runs commands one after another in a working folder of tiny models: what `test_screens.py` starts as a process.

    python screen_runs.py FOLDER COMMANDS STDIN

Between two commands it writes `MARK` with the number of the one that ended and its exit code, to both streams.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import sys
from pathlib import Path

MARK = "\x1b]screen;%d;%d\x07"
RECIPE = """\
merge_method: task_arithmetic
base_model: base.gguf
models:
  - model: writer.gguf
    parameters: {weight: 0.6}
  - model: coder.gguf
    parameters: {weight: [0.2, 0.4]}
"""


class Typed(io.StringIO):
    """Answers from a keyboard: each is seen on the terminal when it is read."""

    def readline(self, *size: int) -> str:  # type: ignore[override]
        line = super().readline(*size)
        sys.stdout.write(line)
        return line


def prepare(folder: Path) -> None:
    """A base, two tunes of it, an adapter, a model in shards, a recipe and a text, in `folder`/models."""
    from ggufmerge.cli import main
    from tests.tiny import write_tiny_llama, write_tiny_lora

    models = folder / "models"
    models.mkdir()
    os.chdir(models)
    size = {"layers": 2, "embed": 256, "ff": 256, "type": "Q8_0"}
    weights = write_tiny_llama("base.gguf", **size)
    write_tiny_llama("writer.gguf", tune=(1, 0.05), **size)
    write_tiny_llama("coder.gguf", tune=(2, 0.05), **size)
    write_tiny_lora("style-lora.gguf", weights)
    (models / "recipe.yaml").write_text(RECIPE)
    (models / "wrong.yaml").write_text(RECIPE.replace("task_arithmetic", "task_arithmetics"))
    (models / "text.txt").write_text("the cat was in the house and it is not on his side of that\n" * 20)
    run(main, ["split", "base.gguf", "shards", "--split-max-tensors", "8"])


def run(main: object, arguments: list[str]) -> int:
    sys.argv = ["ggufmerge", *arguments]
    try:
        main()  # type: ignore[operator]
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def runs(folder: Path, commands: list[list[str]], stdin: str) -> None:
    """Carry out the commands, each in a fresh copy of the models. stdin: typed, piped, or closed."""
    from ggufmerge.cli import main
    from tests.no_ollama import refusing

    http.client.HTTPConnection.connect = refusing  # type: ignore[method-assign]
    for number, command in enumerate(commands):
        work = folder / stdin / str(number) / "work"
        shutil.copytree(folder / "models", work)
        os.chdir(work)
        answers = "1 2\n\n\n\n\n" if command[0:1] == ["new"] else ""
        sys.stdin = None if stdin == "closed" else Typed(answers) if stdin == "typed" else io.StringIO(answers)
        code = run(main, command)
        for stream in (sys.stdout, sys.stderr):
            stream.write(MARK % (number, code))
            stream.flush()
        os.chdir(folder)
        shutil.rmtree(work)


if __name__ == "__main__":
    runs(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
