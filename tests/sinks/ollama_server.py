"""An Ollama server for tests, as far as creating models goes: `/api/tags`, `/api/blobs`, `/api/create`, over real HTTP.

It answers as `server/routes.go` and `server/create.go` do: status codes, error bodies, lines of JSON while it works.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GGUF_MAGIC = b"GGUF"


class OllamaServer(ThreadingHTTPServer):
    """`blobs`: digest -> content, of large ones the beginning. `models`: name -> request that created it. `requests`:
    what came, in order. `troubles`: what goes wrong, see the code below.
    """

    daemon_threads = True

    def __init__(self, prefix: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prefix = prefix
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.troubles: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.prefix}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to print."""


@contextmanager
def ollama_server(prefix: str = "") -> Iterator[OllamaServer]:
    server = OllamaServer(prefix)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: OllamaServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is("GET", "/api/tags"):
            return self._answer(404, {"error": "not found"})
        if "not ollama" in self.server.troubles:
            return self._answer(200, {"models": "<html>"})
        return self._answer(200, {"models": [{"name": name, "model": name} for name in self.server.models]})

    def do_HEAD(self) -> None:
        digest = self.path.rpartition("/")[2]
        known = self._is("HEAD", f"/api/blobs/{digest}") and digest in self.server.blobs
        self.send_response(200 if known else 404)
        self.end_headers()

    def do_POST(self) -> None:
        digest = self.path.rpartition("/")[2]
        if self._is("POST", f"/api/blobs/{digest}"):
            self._take_blob(digest)
        elif self._is("POST", "/api/create"):
            self._create(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        else:
            self._answer(404, {"error": "not found"})

    def log_message(self, *arguments: object) -> None:
        """Nothing on standard error."""

    def _is(self, method: str, path: str) -> bool:
        matches = (self.command, self.path) == (method, self.server.prefix + path)
        if matches:
            self.server.requests.append(f"{method} {path}")
        return matches

    def _take_blob(self, digest: str) -> None:
        if "refused" in self.server.troubles:  # without reading the body
            self.close_connection = True
            return self._answer(400, {"error": "invalid digest format"})
        left, digested, data = int(self.headers["Content-Length"]), hashlib.sha256(), b""
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            digested.update(piece if "garbled" not in self.server.troubles else piece[:-1])
            left -= len(piece)
            data = data or piece
        if "no room" in self.server.troubles:
            return self._answer(500, {"error": "write /models/blobs/sha256-1: no space left on device"})
        found = "sha256:" + digested.hexdigest()
        if found != digest:
            return self._answer(400, {"error": f'digest mismatch, expected "{digest}", got "{found}"'})
        self.server.blobs[digest] = data
        return self._answer(201, None)

    def _create(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._line({"status": "parsing GGUF"})
        for digest in body["files"].values():
            if not self.server.blobs.get(digest, b"").startswith(GGUF_MAGIC):
                return self._end({"error": "supplied file was not in GGUF format"})
        if "hangs up" in self.server.troubles:
            self.close_connection = True
            return None
        if "silent" in self.server.troubles:
            return self._end({"status": "validating GGUF model"})
        if "invalid" in self.server.troubles:
            return self._end({"error": "failed to validate GGUF with llama-quantize\nwithout compatibility patches"})
        self._line({"status": "validating GGUF model", "total": 10, "completed": 5})
        self._line({"status": "writing manifest"})
        self.server.models[body["model"]] = body
        return self._end({"status": "success"})

    def _line(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _end(self, value: dict[str, Any]) -> None:
        self._line(value)
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, body: dict[str, Any] | None) -> None:
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
