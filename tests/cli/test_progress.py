"""What is seen of a build under way: one measure that is true, a clean screen, and what an interruption keeps."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import ggufmerge
from ggufmerge.cli import progress as module
from ggufmerge.cli.progress import ProgressDisplay
from ggufmerge.engine import Progress
from tests.tiny import write_tiny_llama

Run = Callable[..., tuple[int, str, str]]
RECIPE = "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\nout_type: Q8_0\n"
TENSORS = 21


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate(("a", "b")):
        write_tiny_llama(tmp_path / f"{name}.gguf", tune=(number, 0.02) if number else None)
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GGUFMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path


class Events(Progress):
    """Keeps what a run tells; `after`: raises Ctrl-C when so many tensors are done."""

    def __init__(self, after: int = 0) -> None:
        self.total = self.tensors = self.done = self.finished = self.before = 0
        self.begun, self.left = 0, after
        self.phases: list[str] = []

    def begin(self, total: int, tensors: int) -> None:
        self.begun += 1
        self.total, self.tensors = total, tensors

    def taken_over(self, total: int, tensors: int) -> None:
        self.done += total
        self.finished += tensors
        self.before += tensors

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def compiling(self, kernels: Any, seconds: float) -> None:
        self.phases.append("compiling")

    def advance(self, units: int) -> None:
        assert units >= 0
        self.done += units

    def tensor_done(self, name: str) -> None:
        self.finished += 1
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


METHODS = [
    RECIPE,
    "merge_method: ties\nbase_model: a.gguf\nmodels: [{model: b.gguf}]\nparameters: {weight: 1, density: 0.5}\n",
    "merge_method: passthrough\nmodels: [{model: a.gguf}]\n",
    "merge_method: slerp\nbase_model: a.gguf\nmodels: [{model: b.gguf}]\nparameters: {t: 0.5}\nout_type: Q4_0\n",
]


@pytest.mark.parametrize("text", METHODS)
def test_all_of_the_work_is_told(folder: Path, text: str) -> None:
    """Its parts sum to what was announced, whatever a method reads how often."""
    (folder / "r.yaml").write_text(text)
    events = Events()
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf", progress=events, chunk=1024)
    assert (events.done, events.finished) == (events.total, events.tensors)


def test_what_is_there_is_part_of_the_whole(folder: Path) -> None:
    """A build that goes on announces all of the work, and begins at what is done."""
    whole, first, second = Events(), Events(after=9), Events()
    ggufmerge.build(folder / "r.yaml", folder / "whole.gguf", progress=whole)
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(folder / "r.yaml", folder / "out.gguf", progress=first, threads=1)
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf", progress=second)
    assert (second.total, second.tensors, second.before) == (whole.total, TENSORS, 9)
    assert (second.done, second.finished) == (second.total, TENSORS)


def test_documents_are_one_work(folder: Path) -> None:
    """The bar does not begin anew with each; those that are there count as done."""
    text = f"name: half\n{RECIPE}---\nmerge_method: linear\nmodels: [{{model: half}}, {{model: b.gguf}}]\n"
    (folder / "r.yaml").write_text(f"{text}parameters: {{weight: 1}}\n")
    events = Events(after=TENSORS + 3)
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(folder / "r.yaml", folder / "out.gguf", progress=events, threads=1)
    assert (events.begun, events.tensors) == (1, 2 * TENSORS)
    again = Events()
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf", progress=again)
    assert again.before == TENSORS + 3
    assert (again.done, again.finished) == (again.total, 2 * TENSORS)


def test_every_phase_is_told(folder: Path) -> None:
    """From the space on the disk to its last byte."""
    events = Events(after=9)
    with pytest.raises(KeyboardInterrupt):
        ggufmerge.build(folder / "r.yaml", folder / "out.gguf", progress=events, threads=1)
    again = Events()
    ggufmerge.build(folder / "r.yaml", folder / "out.gguf", progress=again)
    words = ["reserving", "checking", "loading|compiling", "merging", "digest of a.gguf", "verifying", "to the disk"]
    assert all(any(re.search(word, phase) for phase in again.phases) for word in words), again.phases


# The line


def display(width: int = 80) -> tuple[ProgressDisplay, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=width, _environ={"TERM": "xterm"})
    return ProgressDisplay(console), screen


@pytest.mark.parametrize("width", [10, 30, 50, 80, 200])
def test_a_resized_terminal_keeps_nothing(width: int) -> None:
    """Each drawing erases all from the cursor on, is narrower than the terminal, and goes back to its first column."""
    progress, screen = display(width)
    progress.begin(1000, 10)
    progress.phase("merging")
    for step in range(10):
        progress.tensor(f"blk.{step}.ffn_down_with_a_very_long_name_indeed.weight")
        progress.advance(100)
        progress.phase("merging")
    progress.end()
    drawn = screen.getvalue().split("\x1b[J")
    assert drawn[0] == drawn[-1] == ""  # the last erases the line
    assert all(line.endswith("\r") and len(line) - 1 < width and "\n" not in line for line in drawn[1:-1])


def test_the_figures_are_of_one_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar, the percentage and the time are shares of the same work; what was there before is no speed."""
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress, _ = display()
    progress.begin(1000, 10)
    progress.taken_over(500, 2)
    progress.phase("merging")
    now += 10
    progress.advance(250)
    line = progress._line(now, 79)
    progress.end()
    assert "75 %  0:10 left" in line
    assert line.count("━") == round(0.75 * 30) or line.count("#") == round(0.75 * 30)
    assert progress.summary() == "2 of 10 tensors, 75 %"


def test_compiling_is_said() -> None:
    """What for, that it is once, and how long it will be."""
    progress, screen = display(120)
    progress.compiling(["read Q4_K", "merge ties", "write Q6_K"], 14.0)
    progress.end()
    expected = "compiling kernels for Q4_K, TIES and Q6_K, first time on this machine, about 15 s"
    assert expected in screen.getvalue()


# Interruptions


@pytest.fixture
def interrupted(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    """The standard error of a build of out.gguf that was stopped after nine tensors."""
    done = ProgressDisplay.tensor_done
    left = 9

    def stop(self: ProgressDisplay, name: str) -> None:
        nonlocal left
        done(self, name)
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressDisplay, "tensor_done", stop)
        code, _, err = run("build", "r.yaml", "-o", "out.gguf", "--threads", "1")
    assert code == 1
    return err


def test_an_interruption_says_what_is_kept(interrupted: str, folder: Path) -> None:
    """How far it is, where that lies, how large it is, and how to go on or to drop it."""
    first, second = interrupted.splitlines()
    assert first.startswith("interrupted: give the same command again to go on (9 of 21 tensors, ")
    assert ".out.gguf.partial" in second
    assert ".out.gguf.journal" in second
    assert str(folder) in second
    assert re.match(r"kept: [\d.]+ [kM]B in ", second)
    assert "to drop it: " in second


def test_an_interruption_before_any_tensor_promises_nothing(folder: Path, run: Run, monkeypatch) -> None:
    """There is nothing to go on with, and nothing is left."""

    def stop(self: ProgressDisplay, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressDisplay, "tensor", stop)
    code, _, err = run("build", "r.yaml", "-o", "out.gguf", "--threads", "1")
    assert (code, err) == (1, "interrupted: give the same command again (nothing was finished yet, nothing is kept)\n")
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_same_command_says_that_it_goes_on(interrupted: str, run: Run) -> None:
    """With the tensors that are there, of all."""
    code, _, err = run("build", "r.yaml", "-o", "out.gguf")
    assert (code, err) == (0, "going on: 9 of 21 tensors are there\n")


def test_models_lists_what_is_unfinished(interrupted: str, folder: Path, run: Run, tmp_path_factory) -> None:
    """Also from another folder; not any more when it is finished."""
    _, out, _ = run("models")
    assert "out.gguf" in out
    assert "9 of 21 tensors written" in out
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        [found] = json.loads(run("models", "--json")[1])["unfinished"]
        assert (found["output"], found["done"], found["tensors"]) == (str(folder / "out.gguf"), 9, TENSORS)
        run("build", str(folder / "r.yaml"), "-o", str(folder / "out.gguf"))
        assert json.loads(run("models", "--json")[1])["unfinished"] == []
    assert not list((folder / "cache" / "builds").iterdir())


def test_the_command_to_drop_a_build_drops_it(interrupted: str, folder: Path) -> None:
    """All of it, and nothing else."""
    import subprocess

    subprocess.run(interrupted.split("to drop it: ")[1], shell=True, check=True)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert {"a.gguf", "b.gguf", "r.yaml"} <= {path.name for path in folder.iterdir()}


# --quiet, --verbose, --log

COMMANDS = {
    "build": ["build", "r.yaml", "-o", "out.gguf"],
    "quantize": ["quantize", "a.gguf", "out.gguf", "Q8_0"],
    "extract-lora": ["extract-lora", "b.gguf", "--base", "a.gguf", "-o", "out.gguf", "--rank", "2"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_says_nothing(folder: Path, run: Run, command: str) -> None:
    """When all goes well, but for warnings; the file is there."""
    code, out, err = run(*COMMANDS[command], "--quiet")
    assert (code, out) == (0, "")
    assert all(line.startswith("warning: ") for line in err.splitlines())
    assert (folder / "out.gguf").exists()


def test_quiet_says_errors_and_gives_json(folder: Path, run: Run) -> None:
    """An error is no talk, and JSON was asked for."""
    assert json.loads(run(*COMMANDS["build"], "-q", "--json")[1])["output"] == "out.gguf"
    code, out, err = run(*COMMANDS["build"], "-q")
    assert (code, out) == (1, "")
    assert "out.gguf: exists" in err


def test_verbose_says_each_tensor(folder: Path, run: Run) -> None:
    """With its number of all."""
    _, _, err = run(*COMMANDS["build"], "--verbose")
    assert len(re.findall(r"^\d+ of 21: \S+$", err, re.MULTILINE)) == TENSORS


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_log_has_all_that_was_said(folder: Path, run: Run, quiet: list[str]) -> None:
    """The command, phases, tensors, the report and errors, with times, whatever the screen shows; it is added to."""
    code, out, _ = run(*COMMANDS["build"], "--log", "log.txt", *quiet)
    assert (code, bool(out)) == (0, not quiet)
    run(*COMMANDS["build"], "--log", "log.txt", *quiet)
    lines = (folder / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    for words in (
        "ggufmerge build r.yaml",
        "merging",
        "21 of 21: ",
        "out.gguf: Q8_0",
        "done in",
        "error: out.gguf: ex",
    ):
        assert any(words in line for line in lines), words


def test_a_log_that_cannot_be_written_is_an_error(folder: Path, run: Run) -> None:
    """Before any work is done."""
    code, _, err = run(*COMMANDS["build"], "--log", "nowhere/log.txt")
    assert code == 1
    assert err.startswith("error: nowhere/log.txt: the log cannot be written")
    assert not (folder / "out.gguf").exists()


@pytest.mark.parametrize("name", ["a.gguf", "r.yaml", "."])
def test_a_log_goes_into_no_other_file(folder: Path, run: Run, name: str) -> None:
    """Of all that is there only into logs: a slip must not damage a model."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, _, err = run(*COMMANDS["build"], "--log", name)
    assert (code, "is not a log of this program" in err) == (1, True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# The plan's last block


@pytest.mark.parametrize("command", [["plan", "r.yaml"], ["build", "r.yaml", "--dry-run"]])
def test_a_plan_ends_with_what_a_planner_asks(folder: Path, run: Run, command: list[str]) -> None:
    """Size to the byte, time, memory, disk and what is there, in this order, at the end."""
    run("build", "r.yaml", "-o", "out.gguf")
    _, out, _ = run(*command, "-o", "out.gguf", *(["--overwrite"] if "build" in command else []))
    heads = re.findall(r"^(result|time|memory|disk|there) +(.*)$", out.split("\n\n")[-1], re.MULTILINE)
    assert [head for head, _ in heads] == ["result", "time", "memory", "disk", "there"]
    assert f"({(folder / 'out.gguf').stat().st_size:,} bytes)" in heads[0][1]
    assert "out.gguf exists" in heads[4][1]


def test_a_dry_run_fails_where_the_build_would(folder: Path, run: Run) -> None:
    """With its error and its exit code, behind the plan; `plan` only tells."""
    (folder / "out.gguf").write_bytes(b"old")
    code, out, err = run("build", "r.yaml", "--dry-run", "-o", "out.gguf")
    assert (code, err) == (1, "error: out.gguf: exists: use --overwrite to replace it\n")
    assert "result " in out
    assert run("build", "r.yaml", "--dry-run", "-o", "out.gguf", "--overwrite")[0] == 0
    assert run("build", "r.yaml", "--dry-run", "-o", "nowhere/out.gguf")[0] == 1
    assert run("plan", "r.yaml", "-o", "out.gguf")[0] == 0
    assert (folder / "out.gguf").read_bytes() == b"old"


def test_worries_are_shown_last(folder: Path, run: Run) -> None:
    """Where they are still on the screen."""
    (folder / "r.yaml").write_text(RECIPE.replace("b.gguf", "a.gguf"))
    _, out, _ = run("plan", "r.yaml")
    assert out.rstrip().splitlines()[-1].startswith("worry    a.gguf takes part twice")


def test_a_plan_fits_a_narrow_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names lose their middle, not their end, and each model has one line."""
    from ggufmerge.cli import terminal

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=80, highlight=False)
    monkeypatch.setattr(terminal, "console", lambda **_: console)
    rows = [(f"#{i}", f"models/{'long/' * 20}{name}", name * 20, "Q4_K_M", "4.7 GB") for i, name in enumerate("ab")]
    terminal.show_table(("", "model", "name", "type", "size"), rows, numbers=1, names=(1, 2))
    lines = screen.getvalue().splitlines()
    shown = [line for line in lines if "#" in line]
    assert len(shown) == 2
    assert all(len(line) <= 80 for line in lines)
    assert all(re.search(r"models/\S*\.\.\.\S*/[ab] ", line) for line in shown)
