"""What holds for all tests."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.no_ollama import refusing


@pytest.fixture(autouse=True, scope="session")
def no_real_ollama() -> Iterator[None]:
    """See `tests/no_ollama.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "connect", refusing)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the program learns of this machine in tests, it forgets with them; compiled kernels are kept."""
    folder: Path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGUFMERGE_CACHE", str(folder))
        yield folder
