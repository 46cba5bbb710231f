"""Into Ollama through its HTTP API: for servers on other machines and for stores that are not the user's own.

The file is sent as it is read, a megabyte at a time. The server then writes the model once more, through
llama-quantize, to check it. Source: Ollama's `envconfig/config.go` (addresses), `server/routes.go`, `server/create.go`,
`api/types.go`.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import re
import socket
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from ggufmerge.errors import PlanError
from ggufmerge.files import open_gguf
from ggufmerge.files.digest import STEP, Advance, file_digest, nobody
from ggufmerge.places.ollama.names import OllamaName, spelled
from ggufmerge.places.ollama.settings import check_file, completed
from ggufmerge.places.ollama.store import OllamaSettings, environment

_PORT = 11434
_PROBE_SECONDS, _SEND_SECONDS, _CREATE_SECONDS = 5.0, 300.0, 3600.0  # without a sign of life
_MAX_ANSWER = 64 << 20  # bytes; the list of ten thousand models has a few
_ORIGIN = "ggufmerge."  # keys of the metadata that say of what a file was merged
_UNNUMBERED = (9999,)  # what a server that was built without a version counts as: newer than any


@dataclass(frozen=True)
class Installed:
    """A model that Ollama can run.

    name: as it is spelled there.  place: the store or server that has it.  digest: of the GGUF file.
    seen: whether a running server has said that it has it.
    """

    name: str
    place: str
    digest: str
    nbytes: int
    seen: bool = True

    @property
    def is_in_store(self) -> bool:
        """Whether `place` is a folder of this machine."""
        return "://" not in self.place


class Server:
    """An Ollama server, with the name that a model will have there.

    url: its address, without a slash at the end.  overwrite: the name may be taken.  claimed: an interrupted run
    of the same work may have taken it.  notes: what its user should know.
    """

    def __init__(self, url: str, name: OllamaName, *, overwrite: bool = False) -> None:
        self.url, self.name, self.overwrite = url.rstrip("/"), name, overwrite
        self.claimed = False
        self.notes: list[str] = []
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
            self.models()
            return True
        return False

    def version(self) -> tuple[int, ...] | None:
        """The server's version, such as (0, 30, 1); None when nobody answers, or without one.

        Builds without a version say 0.0.0; they are taken for new, and their version is above all others.
        """
        with contextlib.suppress(PlanError), self._request("GET", "/api/version", timeout=_PROBE_SECONDS) as response:
            content = _json(_checked(self.url, response).read(1 << 16))
            text = content.get("version") if isinstance(content, dict) else None
            if isinstance(text, str) and (match := re.match(r"v?(\d{1,9}(?:\.\d{1,9})*)", text)):
                numbers = tuple(map(int, match[1].split(".")))
                return numbers if any(numbers) else _UNNUMBERED
        return None

    def models(self) -> dict[OllamaName, str]:
        """The models that the server has, the last changed one first, and the sha256 of their manifests in hexadecimal.

        The server reads its manifests anew to answer. PlanError when it does not answer, or is no Ollama server.
        """
        with self._request("GET", "/api/tags", timeout=_PROBE_SECONDS) as response:
            content = _json(_checked(self.url, response).read(_MAX_ANSWER))
        listed = content.get("models") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(listed, (list, type(None))):
            raise PlanError(f"{self.url}: this is no Ollama server: check OLLAMA_HOST")
        found: dict[OllamaName, str] = {}
        for entry in listed or []:
            with contextlib.suppress(PlanError, AttributeError):
                found.setdefault(OllamaName.parse(str(entry.get("name", ""))), str(entry.get("digest", "")))
        return found

    def lists(self, name: OllamaName, digests: Container[str]) -> bool | None:
        """Whether the server has a model of this name with one of these digests; None when nobody answers.

        digests: of the manifest.
        """
        with contextlib.suppress(PlanError):
            models = self.models()
            return any(models[other] in digests for other in models if other.folded == name.folded)
        return None

    def check_name(self) -> None:
        """PlanError when the server does not answer or the name is taken. The name is then spelled as it is there."""
        models = self.models()
        taken = any(name.folded == self.name.folded for name in models)
        self.name = spelled(self.name, models)
        if taken and not self.overwrite:
            raise PlanError(f"{self.name}: {self.url} has a model of this name: use --overwrite to replace it")

    def workplace(self) -> Path:
        """The file to build before `add`, in the current folder."""
        return Path(workname(self.name))

    def add(self, path: Path, settings: OllamaSettings, *, move: bool = False, advance: Advance = nobody) -> Installed:
        """Send a GGUF file and create the model. PlanError says what the server did not like.

        move: the file is not needed afterwards; the caller removes it.
        """
        with open_gguf(path) as file:
            check_file(file)
            settings = completed(settings, file.metadata)
            origin = {key: file.metadata.text(key) for key in file.metadata if key.startswith(_ORIGIN)}
        if not (self.claimed and self._is_ours(origin)):
            self.check_name()
        digest, size = f"sha256:{file_digest(path, advance)}", path.stat().st_size
        self._send_blob(path, digest, size, advance)
        self._create(self._request_body(digest, settings))
        self._respell()
        return Installed(str(self.name), self.url, digest, size)

    def _is_ours(self, origin: Mapping[str, Any]) -> bool:
        """Whether the model that has the name was made by the same merge: an answer may get lost when it is done.

        origin: what the file to send says of that, `ggufmerge.*`. The digests differ where the server rewrites files.
        """
        data = json.dumps({"model": str(self.name)}).encode()
        headers = {"Content-Type": "application/json"}
        with contextlib.suppress(PlanError):
            with self._request("POST", "/api/show", body=data, headers=headers, timeout=_SEND_SECONDS) as response:
                content = _json(_checked(self.url, response).read(_MAX_ANSWER))
            found = content.get("model_info") if isinstance(content, dict) else None
            texts = {key: text for key, text in origin.items() if text is not None}
            return bool(texts) and isinstance(found, dict) and texts == {key: found.get(key) for key in texts}
        return False

    def _respell(self) -> None:
        """Take the name as the server has written it: which spelling it takes is its own choice."""
        with contextlib.suppress(PlanError):
            self.name = next((name for name in self.models() if name.folded == self.name.folded), self.name)

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


def workname(name: OllamaName) -> str:
    """What a file is called while it is built for a name: the same for all spellings, and no name of a blob's."""
    return f"ggufmerge-{'-'.join(name.folded.parts).replace(':', '-')}.gguf"


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
            host = "127.0.0.1"  # so does Go for addresses of either family
    if scheme not in ("http", "https") or not host:
        raise PlanError(f"OLLAMA_HOST is {text!r}, which is not an address; write host:port or https://host")
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
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data)
    return None


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())[:500]
