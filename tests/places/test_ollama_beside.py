"""Our models among those of others, over hundreds of random operations of both: nobody's model is lost or confused."""

from __future__ import annotations

import hashlib
import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ggufmerge.errors import PlanError
from ggufmerge.places.ollama import server as ollama_api
from ggufmerge.places.ollama import store as ollama
from ggufmerge.places.ollama.destination import destination
from ggufmerge.places.ollama.names import OllamaName
from ggufmerge.places.ollama.publish import Store
from ggufmerge.places.ollama.store import OllamaSettings
from tests.ollama_store import check_store
from tests.places.ollama_rules import Refused, parsed, shortest
from tests.places.ollama_server import OllamaServer, ollama_server
from tests.tiny import write_tiny_llama

OPERATIONS = 200
NAMES = [
    f"{place}{model}{tag}"
    for place, model, tag in product(
        ("", "team/", "hf.co/team/", "example.com/x/"), ("foo", "team", "q4"), ("", ":q4", ":team")
    )
]
STEPS = [(os, "mkdir"), (os, "fsync"), (os, "link"), (os, "replace"), (os, "unlink"), (os, "chmod"), (io, "open")]


class Stopped(BaseException):
    """What a kill is like: nothing can be written any more, not even by whoever cleans up."""


@contextmanager
def stopping(at: int) -> Iterator[None]:
    """Stop at the `at`-th change of the file system, and at every one after it."""
    count = 0

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if name != "open" or any(c in str(arguments[1:2] or options.get("mode", "")) for c in "wxa+"):
                count += 1
                if count >= at:
                    raise Stopped
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch, suppress(Stopped):
        for module, name in STEPS:
            patch.setattr(module, name, wrapped(name, getattr(module, name)))
        yield


class World:
    """A store, its server, and what should be in it: the weights of every model by its name, in lower case."""

    def __init__(self, root: Path, models: list[Path], server: OllamaServer, seed: int) -> None:
        self.root, self.models, self.server = root, models, server
        self.chance = random.Random(seed)
        self.expected: dict[str, bytes] = {}
        self.contents = [path.read_bytes() for path in models]

    def step(self) -> str:
        """Do something; what."""
        work = self.chance.choice([self.ours] * 5 + [self.create, self.create, self.copy, self.remove, self.restart])
        return f"{work.__name__} {work()}"

    def ours(self) -> str:
        """A model of ours, written into the store, by link or by move, to the end or not."""
        name, at = self.name(), self.chance.randrange(len(self.models))
        overwrite, move = self.chance.random() < 0.5, self.chance.random() < 0.5
        stop = self.chance.randrange(1, 40) if self.chance.random() < 0.4 else 10**9
        key = self.key(name)
        allowed = overwrite or key not in self.expected
        ended = ""
        with stopping(stop):
            ended = self.install(name, at, overwrite=overwrite, move=move)
        what = f"{name} {at} overwrite={overwrite} move={move}: {ended or f'stopped at {stop}'}"
        if ended:
            assert (ended == str(OllamaName.parse(key))) == allowed, what
            assert ended == str(OllamaName.parse(key)) or "has a model of this name" in ended, what
        if ended and allowed:
            self.expected[key] = self.contents[at]
        elif allowed:
            self.settle(key, self.contents[at])
        return what

    def install(self, name: str, at: int, *, overwrite: bool, move: bool) -> str:
        """The name under which a model is then in the store, in lower case, or why it is not."""
        try:
            place = destination(name, overwrite=overwrite)
            assert isinstance(place, Store)
            path = self.models[at]
            if move:
                path = place.workplace()
                path.write_bytes(self.contents[at])
            done = place.add(path, SETTINGS[at], move=move)
            if move:
                path.unlink()
        except PlanError as error:
            return str(error)
        return done.name.lower()

    def settle(self, key: str, content: bytes) -> None:
        """After a stopped run: the name has the old model, or the new one, or none if it had none."""
        try:
            found = self.weights(key)
        except Refused:
            assert key not in self.expected
            return
        assert found in (self.expected.get(key), content)
        self.expected[key] = found

    def create(self) -> str:
        """A model that somebody else gives to the server."""
        name, content = self.name(), b"GGUF theirs %d" % self.chance.randrange(5)
        digest = "sha256:" + sha256(content)
        self.server.ollama.keep(iter([content]), digest)
        licenses = self.chance.choice([[], ["MIT"], ["MIT", "Llama"]])
        self.server.ollama.create({"model": name, "files": {"x.gguf": digest}, "license": licenses})
        self.expected[self.key(name)] = content
        return f"{name} {content!r}"

    def copy(self) -> str:
        if not self.expected:
            return ""
        source, target = self.chance.choice(sorted(self.expected)), self.name()
        self.server.ollama.copy(source, target)
        self.expected[self.key(target)] = self.expected[source]
        return f"{source} {target}"

    def remove(self) -> str:
        if not self.expected:
            return ""
        name = self.chance.choice(sorted(self.expected))
        self.server.ollama.delete(self.spelled(name))
        del self.expected[name]
        return name

    def restart(self) -> str:
        """The server starts anew, hours later."""
        for path in self.root.joinpath("blobs").iterdir():
            os.utime(path, (1e9, 1e9))
        self.server.ollama.start()
        return ""

    def check(self) -> None:
        """Every model is there, whole, and found in any spelling, in whatever order the server meets the names."""
        check_store(self.root)
        names = list(self.server.ollama.manifests())
        assert {"/".join(name).lower() for name in names} == {"/".join(parsed(name)) for name in self.expected}
        for parts in zip(*names, strict=True):
            assert len(set(parts)) == len({part.lower() for part in parts}), f"two spellings: {parts}"
        for name, content in self.expected.items():
            assert self.weights(self.spelled(name)) == content, name

    def weights(self, name: str) -> bytes:
        (layer,) = (e for e in self.server.ollama.find(name).entries if e["mediaType"].endswith("image.model"))
        return (self.root / "blobs" / layer["digest"].replace(":", "-")).read_bytes()

    def name(self) -> str:
        return self.spelled(self.chance.choice(NAMES))

    def spelled(self, name: str) -> str:
        """A name with letters in random case."""
        return "".join(self.chance.choice((c, c.upper())) for c in name)

    def key(self, name: str) -> str:
        return shortest(parsed(name.lower()))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


SETTINGS = [
    OllamaSettings(template="{{ .Prompt }}", licenses=("MIT",)),
    OllamaSettings(system="Be brief.", licenses=("MIT", "Llama")),
    OllamaSettings(),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three small models."""
    folder = tmp_path_factory.mktemp("models")
    for at in range(len(SETTINGS)):
        write_tiny_llama(folder / f"{at}.gguf", layers=1, embed=32, ff=32, tune=(at + 1, 0.5))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_nobodys_model_is_harmed(store: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Models of ours in all spellings, tags and hosts, replacing, by link and by move, stopped at any change of the
    disk, beside what the server creates, copies, removes and cleans up: every model is found by its name, every time.
    """
    done: list[str] = []
    with ollama_server(root=store) as server:
        monkeypatch.setattr(ollama_api, "_PORT", server.server_port)
        monkeypatch.setattr(ollama, "SERVICE_ROOT", store / "none")
        world = World(store, models, server, seed)
        for _ in range(OPERATIONS):
            done.append(world.step())
            try:
                world.check()
            except (AssertionError, Refused) as error:
                raise AssertionError("\n".join([*done[-8:], str(error)])) from error
    assert len([line for line in done if line.startswith("ours") and "stopped" not in line]) > 30
