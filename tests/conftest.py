"""What holds for all tests."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from tests.no_ollama import refusing


@pytest.fixture(autouse=True, scope="session")
def no_real_ollama() -> Iterator[None]:
    """See `tests/no_ollama.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "connect", refusing)
        yield
