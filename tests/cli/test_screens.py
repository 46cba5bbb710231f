"""The screen of every command, as its user sees it: golden texts in screens/, a file for each command.

`REWRITE_SCREENS=1 pytest tests/cli/test_screens.py` writes them again; read what changed before you commit it.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numba
import platformdirs
import pytest

from tests.cli.emulator import FOLDED, Emulator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo terminals in Python")

SCREENS = Path(__file__).parent / "screens"
ROOT = Path(__file__).parents[2]


class Command(NamedTuple):
    """line: what is typed behind `ggufmerge`. main: a pattern of the line that matters. json: whether it has --json."""

    line: str
    main: str
    json: bool = True


COMMANDS = {
    "bare": Command("", r"merge a\.gguf b\.gguf", json=False),
    "help": Command("--help", r"merge a\.gguf b\.gguf", json=False),
    "merge": Command("merge writer.gguf coder.gguf --base base.gguf -o both.gguf", r"^both\.gguf: Q8_0, "),
    "new": Command("new mine.yaml", r"mine\.yaml", json=False),
    "build": Command("build recipe.yaml -o both.gguf", r"^both\.gguf: Q8_0, "),
    "plan": Command("plan recipe.yaml", r"^result .*Q8_0"),
    "bake": Command("bake base.gguf style-lora.gguf -o styled.gguf", r"^styled\.gguf: Q8_0, "),
    "extract-lora": Command("extract-lora writer.gguf --base base.gguf -o lora.gguf --rank 4", r"^lora\.gguf: "),
    "quantize": Command("quantize base.gguf small.gguf Q4_K_M", r"^small\.gguf: Q4_K_M, "),
    "split": Command("split base.gguf pieces --split-max-tensors 8", r"pieces-00001-of-0000\d\.gguf"),
    "join": Command("join shards-00001-of-00003.gguf whole.gguf", r"^whole\.gguf: "),
    "inspect": Command("inspect base.gguf", r"tensors"),
    "diff": Command("diff writer.gguf coder.gguf --base base.gguf", r"signs|direction"),
    "eval": Command("eval base.gguf writer.gguf --text text.txt --tokens 40 --context 32", r"better|worse|differ"),
    "calibrate": Command(
        "calibrate base.gguf -o stats.gguf --text text.txt --context 64", r"^stats\.gguf: statistics of 14"
    ),
    "models": Command("models .", r"writer\.gguf"),
    "methods": Command("methods", r"^ggufmerge methods NAME tells"),
    "methods-ties": Command("methods ties", r"merge_method: ties"),
    "types": Command("types", r"ggufmerge types NAME tells"),
    "types-q4_k_m": Command("types Q4_K_M", r"Q4_K_M"),
    "recipe-explain": Command("recipe explain recipe.yaml blk.1.ffn_down", r"weight", json=False),
    "docs": Command("docs", r"^ggufmerge docs TOPIC shows", json=False),
    "docs-page": Command("docs koboldcpp", r"\w", json=False),
    "push": Command("push base.gguf me/tiny-GGUF --dry-run", r"^nothing was uploaded; .*me/tiny-GGUF"),
    "version": Command("version", r"ggufmerge"),
    "error-missing-file": Command("build recipes.yaml -o both.gguf", r"recipes\.yaml"),
    "error-wrong-method": Command("build wrong.yaml -o both.gguf", r"task_arithmetics"),
    "error-taken-output": Command("build recipe.yaml -o coder.gguf", r"coder\.gguf"),
    "error-unknown-command": Command("mrege writer.gguf coder.gguf", r"mrege", json=False),
    "error-unknown-page": Command("docs troubleshooting", r"no page is called \"troubleshooting\"", json=False),
    "error-unknown-option": Command("build recipe.yaml --outptu both.gguf", r"--outptu"),
}
if importlib.util.find_spec("xllamacpp") is None:
    del COMMANDS["eval"], COMMANDS["calibrate"]

# What differs from run to run, from machine to machine and from version to version: a pattern and what stands for it.
# Where a line may be folded at another place, the whole entry goes.
CHANGING = [
    # what would be left of the changes is tried out where kernels were compiled before, and else a note
    (r"^change {3,}.*\n( {9}.*\n)*", ""),
    (r"^note: how much of the changes survives .*\n(  .*\n)*\n?", ""),
    (r"^kept: .*(?=\nforecast: )", "kept: ..."),
    # what a build will cost; the terminal breaks the folder's path where it is longer than a line
    (rf"^(time|memory|disk)( {{3,}}).*((?<={FOLDED})\n.*|\n {{9}}.*)*", r"\1\2FIGURE"),
    (r"^(Python|numba) .*(\n.*)*", r"VERSIONS"),
    (r"\b(ggufmerge|version:) \"?\d+\.\d+.*", r"\1 VERSION"),
    (r"^(python|system|cores|libraries): .*", r"\1: VERSION"),
    (r"^(threads|memory|free|disk|cost|forecast|outlook|seconds|time|place): .*", r"\1: FIGURE"),
    (r"\d+(\.\d+)? (ms|s|min|h)\b", "TIME"),
    (r"\d+(\.\d+)? [kMG]?B/s", "RATE"),
    (r"\b\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?", "DATE"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r"\d+\.\d\d  ± \d+\.\d\d", "PERPLEXITY"),
    (r"(?<=PERPLEXITY  )[-+][\d.]+ %", "CHANGE"),
]


class Shown(NamedTuple):
    code: int
    text: str
    tinted: bool = False  # there are colours
    coloured: bool = False  # there were, perhaps for a while only


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Shown]]:
    """What each command shows in each variant: {command: {variant: shown}}."""
    folder = tmp_path_factory.mktemp("s") / "screens"
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", f"from tests.cli.screen_runs import *; prepare(Path({str(folder)!r}))"],
        cwd=ROOT, env=_environment(folder), check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    every = [c.line.split() for c in COMMANDS.values()]
    found: dict[str, list[Shown]] = {}

    def piped() -> None:
        found["piped"] = _piped(folder, every)
        found["--json"] = _piped(folder, [[*c.line.split(), "--json"] for c in COMMANDS.values() if c.json])

    def terminals() -> None:
        found["80x24"] = _terminal(folder, every, 80, 24, "typed")
        found["120x40"] = _terminal(folder, every, 120, 40, "typed")

    def plain() -> None:
        found["NO_COLOR=1"] = _terminal(folder, every, 80, 24, "typed", NO_COLOR="1")
        found["TERM=dumb <&-"] = _terminal(folder, every, 80, 24, "closed", TERM="dumb")

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(work) for work in (piped, terminals, plain)]:
            done.result()
    with_json = [name for name, c in COMMANDS.items() if c.json]
    shown: dict[str, dict[str, Shown]] = {name: {} for name in COMMANDS}
    for variant in ("80x24", "120x40", "NO_COLOR=1", "TERM=dumb <&-", "piped", "--json"):
        for name, seen in zip(with_json if variant == "--json" else COMMANDS, found[variant], strict=True):
            shown[name][variant] = seen
    return shown


def _environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a machine without models, logins or a network, on two threads."""
    kept = {
        k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    }
    kept |= {k: v for k, v in os.environ.items() if k.startswith("NUMBA_")}
    kernels = str(numba.config.CACHE_DIR or platformdirs.user_cache_dir("ggufmerge", appauthor=False))
    places = {
        name: str(folder / name.lower()) for name in ("HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "GGUFMERGE_CACHE")
    }
    return {
        **kept, **places, "NUMBA_CACHE_DIR": kernels, "NUMBA_NUM_THREADS": "2", "HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1", "PAGER": "cat", **more,
    }  # fmt: skip


def _start(folder: Path, commands: list[list[str]], stdin: str, **how: Any) -> subprocess.Popen[bytes]:
    arguments = [str(folder), json.dumps(commands), stdin]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cli.screen_runs", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, **how
    )


def _terminal(
    folder: Path, commands: list[list[str]], columns: int, rows: int, stdin: str, **environment: str
) -> list[Shown]:
    """The commands on a pseudo terminal of that size."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    part = folder / "-".join([stdin, str(columns), *environment])
    part.mkdir()
    (part / "models").symlink_to(folder / "models")
    process = _start(part, commands, stdin, stdout=theirs, stderr=theirs, env=_environment(part, **environment))
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # so Linux says that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    process.wait()
    shown = []
    for text, code in _parts(b"".join(pieces), len(commands), twice=True):
        screen = Emulator(columns, rows)
        screen.feed(text)
        shown.append(Shown(code, screen.text(), bool(screen.tinted), screen.coloured))
    return shown


def _piped(folder: Path, commands: list[list[str]]) -> list[Shown]:
    """The same with pipes; standard error stands behind standard output, under a line of its own."""
    part = folder / ("json" if "--json" in commands[0] else "piped")
    part.mkdir()
    (part / "models").symlink_to(folder / "models")
    process = _start(
        part, commands, "piped", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(part, TERM="xterm")
    )
    streams = [list(_parts(stream, len(commands))) for stream in process.communicate()]
    shown = []
    for command, (out, code), (err, _) in zip(commands, *streams, strict=True):
        if "--json" in command:
            out = _outline(out)
        told = f"-- standard error\n{err.rstrip()}" if err.strip() else ""
        assert "\x1b" not in out + err, "colours and moves of the cursor in a pipe"
        shown.append(Shown(code, "\n".join(filter(None, [out.rstrip("\n"), told]))))
    return shown


def _parts(stream: bytes, number: int, *, twice: bool = False) -> Iterator[tuple[str, int]]:
    """What stands between the marks, and the exit codes; twice: the marks of both streams are in this one."""
    mark = r"\x1b\]screen;\d+;(\d+)\x07" * (2 if twice else 1)
    pieces = re.split(mark, stream.decode())
    step = 3 if twice else 2
    assert len(pieces) == number * step + 1, f"the process ended early:\n{pieces[-1]}"
    for i in range(number):
        yield pieces[i * step], int(pieces[i * step + 1])


def _outline(text: str) -> str:
    """JSON with its keys and no more than the first of equal things."""
    try:
        value = json.loads(text)
    except ValueError:
        return f"no JSON: {text}"
    return "\n".join(f"{key}: {_shape(value[key])}" for key in value)


def _shape(value: Any, deep: bool = True) -> str:
    if isinstance(value, dict):
        if len(value) > 12 or not deep:
            return "{...}"
        return "{" + ", ".join(f"{key}: {_shape(inner, False)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[]" if not value else f"[{_shape(value[0], deep)}" + (", ...]" if len(value) > 1 else "]")
    if isinstance(value, float):
        return "0.0"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def settled(text: str) -> str:
    """The text with placeholders for what changes."""
    for pattern, instead in CHANGING:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


def recorded(command: Command, variants: Mapping[str, Shown]) -> str:
    """The text of a command's file: what was typed, and the variants; one that looks as another refers to it."""
    lines = [f"$ ggufmerge {command.line}".rstrip()]
    coloured = [variant for variant, shown in variants.items() if shown.tinted]
    lines.append(f"colours: {', '.join(coloured) or 'none'}")
    seen: dict[tuple[int, str], str] = {}
    for variant, shown in variants.items():
        text = settled(shown.text)
        same = seen.setdefault((shown.code, text), variant)
        head = f"==== {variant}, exit code {shown.code}"
        lines += ["", f"{head}: as {same}"] if same != variant else ["", head, text]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_screen_is_as_recorded(name: str, screens: Mapping[str, Mapping[str, Shown]]) -> None:
    """On terminals of two sizes, without colours, without a keyboard, in a pipe, and as JSON."""
    text = recorded(COMMANDS[name], screens[name])
    file = SCREENS / f"{name}.txt"
    if os.environ.get("REWRITE_SCREENS"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_main_line_is_on_the_screen(name: str, screens: Mapping[str, Mapping[str, Shown]]) -> None:
    """On a terminal of 24 lines, when the command has ended and the shell asks for the next one below."""
    last = screens[name]["80x24"].text.splitlines()[-23:]
    assert any(re.search(COMMANDS[name].main, line) for line in last), "\n".join(last)


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_depends_on_colour_or_keyboard(name: str, screens: Mapping[str, Mapping[str, Shown]]) -> None:
    """NO_COLOR takes the colours and nothing else, and no escape is shown where the terminal takes none."""
    assert not screens[name]["NO_COLOR=1"].coloured
    assert screens[name]["NO_COLOR=1"].code == screens[name]["80x24"].code == screens[name]["piped"].code
    assert not screens[name]["TERM=dumb <&-"].coloured


@pytest.mark.parametrize("name", COMMANDS)
def test_no_word_is_broken(name: str, screens: Mapping[str, Mapping[str, Shown]]) -> None:
    """The program folds its lines between words, errors and warnings, too. A model card, which is a file's text, is
    left to the terminal.
    """
    program, _, _card = screens[name]["80x24"].text.partition("\n---\n")
    for line in program.replace(f"{FOLDED}\n", FOLDED).splitlines():
        assert FOLDED not in line, line


@pytest.mark.parametrize("variant", ["80x24", "piped"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "docs-page"])  # which is set as Markdown
def test_blank_lines_stand_alone_and_between(
    name: str, variant: str, screens: Mapping[str, Mapping[str, Shown]]
) -> None:
    """What a command prints begins and ends with words, and has no two blank lines in a row."""
    text, _, _card = screens[name][variant].text.partition("\n---\n")
    lines = [line.strip() for line in text.rstrip("\n").split("\n")]
    assert lines == [""] or (lines[0] and lines[-1])
    assert ("", "") not in set(itertools.pairwise(lines))


def test_every_recording_is_of_a_command() -> None:
    """No file is left of a command that is no longer tried."""
    left = {file.stem for file in SCREENS.iterdir()} - set(COMMANDS) - {"eval"}
    assert not left
