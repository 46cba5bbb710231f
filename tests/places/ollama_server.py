"""An Ollama server for tests, over real HTTP and a store on the disk: what `Ollama` in `ollama_rules.py` does, with the
status codes, error bodies and lines of JSON of `server/routes.go` and `server/create.go`.
"""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.places.ollama_rules import Ollama, Refused

GGUF_MAGIC = b"GGUF"


class OllamaServer(ThreadingHTTPServer):
    """`ollama`: what it does with its store.  `version`: what it says of itself.

    `blobs`: what was sent, digest -> the beginning.  `models`: name -> request that created it, of those created here.
    `requests`: what came, in order.  `troubles`: what goes wrong, see the code below.
    """

    daemon_threads = True

    def __init__(self, root: Path, prefix: str = "", uid: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prefix, self.ollama = prefix, Ollama(root, uid)
        self.version = "0.30.1"
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
def ollama_server(prefix: str = "", root: Path | None = None, uid: int | None = None) -> Iterator[OllamaServer]:
    """A running server.

    root: its store, an empty one of its own when None.  uid: the user it runs as, see `Ollama`.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = OllamaServer(root or Path(folder) / "models", prefix, uid)
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
        if self._is("GET", "/api/version"):
            return self._answer(200, {"version": self.server.version})
        if not self._is("GET", "/api/tags"):
            return self._answer(404, {"error": "not found"})
        if "not ollama" in self.server.troubles:
            return self._answer(200, {"models": "<html>"})
        return self._do(lambda: {"models": self.server.ollama.tags()})

    def do_HEAD(self) -> None:
        digest = self.path.rpartition("/")[2]
        known = self._is("HEAD", f"/api/blobs/{digest}") and self.server.ollama.has(digest)
        self.send_response(200 if known else 404)
        self.end_headers()

    def do_DELETE(self) -> None:
        if self._is("DELETE", "/api/delete"):
            body = self._body()
            return self._do(lambda: self.server.ollama.delete(body["model"]))
        return self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        digest = self.path.rpartition("/")[2]
        ollama = self.server.ollama
        if self._is("POST", f"/api/blobs/{digest}"):
            self._take_blob(digest)
        elif self._is("POST", "/api/create"):
            self._create(self._body())
        elif self._is("POST", "/api/show"):
            body = self._body()
            self._do(lambda: ollama.show(body["model"]))
        elif self._is("POST", "/api/copy"):
            body = self._body()
            self._do(lambda: ollama.copy(body["source"], body["destination"]))
        else:
            self._answer(404, {"error": "not found"})

    def log_message(self, *arguments: object) -> None:
        """Nothing on standard error."""

    def _is(self, method: str, path: str) -> bool:
        matches = (self.command, self.path) == (method, self.server.prefix + path)
        if matches:
            self.server.requests.append(f"{method} {path}")
        return matches

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _do(self, work: Callable[[], dict[str, Any] | None]) -> None:
        try:
            self._answer(200, work())
        except Refused as refused:
            self._answer(refused.status, {"error": refused.text})

    def _take_blob(self, digest: str) -> None:
        if "refused" in self.server.troubles:  # without reading the body
            self.close_connection = True
            return self._answer(400, {"error": "invalid digest format"})
        if "cut" in self.server.troubles:  # killed in the middle of it
            self.rfile.read(1000)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        try:
            self.server.ollama.keep(self._pieces(digest), digest)
        except Refused as refused:
            return self._answer(refused.status, {"error": refused.text})
        if "no room" in self.server.troubles:
            return self._answer(500, {"error": "write /models/blobs/sha256-1: no space left on device"})
        return self._answer(201, None)

    def _pieces(self, digest: str) -> Iterator[bytes]:
        left, first = int(self.headers["Content-Length"]), b""
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            left -= len(piece)
            first = first or piece
            yield piece[:-1] if "garbled" in self.server.troubles else piece
        self.server.blobs[digest] = first

    def _create(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._line({"status": "parsing GGUF"})
        for digest in body.get("files", {}).values():
            path = self.server.ollama.root / "blobs" / digest.replace(":", "-")
            if not path.exists() or path.open("rb").read(4) != GGUF_MAGIC:
                return self._end({"error": "supplied file was not in GGUF format"})
        if "hangs up" in self.server.troubles:
            self.close_connection = True
            return None
        if "silent" in self.server.troubles:
            return self._end({"status": "validating GGUF model"})
        if "invalid" in self.server.troubles:
            return self._end({"error": "failed to validate GGUF with llama-quantize\nwithout compatibility patches"})
        self._line({"status": "validating GGUF model", "total": 10, "completed": 5})
        try:
            self.server.ollama.create(body)
        except Refused as refused:
            return self._end({"error": refused.text})
        self.server.models[body["model"]] = body
        if "dies when done" in self.server.troubles:
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        self._line({"status": "writing manifest"})
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
