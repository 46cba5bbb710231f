"""The part of scripts/demo that talks to Ollama: is it running, is a name free, and what does a model answer.

python scripts/demo_ollama.py state NAME STAMP
    prints `none` (no Ollama to talk to), `free`, `ours` (an earlier demo has made the model) or `taken`
python scripts/demo_ollama.py remember NAME STAMP
    notes in the file STAMP that the model which has the name now is the demo's
python scripts/demo_ollama.py ask NAME QUESTION
    shows what `ollama run` answers, and ends it after two minutes or 1200 characters
"""

from __future__ import annotations

import codecs
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.places.ollama.names import OllamaName
from ggufmerge.places.ollama.server import Server

SECONDS, CHARACTERS = 120, 1200  # some 300 tokens


def main(command: str, name: str, argument: str) -> int | str:
    try:
        if command == "ask":
            return ask(name, argument)
        if command == "remember":
            Path(argument).write_text(digest(name), encoding="utf-8")
        else:
            print(state(name, Path(argument)))
    except GgufmergeError as error:
        return f"error: {error}"
    return 0


def state(name: str, stamp: Path) -> str:
    if shutil.which("ollama") is None:
        return "none"
    try:
        found = digest(name)
    except PlanError:
        return "none"
    if not found:
        return "free"
    return "ours" if stamp.exists() and stamp.read_text(encoding="utf-8") == found else "taken"


def digest(name: str) -> str:
    """Of the manifest that the server has under the name; empty when it has none. PlanError when no server answers."""
    wanted = OllamaName.parse(name)
    models = Server.from_environment(wanted).models()
    return next((found for other, found in models.items() if other.folded == wanted.folded), "")


def ask(name: str, question: str) -> int | str:
    # ollama draws its progress on standard error even where that is no terminal, and waits for the end of its input
    with tempfile.TemporaryFile() as errors:
        command = ["ollama", "run", name, question]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        late = threading.Event()
        watch = threading.Timer(SECONDS, lambda: (late.set(), process.kill()))
        watch.start()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        shown = 0
        try:
            while shown < CHARACTERS and (some := process.stdout.read1(4096)):
                text = decoder.decode(some)
                shown += len(text)
                print("".join(c for c in text if c.isprintable() or c == "\n"), end="", flush=True)
        finally:
            watch.cancel()
            if shown >= CHARACTERS:
                process.kill()  # the server stops, too, when nobody listens
            process.stdout.close()
            code = process.wait()
        if late.is_set():
            print(f" ... (ended after {SECONDS} seconds)")
        elif shown >= CHARACTERS:
            print(f" ... (ended after {CHARACTERS} characters)")
        elif code:
            errors.seek(0)
            said = "".join(c for c in errors.read().decode("utf-8", "replace") if c.isprintable() or c == "\n")
            return f"error: ollama run {name}: {(said.strip().splitlines() or ['it failed'])[-1]}"
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
