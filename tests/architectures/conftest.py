"""llama.cpp and a folder for the tests of this room."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.llama_worker import LlamaWorker


@pytest.fixture(scope="session")
def llama() -> Iterator[LlamaWorker]:
    """In a process of its own: what it refuses with an assertion ends that one."""
    with LlamaWorker() as worker:
        yield worker


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is gone after the test, as `tmp_path` is not: the models of all tests would be 40 GB."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)
