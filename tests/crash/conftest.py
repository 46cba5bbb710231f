"""Worlds in which builds are disturbed: they need /proc, fork and signals, so these tests are for Linux."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.crash.world import Worlds

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(scope="package")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """As many worlds as processors, up to four; the kernels are compiled and loaded once for all tests."""
    made = Worlds(tmp_path_factory.mktemp("crash"), min(4, os.cpu_count() or 1))
    yield made
    made.close()
