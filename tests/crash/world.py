"""Builds to be disturbed, the folder where that happens, and what must hold afterwards.

The law: a build that is stopped at any moment and given again as the same command ends in the bytes of an undisturbed
one, leaves nothing beside them, and has not touched its inputs. A run that fails says why in one line.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import gguf
import numpy as np

from tests.crash.client import Run, Server
from tests.crash.shim import KILLED, Operation
from tests.ollama_store import check_store
from tests.tiny import write_tiny_llama

SIZES: dict[str, Any] = {"layers": 1, "embed": 32, "ff": 32, "heads": 2, "kv_heads": 1, "vocab": 300, "tied": True}
SINGLE = "{merge_method: linear, models: [{model: a.gguf}, {model: b.gguf}], parameters: {weight: 1}}\n"
STAGES = """\
name: pair
merge_method: linear
models: [{model: a.gguf}, {model: b.gguf}]
parameters: {weight: 1}
---
merge_method: linear
models: [{model: pair}, {model: b.gguf, parameters: {weight: 3}}]
parameters: {weight: 1}
"""
OLD = SINGLE.replace("a.gguf", "a.gguf, parameters: {weight: 5}")
CHANGES = ("replaced", "rewritten")
SOURCES = ("a.gguf", "b.gguf")
WAYS = (
    *("kill", "kill-after", "interrupt", "interrupt-after", "full", "broken"),  # see `shim.Watch`
    *("second", "second-kill"),  # the same command is given while the first run pauses, which then goes on or is killed
    *CHANGES,  # it is killed, and a source gets other weights: see `World.change_source`
)
CHUNK = 4096  # values: the largest tensor has three chunks
_ROOT = b"<root>"  # in place of a world's folder
SLACK = 300 * 32 * 4 + 2 * 32 * 32 * 4 + 12000  # bytes: the largest tensor, those begun beside it, journal and header
WAITS = 3.0  # seconds that a second build is given before it counts as one that waits for the first


@dataclass(frozen=True)
class Build:
    """A command that is disturbed.

    options: of the command line, beside the recipe.  overwrite: there is an old result, and it is to be replaced.
    """

    name: str
    recipe: str
    options: Sequence[str]
    overwrite: bool

    @property
    def arguments(self) -> list[str]:
        return ["build", "recipe.yaml", *self.options, "--threads", "1", "--chunk", str(CHUNK), *self.replacing]

    @property
    def replacing(self) -> list[str]:
        return ["--overwrite"] * self.overwrite

    def __str__(self) -> str:
        return self.name + "-over" * self.overwrite


_KINDS = {
    "file": (SINGLE, ["-o", "../out/m.gguf"]),
    "shards": (SINGLE, ["-o", "../out/m.gguf", "--split-max-tensors", "4"]),
    "stages": (STAGES, ["-o", "../out/m.gguf"]),
    "ollama": (SINGLE, ["--ollama", "m"]),
    "homes": (SINGLE, ["-o", "../store/m.gguf", "--to", "../out", "--to", "../out/models.ini", "--no-modelfile"]),
    "home": (SINGLE, ["--to", "../out", "--llama-cpp", "--split-max-tensors", "4"]),  # built in a folder that is made
}
BUILDS = [Build(name, *kind, overwrite) for name, kind in _KINDS.items() for overwrite in (False, True)]
BUILDS.append(Build("stages-ollama", STAGES, ["--ollama", "m"], False))

Tree = dict[str, str]  # path -> sha256 of a file, "folder", or where a link leads


@dataclass
class Known:
    """What undisturbed runs have shown, by build; the same in every folder."""

    old: dict[str, dict[str, bytes | None]] = field(default_factory=dict)
    wanted: dict[tuple[str, str], Tree] = field(default_factory=dict)
    operations: dict[str, list[Operation]] = field(default_factory=dict)


class World:
    """A folder with inputs in `work`, results in `out` and `store`, and a server that runs commands in it."""

    def __init__(self, root: Path, known: Known) -> None:
        self.root, self._known = root, known
        for name in ("work", "out", "store", "tmp"):
            (root / name).mkdir(parents=True)
        write_models(root / "work")
        self._inputs = {name: (root / "work" / name).read_bytes() for name in SOURCES}
        self._changed = {name: changed(root / "work" / name) for name in SOURCES}
        self._times = {name: (root / "work" / name).stat().st_mtime_ns for name in SOURCES}
        places = {"OLLAMA_MODELS": str(root / "store"), "OLLAMA_HOST": "", "TMPDIR": str(root / "tmp")}
        self.server = Server(root, root / "work", places)
        for recipe, options in (_KINDS[name] for name in _KINDS):
            self._empty()
            (root / "work/recipe.yaml").write_text(recipe)
            self.server.warm(*Build("", recipe, options, False).arguments)

    def close(self) -> None:
        self.server.close()

    def reset(self, build: Build) -> None:
        """As before the first run of a build: inputs, an old result if it replaces one, and nothing else."""
        self._empty()
        for name in SOURCES:
            self._put(name, self._inputs[name], self._times[name])
        (self.root / "work/recipe.yaml").write_text(build.recipe)
        if build.overwrite:
            self._restore(self._old_result(build))

    def operations(self, build: Build) -> list[Operation]:
        """What an undisturbed build does to files, in order."""
        self.wanted(build)
        return self._known.operations[str(build)]

    def wanted(self, build: Build, change: str = "") -> Tree:
        """The result of an undisturbed build; asked for the first time, this does one, and the folder is as after it.

        change: of a source before it starts, see `change_source`."""
        key = str(build), change
        if key not in self._known.wanted:
            self.reset(build)
            if change:
                self.change_source(change)
            run = self.server.run(build.arguments)
            assert run.code == 0, run.err
            if not change:
                self._known.operations[str(build)] = list(run.operations)
            self._known.wanted[key] = self.results()  # last: other worlds take it for known
        return self._known.wanted[key]

    def old(self, build: Build) -> Tree:
        """The result that a build replaces; empty when there is none."""
        if not build.overwrite:
            return {}
        return {path: "folder" if data is None else _digest(data) for path, data in self._old_result(build).items()}

    def results(self) -> Tree:
        """Everything in `out` and `store`."""
        return {**_tree(self.root, "out"), **_tree(self.root, "store")}

    def inputs(self) -> Tree:
        """Everything in `work`."""
        return _tree(self.root, "work")

    def change_source(self, how: str) -> None:
        """Give a source other weights of the same size, in places that no fingerprint looks at.

        how: "replaced" renames another file to it (the first source), "rewritten" writes into it (the second).
        """
        name = _source(how)
        path = self.root / "work" / name
        if how == "replaced":
            other = path.with_name("other")
            other.write_bytes(self._changed[name])
            other.replace(path)
        else:
            with path.open("r+b") as file:
                file.write(self._changed[name])
        os.utime(path, ns=(self._times[name] + 10**9, self._times[name] + 10**9))

    def _old_result(self, build: Build) -> dict[str, bytes | None]:
        if build.name not in self._known.old:
            self._empty()
            (self.root / "work/recipe.yaml").write_text(OLD)
            run = self.server.run(Build("", OLD, build.options, False).arguments)
            assert run.code == 0, run.err
            paths = {p: self.root / p for p in self.results()}
            self._known.old[build.name] = {
                name: None if p.is_dir() else _portable(p.read_bytes(), self.root) for name, p in paths.items()
            }
            self.reset(build)
        return self._known.old[build.name]

    def _empty(self) -> None:
        for folder in ("out", "store", "tmp"):
            shutil.rmtree(self.root / folder)
            (self.root / folder).mkdir()

    def _restore(self, files: Mapping[str, bytes | None]) -> None:
        for name, data in files.items():
            if data is None:
                (self.root / name).mkdir(exist_ok=True)
            else:
                (self.root / name).write_bytes(data.replace(_ROOT, os.fsencode(self.root)))

    def _put(self, name: str, data: bytes, time: int) -> None:
        """Write an input unless it is as it should be."""
        path = self.root / "work" / name
        if path.stat().st_mtime_ns != time or path.read_bytes() != data:
            path.write_bytes(data)
            os.utime(path, ns=(time, time))


def _source(change: str) -> str:
    """The source that a change is made to."""
    return SOURCES[CHANGES.index(change)]


def write_models(folder: Path) -> None:
    """The smallest pair of models that can be merged."""
    for name, tune in (("a", None), ("b", (1, 0.5))):
        write_tiny_llama(folder / f"{name}.gguf", words=("the",), tune=tune, **SIZES)


def changed(path: Path) -> bytes:
    """The bytes of a model with others between the places of its matrices that a fingerprint may read."""
    data = bytearray(path.read_bytes())
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            start, stop = (tensor.data_offset + tensor.n_bytes * part // 16 for part in (3, 5))
            values = np.frombuffer(data, np.float32, (stop - start) // 4, start)
            data[start:stop] = (values + np.float32(1)).tobytes()
    return bytes(data)


def disturb(world: World, build: Build, way: str, at: int) -> list[str]:
    """Do something to a build at its operation `at`, give the command again; what does not hold, in words.

    way: one of WAYS.
    """
    world.operations(build)
    change = way if way in CHANGES else ""
    world.wanted(build, change)
    world.reset(build)
    inputs = world.inputs()
    if way.startswith("second"):
        where, problems = _second(world, build, at, kill=way == "second-kill")
    elif change:
        where, problems = _changed(world, build, change, at)
        inputs = inputs | {path: text for path, text in world.inputs().items() if path == f"work/{_source(change)}"}
    else:
        where, problems = _stopped(world, build, way, at)
    problems += [f"an input: {d}" for d in _differences(world.inputs(), inputs)]
    return [f"{build} {way} {at} {where}: {problem}" for problem in problems]


def moments(operations: Sequence[Operation], way: str) -> list[int]:
    """The operations of an undisturbed build, counted from 1, at which a way differs from all others."""
    numbered = list(enumerate(operations, 1))
    if way == "kill-after":  # else it is a kill before the next one
        return [len(operations)]
    if way == "full":
        return [at for at, operation in numbered if operation.grows]
    if way == "kill" or way in CHANGES:
        return [at for at, operation in numbered if not operation.is_silent]
    return [at for at, _ in numbered]


def sample(operations: Sequence[Operation], way: str, count: int, shift: int) -> list[int]:
    """`count` of the moments, spread evenly over kinds of operations, so not over equal writes of many tensors.

    shift: other numbers give others of them.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for at in moments(operations, way):
        places.setdefault((operations[at - 1].name, operations[at - 1].path), []).append(at)
    kinds = sorted({at for same in places.values() for at in (same[0], same[len(same) // 2], same[-1])})
    step = max(1, len(kinds) // count)
    return kinds[shift % step :: step][:count]


def _stopped(world: World, build: Build, way: str, at: int) -> tuple[str, list[str]]:
    first = world.server.run(build.arguments, way, at)
    if not first.acted:
        return "", [] if first.code == 0 else [f"nothing was done to it, and it failed: {first.err}"]
    problems = []
    if first.code != KILLED:
        problems += [f"the first run: {p}" for p in complaints(first)]
    problems += halves(world, build)
    if first.code == 0 and way not in ("full", "broken"):  # what cannot be removed must stay, until the next run
        problems += [f"after success: {d}" for d in _differences(world.results(), world.wanted(build))]
    keeps = "kill" in way or "interrupt" in way
    return first.acted, problems + _again(world, build, kept=at if keeps else 0)


def _changed(world: World, build: Build, change: str, at: int) -> tuple[str, list[str]]:
    first = world.server.run(build.arguments, "kill", at)
    if not first.acted:
        return "", []
    world.change_source(change)
    return first.acted, _again(world, build, change)


def _second(world: World, build: Build, at: int, *, kill: bool) -> tuple[str, list[str]]:
    first = world.server.run(build.arguments, "pause", at)
    if first.state == "ended":
        return "", [] if first.code == 0 else [f"nothing was done to it, and it failed: {first.err}"]
    second = world.server.run(build.arguments, patience=WAITS)
    first = world.server.kill(first) if kill else world.server.resume(first)
    if second.state != "ended":
        second = world.server.resume(second)
    problems = [f"the second build: {p}" for p in complaints(second)]
    if kill:
        return first.acted, problems + _again(world, build, kept=at if second.code else 0)
    problems += [f"the first build: {p}" for p in complaints(first)]
    if first.code and second.code:
        problems.append(f"both builds failed: {first.lines}, {second.lines}")
    return first.acted, problems + _differences(world.results(), world.wanted(build))


def _again(world: World, build: Build, change: str = "", kept: int = 0) -> list[str]:
    """Give the command again; what does not hold then.

    change: of a source since the first run.  kept: the operation at which that was stopped, if what it had finished
    should not be done again.
    """
    wanted, old = world.wanted(build, change), world.old(build)
    # once a file has its name, a command that overwrites it begins at the beginning
    named = any(_is_weights(path) and text != old.get(path) for path, text in world.results().items())
    run = world.server.run(build.arguments)
    problems = [f"the same command again: {p}" for p in complaints(run)]
    found = world.results()
    if run.code:
        return problems + list(refusal(world, build, run, found, change))
    if change:  # Ollama removes blobs when nothing refers to them
        found = {path: text for path, text in found.items() if path in wanted or not _is_blob(path, text)}
    if kept and not named:
        before = world.operations(build)[: kept - 1]
        allowed = _nbytes(world.operations(build)) - _nbytes(before) + SLACK
        if _nbytes(run.operations) > allowed:
            problems.append(
                f"the same command again wrote {_nbytes(run.operations)} bytes instead of {allowed}: work is lost"
            )
    return problems + _differences(found, wanted)


def complaints(run: Run) -> Iterator[str]:
    """What is wrong with the way in which a run ended."""
    if run.state != "ended":
        yield "it did not end"
        return
    if run.code not in (0, 1, 130):
        yield f"it ended with {run.code}"
    if any(word in run.err for word in ("Traceback", "Exception ignored", 'File "')):
        yield f"it wrote a traceback: {run.lines[-1]}"
    elif run.code and not run.lines:
        yield "it failed without a word"
    elif run.code and sum(line.startswith(("error:", "interrupted", "Abort")) for line in run.lines) != 1:
        yield f"it did not say in one line why it failed: {run.lines}"
    for name in run.raised:
        if name not in ("GgufmergeError", "KeyboardInterrupt", "SystemExit"):
            yield f"it raised {name}"


def refusal(world: World, build: Build, run: Run, found: Tree, change: str = "") -> Iterator[str]:
    """What is wrong with a command that fails because the result is there already.

    change: of a source since the first run; the result is then an old one, which is linked nowhere any more."""
    wanted = world.wanted(build)
    complete = {path for path in wanted if path.startswith("store/") or path.endswith(".gguf")}
    if change and build.name == "homes":
        complete = {path for path in complete if path.startswith("store/")}
    if build.overwrite or any(found.get(path) != wanted[path] for path in complete):
        yield f"the same command again failed: {run.lines}"
    yield from _differences(found, {p: t for p, t in wanted.items() if p in found})


def halves(world: World, build: Build) -> Iterator[str]:
    """What has a name that says it is complete, and is not."""
    found, old, new = world.results(), world.old(build), world.wanted(build)
    named = [path for path in {**old, **new} if path.startswith("out/") and not path.rpartition("/")[2].startswith(".")]
    for path in named:
        if path in found and found[path] not in (old.get(path), new.get(path)):
            yield f"{path} is neither the old one nor the new one"
        if path in old and path not in found and "-of-" not in path:
            yield f"{path} is gone and not replaced"
    shards = sorted(path for path in named if "-of-" in path)
    if shards and shards[0] in found:
        generation = old if found[shards[0]] == old.get(shards[0]) else new
        if any(found.get(path) != generation[path] for path in shards):
            yield "the first shard is there, but not all others of its set"
    try:
        if "store/manifests" in found:
            check_store(world.root / "store")
    except (AssertionError, OSError, ValueError) as error:
        yield f"Ollama cannot run what is in the store: {error}"
    for path in old:
        if path.startswith("store/") and path not in found:
            yield f"{path} is gone"


def _differences(found: Tree, wanted: Tree) -> list[str]:
    return (
        [f"{path} was left behind" for path in found if path not in wanted]
        + [f"{path} is missing" for path in wanted if path not in found]
        + [f"{path} has wrong bytes" for path in found if path in wanted and found[path] != wanted[path]]
    )


def _nbytes(operations: Sequence[Operation]) -> int:
    """Bytes written beside the result; what a plan needs for a moment is written each time."""
    return sum(operation.nbytes for operation in operations if not operation.path.startswith("tmp/"))


def _is_weights(path: str) -> bool:
    """Whether this is, or may be, a complete file of weights."""
    return ("/." not in path and path.endswith(".gguf")) or path.startswith("store/blobs/sha256-")


def _is_blob(path: str, text: str) -> bool:
    """Whether this is a blob that is what its name says: Ollama removes it when nothing refers to it."""
    match = re.fullmatch(r"store/blobs/sha256-([0-9a-f]{64})", path)
    return match is not None and match[1] == text


def _tree(root: Path, folder: str) -> Tree:
    tree = {}
    waiting = [folder]
    while waiting:
        above = waiting.pop()
        with os.scandir(root / above) as entries:
            for entry in entries:
                path = f"{above}/{entry.name}"
                if entry.is_symlink():
                    tree[path] = str(Path(entry.path).readlink())
                elif entry.is_dir():
                    tree[path] = "folder"
                    waiting.append(path)
                else:
                    tree[path] = _digest(_portable(Path(entry.path).read_bytes(), root))
    return tree


def _portable(data: bytes, root: Path) -> bytes:
    """What a file holds, whatever the folder of its world."""
    return data.replace(os.fsencode(root), _ROOT)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


Result = TypeVar("Result")


class Worlds:
    """Several worlds, one for each processor."""

    def __init__(self, folder: Path, count: int) -> None:
        known = Known()
        with ThreadPoolExecutor(count) as pool:
            self.all = list(pool.map(lambda i: World(folder / str(i), known), range(count)))
        self._free: SimpleQueue[World] = SimpleQueue()
        for world in self.all:
            self._free.put(world)

    def close(self) -> None:
        for world in self.all:
            world.close()

    def disturb(self, build: Build, way: str, moments: Sequence[int]) -> list[str]:
        """What `disturb` finds at any of the moments, as many at a time as there are worlds."""
        with ThreadPoolExecutor(len(self.all)) as pool:
            found = pool.map(lambda at: self.do(lambda world: disturb(world, build, way, at)), moments)
            return [problem for problems in found for problem in problems]

    def do(self, task: Callable[[World], Result]) -> Result:
        """Run a task in a world that is free."""
        world = self._free.get()
        try:
            return task(world)
        finally:
            self._free.put(world)
