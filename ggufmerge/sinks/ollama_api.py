"""Into Ollama through its HTTP API: for servers on other machines and stores that the user may not write.

The file is sent as it is read, a megabyte at a time. The server then writes the model once more, through
llama-quantize, to check it. Source: Ollama's `envconfig/config.go` (addresses), `server/routes.go`, `server/create.go`,
`api/types.go`.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ggufmerge.errors import PlanError
from ggufmerge.files import open_gguf
from ggufmerge.sinks.files import STEP, Advance, file_digest, nobody
from ggufmerge.sinks.settings import check_file, completed
from ggufmerge.sources.ollama import OllamaName, OllamaSettings, environment

_PORT = 11434
_PROBE_SECONDS, _SEND_SECONDS, _CREATE_SECONDS = 5.0, 300.0, 3600.0  # without a sign of life


@dataclass(frozen=True)
class Installed:
    """A model that Ollama can run. place: the store or server that has it.  digest: of the GGUF file."""

    name: str
    place: str
    digest: str
    nbytes: int


class Server:
    """An Ollama server, with the name that a model will have there.

    url: its address, without a slash at the end.  overwrite: the name may be taken.
    """

    def __init__(self, url: str, name: OllamaName, *, overwrite: bool = False) -> None:
        self.url, self.name, self.overwrite = url.rstrip("/"), name, overwrite
        parts = urlsplit(self.url)
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._prefix = parts.path

    @classmethod
    def from_environment(cls, name: OllamaName, *, overwrite: bool = False) -> Server:
        """The server that the `ollama` command would talk to."""
        return cls(server_url(environment("OLLAMA_HOST")), name, overwrite=overwrite)

    def __str__(self) -> str:
        return self.url

    @property
    def is_elsewhere(self) -> bool:
        """Whether the address is not the one where the server of this machine's store listens."""
        local = self._host == "localhost"
        with contextlib.suppress(ValueError):
            local = ipaddress.ip_address(self._host).is_loopback
        return not local or self._port != _PORT

    def answers(self) -> bool:
        """Whether an Ollama server is there."""
        with contextlib.suppress(PlanError):
            self._names()
            return True
        return False

    def check_name(self) -> None:
        """PlanError when the server does not answer or the name is taken."""
        taken = any(_same(name, self.name) for name in self._names())
        if taken and not self.overwrite:
            raise PlanError(f"{self.name}: {self.url} has a model of this name: use --overwrite to replace it")

    def workplace(self) -> Path:
        """The file to build before `add`, in the current folder."""
        return Path(f"ggufmerge-{'-'.join(self.name.parts).replace(':', '-')}.gguf")

    def add(self, path: Path, settings: OllamaSettings, *, move: bool = False, advance: Advance = nobody) -> Installed:
        """Send a GGUF file and create the model. PlanError says what the server did not like.

        move: the file is not needed afterwards; the caller removes it.
        """
        with open_gguf(path) as file:
            check_file(file)
            settings = completed(settings, file.metadata)
        self.check_name()
        digest, size = f"sha256:{file_digest(path, advance)}", path.stat().st_size
        self._send_blob(path, digest, size, advance)
        self._create(self._request_body(digest, settings))
        return Installed(str(self.name), self.url, digest, size)

    def _request_body(self, digest: str, settings: OllamaSettings) -> dict[str, Any]:
        body = {
            "model": str(self.name),
            "files": {f"{self.name.model}.gguf": digest},
            "template": settings.template,
            "system": settings.system,
            "parameters": dict(settings.parameters),
            "license": list(settings.licenses),
            "messages": list(settings.messages),
            "renderer": settings.renderer,
            "parser": settings.parser,
            "requires": settings.requires,
        }
        return {key: value for key, value in body.items() if value} | {"stream": True}

    def _names(self) -> list[str]:
        """The models that the server has."""
        with self._request("GET", "/api/tags", timeout=_PROBE_SECONDS) as response:
            content = _json(_checked(self.url, response).read())
        models = content.get("models") if isinstance(content, dict) else None
        if models is not None and not isinstance(models, list):
            raise PlanError(f"{self.url}: this is no Ollama server: check OLLAMA_HOST")
        return [str(m.get("name", "")) for m in models or [] if isinstance(m, dict)]

    def _send_blob(self, path: Path, digest: str, size: int, advance: Advance) -> None:
        """Upload the file unless the server has it."""
        where = f"/api/blobs/{digest}"
        with self._request("HEAD", where, timeout=_SEND_SECONDS) as response:
            if response.status == 200:
                return
        with path.open("rb") as file:
            body = _Counted(file, advance)
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            with self._request("POST", where, body=body, headers=headers, timeout=_SEND_SECONDS) as response:
                _checked(self.url, response).read()

    def _create(self, body: dict[str, Any]) -> None:
        """Create the model; the server tells how it goes, a line of JSON at a time."""
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with self._request("POST", "/api/create", body=data, headers=headers, timeout=_CREATE_SECONDS) as response:
            for line in _checked(self.url, response):
                said = _json(line)
                if isinstance(said, dict) and "error" in said:
                    raise PlanError(f"{self.url}: did not create {self.name}: {_one_line(said['error'])}")
                if isinstance(said, dict) and said.get("status") == "success":
                    return
        raise PlanError(f"{self.url}: stopped before {self.name} was created: look at the server's log, then try again")

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, *, timeout: float, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_PROBE_SECONDS, blocksize=STEP)
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            # a server that refuses a body answers before it has read it all
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._prefix + path, body, headers or {})
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise PlanError(
                f"{self.url}: no answer from an Ollama server ({reason}): start it, or set OLLAMA_HOST to its address"
            ) from None
        finally:
            connection.close()


def server_url(text: str) -> str:
    """The address that a value of `OLLAMA_HOST` stands for, as one to connect to; PlanError when it is none."""
    scheme, found, rest = text.strip().partition("://")
    if not found:
        scheme, rest = "http", text.strip()
        if rest == "ollama.com":
            scheme, rest = "https", "ollama.com:443"
        default = _PORT
    else:
        default = {"http": 80, "https": 443}.get(scheme, _PORT)
    authority, _, path = rest.partition("/")
    host, port = _split_port(authority, default)
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:  # fine to listen at, not to connect to
            host = "127.0.0.1" if address.version == 4 else "::1"
    if scheme not in ("http", "https") or not host:
        raise PlanError(f"OLLAMA_HOST is {text!r}, which is no address; write host:port or https://host")
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port}" + (f"/{path.strip('/')}" if path.strip("/") else "")


def _split_port(authority: str, default: int) -> tuple[str, int]:
    bare = authority.strip("[]")
    with contextlib.suppress(OSError):
        socket.inet_pton(socket.AF_INET6, bare)
        return bare, default
    host, colon, port = authority.rpartition(":")
    if not colon:
        host, port = authority, ""
    number = int(port) if port.isdecimal() and int(port) < 1 << 16 else default
    return host.strip("[]") or "127.0.0.1", number


class _Counted:
    """A file that tells how much of it was read; http.client sends what `read` gives, piece by piece."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file, self._advance = file, advance

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._advance(len(piece))
        return piece


def _checked(url: str, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status < 400:
        return response
    body = response.read(1 << 16)
    said = _json(body)
    text = said["error"] if isinstance(said, dict) and "error" in said else body.decode("utf-8", "replace")
    raise PlanError(f"{url}: {_one_line(text) or response.reason} (HTTP {response.status})")


def _json(data: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(data)
    return None


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())[:500]


def _same(text: str, name: OllamaName) -> bool:
    with contextlib.suppress(PlanError):
        return [p.lower() for p in OllamaName.parse(text).parts] == [p.lower() for p in name.parts]
    return False
