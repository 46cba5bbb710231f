"""A Hugging Face Hub of one's own: an HTTP server in this process that speaks as much of the Hub's API as is used.

Files of repositories, their listing, downloads with ranges, creating repositories, commits with and without LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c" * 40
TOKEN = "hf_sesame"


@dataclass
class Repo:
    """Files by revision; `gated` and `private` ones need TOKEN."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    gated: bool = False
    private: bool = False
    commits: list[str] = field(default_factory=list)  # titles

    def commit_of(self, revision: str) -> str:
        return hashlib.sha1(revision.encode()).hexdigest()

    def revision(self, name: str) -> str | None:
        """The revision that a branch or commit stands for."""
        return next((r for r in self.revisions if name in (r, self.commit_of(r))), None)


class HubServer(ThreadingHTTPServer):
    """`repos` by name, `requests` as (method, path), `uploads` of LFS objects by sha256."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploads: dict[str, bytes] = {}
        self.broken = False  # answers everything with 503

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub, which reads its variables when it is imported, be imported anew with these."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        if self.server.broken:
            return self._answer(503)
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return method(self, **match.groupdict())
        return self._answer(404)

    def _repo(self, name: str) -> Repo | None:
        """The repository if the caller may see it; else the answer is sent."""
        repo = self.server.repos.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not allowed):
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
        elif repo.gated and not allowed:
            self._answer(403, {"X-Error-Code": "GatedRepo"})
        else:
            return repo
        return None

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        repo = self._repo(name)
        if repo is None:
            return None
        known = repo.revision(revision)
        if known is None:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repo.revisions[known]

    def info(self, repo: str) -> None:
        if found := self._repo(repo):
            files = [{"rfilename": name} for name in found.revisions["main"]]
            self._answer(200, body={"id": repo, "sha": found.commit_of("main"), "siblings": files, "tags": []})

    def validate(self) -> None:
        assert json.loads(self.body)["content"].startswith("---\n")
        self._answer(200, body={"errors": [], "warnings": []})

    def tree(self, repo: str, revision: str) -> None:
        files = self._files(repo, revision)
        if files is not None:
            entries = [{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in files.items()]
            self._answer(200, body=entries)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return None
        if name not in files:
            return self._answer(404, {"X-Error-Code": "EntryNotFound"})
        commit = self.server.repos[repo].commit_of(self.server.repos[repo].revision(revision) or "")
        data = files[name]
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            return self._answer(206, headers, data[start:stop])
        return self._answer(200, headers, data)

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401)
        status = 409 if name in self.server.repos else 200
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))  # newer and older versions
        self.server.repos.setdefault(name, Repo(private=private))
        return self._answer(status, body={"url": f"{self.server.url}/{name}", "name": name})

    def preupload(self, repo: str, revision: str) -> None:
        if self._files(repo, revision) is not None:
            files = json.loads(self.body)["files"]
            modes = {True: "lfs", False: "regular"}
            self._answer(
                200,
                body={
                    "files": [
                        {"path": f["path"], "uploadMode": modes[f["path"].endswith(".gguf")], "shouldIgnore": False}
                        for f in files
                    ]
                },
            )

    def batch(self, repo: str) -> None:
        del repo
        objects = [
            {
                "oid": o["oid"],
                "size": o["size"],
                "actions": {"upload": {"href": f"{self.server.url}/upload/{o['oid']}"}},
            }
            for o in json.loads(self.body)["objects"]
        ]
        self._answer(200, body={"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.uploads[oid] = self.body
        self._answer(200)

    def commit(self, repo: str, revision: str) -> None:
        files = self._files(repo, revision)
        if files is None:
            return
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.repos[repo].commits.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        url = f"{self.server.url}/{repo}/commit/{COMMIT}"
        self._answer(200, body={"success": True, "commitOid": COMMIT, "commitUrl": url})

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: Any = b"") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, Any]] = [
    (rf"/api/models/{_REPO}", _Handler.info),
    (r"/api/validate-yaml", _Handler.validate),
    (rf"/api/models/{_REPO}/tree/(?P<revision>.+)", _Handler.tree),
    (rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (r"/api/repos/create", _Handler.create),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/upload/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    (rf"/{_REPO}/resolve/(?P<revision>refs/pr/[0-9]+|[^/]+)/(?P<name>.+)", _Handler.resolve),
]


def _oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
