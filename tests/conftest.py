"""What holds for all tests."""

from __future__ import annotations

import errno
import http.client
from collections.abc import Iterator

import pytest

OLLAMA_PORT = 11434


@pytest.fixture(autouse=True, scope="session")
def no_real_ollama() -> Iterator[None]:
    """No test talks to an Ollama that happens to run on the machine: nothing answers at its usual port."""
    real = http.client.HTTPConnection.connect

    def connect(self: http.client.HTTPConnection) -> None:
        if self.port == OLLAMA_PORT:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "connect", connect)
        yield
