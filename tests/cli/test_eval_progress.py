"""The progress of `ggufmerge eval`: tokens over all models, and an estimate before it takes long."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ggufmerge.cli import eval_progress
from ggufmerge.cli.eval_progress import EvalProgress


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(eval_progress, "time", clock)
    return clock


def read(progress: EvalProgress, clock: Clock, tokens: int, seconds: float) -> None:
    clock.now += seconds
    progress.advance(tokens)


def test_a_long_run_says_so_after_its_first_window(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """For all models, from the speed of the first window without what loading took; and what --quick would take."""
    with EvalProgress(3) as progress:
        progress.says("loading a")
        clock.now += 50
        progress.expect(24_000, quick=2_000)
        progress.says("a reads french")
        read(progress, clock, 100, 1.0)
        read(progress, clock, 100, 1.0)
    assert capsys.readouterr().err == "about 4 min for 3 models (24,000 tokens); --quick takes 20 s\n"


def test_a_short_run_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds need no estimate."""
    with EvalProgress(1) as progress:
        progress.expect(1_000)
        progress.says("a reads french")
        read(progress, clock, 500, 4.0)
    assert capsys.readouterr().err == ""


def test_a_pipe_gets_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """How far all of it is, and the time that is left."""
    with EvalProgress(1) as progress:
        progress.expect(1_000)
        progress.says("a reads french")
        for _ in range(5):
            read(progress, clock, 100, 4.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["about 35 s for the model (1,000 tokens)", "a reads french: 40 % of all, 25 s left"]


def test_a_terminal_gets_a_bar_that_moves_within_a_text(clock: Clock) -> None:
    """The share of all tokens, within the width; the estimate stands above it."""
    out = Console(file=io.StringIO(), force_terminal=True, width=60)
    with EvalProgress(2, out) as progress:
        progress.expect(1_000)
        progress.says("a-model-with-a-long-name.gguf reads a-text-with-a-long-name.txt")
        read(progress, clock, 250, 30.0)
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "about 2 min for 2 models (1,000 tokens)" in shown
    assert "25%" in shown
    assert "2 min left" in shown
