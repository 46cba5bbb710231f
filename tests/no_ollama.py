"""No test talks to an Ollama that happens to run on the machine: nothing answers at its usual port."""

from __future__ import annotations

import errno
import http.client

OLLAMA_PORT = 11434
_connect = http.client.HTTPConnection.connect


def refusing(self: http.client.HTTPConnection) -> None:
    """`HTTPConnection.connect` of a machine without Ollama."""
    if self.port == OLLAMA_PORT:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    _connect(self)
