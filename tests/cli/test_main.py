"""What holds for every command: errors in lines that no file can forge, interruptions that nothing swallows, reports
that cannot be printed.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from ggufmerge.cli import main
from ggufmerge.cli.interruption import Interruptible
from ggufmerge.cli.progress import ProgressDisplay
from ggufmerge.cli.terminal import complain, print_plain_json, say, show_notes, show_table, show_warnings, tell
from ggufmerge.errors import GgufmergeError, PlanError, RecipeError
from tests.cli.conftest import Run
from tests.systems import needs_full_device, needs_pipes
from tests.tiny import write_tiny_llama, write_tiny_lora

EVIL = "x\x1b[2J\nerror: y\r\x9b1m\u202ez\u2028\udcff"
SHOWN = r"x\x1b[2J\nerror: y\r\x9b1m\u202ez\u2028\xff"


def command(*arguments: str | Path, script: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; `script` runs before it."""
    call = [sys.executable, "-c", f"{script}\nfrom ggufmerge.cli import main; main()", *map(str, arguments)]
    return subprocess.run(call, stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options)


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> NoReturn:
        raise error

    monkeypatch.setattr("ggufmerge.cli.app.app", app)


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (PlanError(EVIL), [SHOWN]),
        (RecipeError("recipe:1: a", EVIL), ["recipe:1: a", SHOWN]),
        (GgufmergeError("a\nb"), [r"a\nb"]),
        (OSError(5, "Input/output error", "\x1b"), [r"Input/output error: \x1b"]),
        (OSError("nothing else is known"), ["nothing else is known"]),
        (MemoryError(), ["there is too little memory: close other programs, or use fewer --threads"]),
        (np.empty, ["there is too little memory: close other programs, or use fewer --threads"]),
        (KeyboardInterrupt(), ["interrupted"]),
    ],
)
def test_an_error_is_one_line_for_each_complaint(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Any, lines: list[str]
) -> None:
    """Whatever is in its text, each line begins with the program's own word."""
    if error is np.empty:
        with pytest.raises(MemoryError) as caught:
            np.empty(1 << 60, np.uint8)
        error = caught.value
    fail_with(error, monkeypatch)
    code, out, err = run("schema")
    assert (code, out) == (1, "")
    assert err == "".join(f"error: {line}\n" for line in lines)


def test_names_in_files_steer_no_terminal(run: Run, tmp_path: Path) -> None:
    """In an error about an adapter, and in what a comparison prints when all is well."""
    write_tiny_llama(tmp_path / "a.gguf", layers=1)
    weights = {"blk.0.attn_q.weight": np.zeros((64, 64), np.float32)}
    write_tiny_lora(tmp_path / "lora.gguf", weights, targets=("*attn_q.weight",), rank=2, alpha=2)
    for name, old in (("lora.gguf", b"blk.0.attn_q.weight.lora_a"), ("a.gguf", b"blk.0.attn_q.weight")):
        path = tmp_path / name
        evil = b"x\x1b[2J\nerror: y\xff"
        new = evil + old[len(evil) :]
        data = path.read_bytes()
        (tmp_path / f"evil-{name}").write_bytes(data.replace(old, new, 1))
    code, _, err = run("bake", tmp_path / "a.gguf", tmp_path / "evil-lora.gguf", "-o", tmp_path / "o.gguf")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.strip().isprintable()
    code, out, err = run("diff", tmp_path / "a.gguf", tmp_path / "evil-a.gguf")
    assert (code, err) == (0, "")
    assert r"only in evil-a.gguf: x\x1b[2J\nerror: y\xff" in out
    assert all(line.isprintable() for line in out.split("\n"))


PIPES = (
    ("plan", "pipe"),
    ("quantize", "a.gguf", "o.gguf", "Q4_0", "--imatrix", "pipe"),
    ("inspect", "pipe"),
    ("bake", "a.gguf", "pipe", "-o", "o.gguf"),
    ("diff", "a.gguf", "pipe"),
    ("eval", "pipe", "--prompt", "x"),
    ("eval", "a.gguf", "--text", "pipe"),
    ("push", "a.gguf", "me/x", "--evaluation", "pipe", "--dry-run"),
    ("build", "recipe.yaml", "-o", "o.gguf", "--mmproj", "pipe"),
)
NO_NAMES = (
    *(("build", "recipe.yaml", "-o", name, *more) for name in (".", "/", "") for more in ((), ("--no-modelfile",))),
    *(("split", "a.gguf", name) for name in (".", "/", "")),
    *(("quantize", "a.gguf", name, "Q8_0") for name in (".", "/", "")),
    *(("bake", "a.gguf", "lora.gguf", "-o", name) for name in (".", "/", "")),
    *(("extract-lora", "b.gguf", "--base", "a.gguf", "-o", name) for name in (".", "/", "")),
    ("build", "recipe.yaml", "-o", "loop"),
    ("quantize", "a.gguf", "loop", "Q8_0"),
)
REFERENCES = (("diff", "a.gguf+", "a.gguf"), ("diff", "a.gguf", "a.gguf", "--base", "a.gguf+b.gguf=nan"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an adapter, a recipe, a pipe and a link to itself."""
    folder = tmp_path_factory.mktemp("folder")
    weights = write_tiny_llama(folder / "a.gguf", layers=1)
    write_tiny_llama(folder / "b.gguf", layers=1, tune=(1, 0.1))
    write_tiny_lora(folder / "lora.gguf", weights)
    models = "[{model: a.gguf, parameters: {weight: 1}}, {model: b.gguf, parameters: {weight: 1}}]"
    (folder / "recipe.yaml").write_text(f"merge_method: linear\nmodels: {models}\n")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return folder


@needs_pipes
@pytest.mark.parametrize("arguments", [*PIPES, *NO_NAMES, *REFERENCES], ids=" ".join)
def test_arguments_that_lead_nowhere(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Pipes where files should be, outputs without a name, references that are none: one line, and nothing is made."""
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_names_that_are_no_utf8(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that are read and written, by every command that takes them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "lora"):
        (tmp_path / f"{name}\udcff.gguf").write_bytes((folder / f"{name}.gguf").read_bytes())
    a, b, lora = (f"{name}\udcff.gguf" for name in ("a", "b", "lora"))
    for arguments in (
        ("quantize", a, "1\udcff.gguf", "Q8_0"),
        ("bake", a, lora, "-o", "2\udcff.gguf"),
        ("extract-lora", b, "--base", a, "-o", "3\udcff.gguf", "--rank", "2"),
        ("diff", a, f"{a}+{lora}"),
        ("split", a, "4\udcff"),
        ("inspect", a),
        ("inspect", a, "--json"),
        ("models", "."),
    ):
        code, out, err = run(*arguments)
        assert code == 0, err
        assert all(line.isprintable() for line in (out + err).split("\n"))
    assert {path.name[0] for path in tmp_path.iterdir()} == set("abl1234")


@pytest.mark.parametrize(
    "show",
    [
        lambda: say(EVIL),
        lambda: complain(EVIL),
        lambda: show_warnings([EVIL]),
        lambda: show_notes([(EVIL, EVIL)]),
        lambda: show_table(("head",), [(EVIL,)]),
    ],
)
def test_what_is_shown_is_printable(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts, warnings, notes and cells of tables."""
    show()
    shown = "".join(capsys.readouterr()).split("\n")
    assert all(line.isprintable() for line in shown)
    assert any(SHOWN in line for line in shown)


@pytest.mark.parametrize("name", [EVIL, "[/]", "[/red]", "[bold", "[link=x]y[/link]"])
def test_progress_takes_names_as_they_are(name: str) -> None:
    """Neither escape sequences nor what rich takes for markup."""
    import io

    from rich.console import Console

    screen = io.StringIO()
    progress = ProgressDisplay(Console(file=screen, force_terminal=True, color_system=None, width=100))
    progress.begin(100, 1)
    progress.tensor(name)
    progress.phase(name)
    progress.end()
    assert "\x1b[2J" not in screen.getvalue()
    assert "\u202e" not in screen.getvalue()
    assert name.startswith("x") or name in screen.getvalue()


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Without NaN and Infinity, which it does not know, and without what steers a terminal."""
    facts = {
        "a": [float("nan"), float("inf"), 1.5],
        "b": {"c": (-float("inf"), True, None)},
        "\u202e": "ü\x9b\U000e0001",
    }
    print_plain_json(facts)
    out, _ = capsys.readouterr()
    assert all(line.isprintable() for line in out.split("\n"))
    told = json.loads(out, parse_constant=lambda word: pytest.fail(word))
    assert {key: told[key] for key in facts} == {
        "a": [None, None, 1.5],
        "b": {"c": [None, True, None]},
        "\u202e": "ü\x9b\U000e0001",
    }


@needs_full_device
def test_a_report_that_cannot_be_printed_is_no_failed_command(tmp_path: Path) -> None:
    """On a full disk: the line says what is lost and what is not."""
    write_tiny_llama(tmp_path / "a.gguf", layers=1)
    with Path("/dev/full").open("w") as full:
        done = command("split", tmp_path / "a.gguf", tmp_path / "b", stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "error: standard output cannot be written (No space left on device): the report is lost, what was made is "
        "complete\n"
    )
    assert (tmp_path / "b-00001-of-00001.gguf").exists()


@pytest.mark.parametrize("closed", ["os.close(1)", "os.close(1); os.close(2)"])
def test_closed_outputs_are_no_error(closed: str) -> None:
    """As after `>&-`: nothing is printed, nothing goes wrong."""
    script = f"import os, sys; {closed}; sys.stdout = None" + ("; sys.stderr = None" if "2" in closed else "")
    done = command("schema", script=script, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["typer", "rich.console", "ggufmerge.recipe"])
def test_an_interruption_while_modules_are_imported(number: int, module: str) -> None:
    """One line, wherever the program is in its first second."""
    script = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
"""
    done = command("schema", script=script, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: interrupted\n")


def _raw_object_cache_notify() -> None:
    signal.raise_signal(signal.SIGTERM)


class Destroyed:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "interrupted",
    [
        ctypes.CFUNCTYPE(None)(_raw_object_cache_notify),
        ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGTERM)),
        Destroyed,
    ],
)
def test_an_interruption_where_python_swallows_exceptions_comes_again(
    interrupted: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a callback of LLVM's, where the kernel must not miss its code, in any other callback, in a destructor."""

    def wait() -> None:
        with Interruptible():
            interrupted()
            for _ in range(1000):
                time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert capfd.readouterr() == ("", "")


def test_handlers_are_put_back() -> None:
    """The program that calls `main` keeps its own."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook
    with Interruptible():
        assert signal.getsignal(signal.SIGTERM) != before[0][1]
    assert ([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook) == before


LONG = (
    "recipe.yaml:3:5: "
    + "models/of/a/very-long-path-"
    + "x" * 60
    + ".gguf: no such file; what to do about it is told in full"
)


@pytest.mark.parametrize("word", ["error: ", "warning: ", "note: "])
def test_what_is_said_on_a_terminal_is_folded_between_words(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word is broken, not even a path that is longer than a line; what is folded is indented."""
    monkeypatch.setenv("COLUMNS", "50")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    complain(word + LONG)
    first, *others = stream.getvalue().splitlines()
    assert others
    assert all(line.startswith("  ") for line in others)
    assert " ".join([first, *(line.strip() for line in others)]) == word + LONG
    assert all(len(line) < 50 or " " not in line.strip() for line in [first, *others])


def test_what_is_said_in_a_pipe_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that read it need not put it together again."""
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    complain(LONG)
    assert sys.stderr.getvalue() == LONG + "\n"  # type: ignore[attr-defined]


def test_errors_are_folded_as_warnings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that end a command, and those of a command line that makes no sense."""
    monkeypatch.setenv("COLUMNS", "40")
    for words in (["inspect", "there-is-no-such-file-here.gguf"], ["build", "--a-very-long-option-that-nobody-has"]):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "argv", ["ggufmerge", *words])
        with pytest.raises(SystemExit):
            main()
        text = stream.getvalue()
        assert words[-1] in text
        assert text.startswith("error: ")
        assert text.count("\n  ") == text.count("\n") - 1 > 0


def test_a_sentence_on_a_terminal_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those on standard output: nothing is broken at a hyphen, and a path is not cut."""
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", stream)
    tell([LONG], "  ")
    assert " ".join(line.strip() for line in stream.getvalue().splitlines()) == LONG


def test_a_word_of_commands_without_a_command_is_a_mistake_of_usage(run: Run) -> None:
    """Also where two dashes stand in the place of one."""
    for line in (["recipe", "--"], ["--"]):
        code, _, err = run(*line)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: ")
