"""What the tests of several commands share."""

from __future__ import annotations

import pytest

from tests.command import Run, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in-process: (exit code, standard output, standard error)."""
    return runner(monkeypatch, capsys)
