"""Models written straight into an Ollama store: manifests, configurations and blobs check out, whatever happens."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.chat.jinja import Message
from ggufmerge.errors import PlanError
from ggufmerge.files import MetadataEditor, open_gguf
from ggufmerge.files.metadata import ValueKind
from ggufmerge.places.ollama import publish as sink
from ggufmerge.places.ollama.destination import destination, install
from ggufmerge.places.ollama.modelfile import write_modelfile
from ggufmerge.places.ollama.publish import Store, human_number
from ggufmerge.places.ollama.settings import refusals
from ggufmerge.places.ollama.store import OllamaName, OllamaSettings
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.types import TensorType
from tests.chat.go_template import execute
from tests.ollama_store import add_model, check_store, layers_of, snapshot
from tests.places.modelfiles import read_modelfile
from tests.tiny import write_tiny_llama

SETTINGS = OllamaSettings(
    template='{{ .Prompt }}\n"',
    system="Be brief.",
    parameters={"stop": ["</s>"], "num_ctx": 8192},
    licenses=("MIT", "Llama"),
    messages=({"role": "user", "content": "Hi"},),
    renderer="r",
    requires="0.14.0",
)


def test_a_model_is_what_ollama_would_have_made(store: Path, model: Path) -> None:
    """Manifest, configuration and blobs: digests, sizes, media types and the keys that Ollama reads."""
    done = install(model, "merged:v1", SETTINGS)
    check_store(store)
    found = layers_of(store, "merged/v1")
    assert found["model"] == [model.read_bytes()]
    assert found["template"] == [b'{{ .Prompt }}\n"']
    assert found["system"] == [b"Be brief."]
    assert found["license"] == [b"MIT", b"Llama"]
    assert json.loads(found["params"][0]) == {"stop": ["</s>"], "num_ctx": 8192}
    assert json.loads(found["messages"][0]) == [{"role": "user", "content": "Hi"}]
    assert json.loads(found["config"][0]) == {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": human_number(sum(t.size for t in ggufmerge.open(model).tensors.values())),
        "file_type": "F32",
        "renderer": "r",
        "requires": "0.14.0",
        "architecture": "amd64",
        "os": "linux",
    }
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert (done.name, done.place, done.digest) == ("merged:v1", str(store), f"sha256:{digest}")
    manifest = store / "manifests/registry.ollama.ai/library/merged/v1"
    assert manifest.read_bytes().count(b"\n") == 1
    assert [p.name for p in (store / "blobs").iterdir() if len(p.name) != 71] == []
    if os.name != "nt":
        assert {p.stat().st_mode & 0o044 for p in (store / "blobs").iterdir()} == {0o044}, "a service reads them, too"


def test_what_was_installed_can_be_merged(store: Path, model: Path) -> None:
    """The reading side finds what the writing side wrote, settings and all."""
    install(model, "merged", SETTINGS)
    source = open_source(ModelReference.parse("ollama:merged"))
    assert source.located.settings == SETTINGS
    assert source.file.tensors.keys() == ggufmerge.open(model).tensors.keys()


def test_a_plain_model_brings_its_stop_and_its_licence(store: Path, model: Path) -> None:
    """And its chat template in Ollama's language, as its Modelfile does."""
    install(model, "plain")
    found = layers_of(store, "plain/latest")
    assert json.loads(found["params"][0]) == {"stop": ["<|im_end|>"]}
    assert found["license"] == [b"apache-2.0"]
    template = found["template"][0].decode()
    assert execute(template, [Message("user", "Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert ("template", template) in read_modelfile(write_modelfile(model, overwrite=True).read_text())


def test_the_file_is_not_copied(store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is linked where that is possible, and copied elsewhere; it stays what and where it was."""
    before = model.read_bytes()
    install(model, "linked")
    blob = store / "blobs" / f"sha256-{hashlib.sha256(before).hexdigest()}"
    assert blob.samefile(model)
    blob.unlink()

    def no_links(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    install(model, "copied")
    assert not blob.samefile(model)
    assert model.read_bytes() == blob.read_bytes() == before
    check_store(store)


def test_names_fall_together_whatever_their_case(store: Path, model: Path) -> None:
    """Ollama ignores case: a taken name is refused or overwritten where it is, and folders are not doubled."""
    install(model, "Someone/Model:V1")
    with pytest.raises(PlanError, match=r"Someone/Model:V1: Ollama has a model of this name: use --overwrite"):
        install(model, "someone/model:v1")
    install(model, "someone/model:v1", overwrite=True)
    install(model, "SOMEONE/Other")
    assert sorted(p.name for p in (store / "manifests/registry.ollama.ai").iterdir()) == ["Someone"]
    assert sorted(p.name for p in (store / "manifests/registry.ollama.ai/Someone").iterdir()) == ["Model", "Other"]
    assert [p.name for p in (store / "manifests/registry.ollama.ai/Someone/Model").iterdir()] == ["V1"]


def test_nothing_of_others_is_touched(store: Path, model: Path) -> None:
    """Other models, their blobs, unfinished downloads and strays stay, bytes and times, also on overwriting."""
    add_model(store, "theirs/latest", b"GGUF other", [("license", "MIT"), ("system", "s")])
    (store / "blobs/sha256-123-partial").write_bytes(b"half")
    (store / "notes.txt").write_bytes(b"mine")
    for path in store.rglob("*"):
        os.utime(path, (1e9, 1e9))
    before = snapshot(store)
    install(model, "theirs", SETTINGS, overwrite=True)
    after = snapshot(store)
    changed = [name for name, data in before.items() if after.get(name) != data]
    assert changed == [str(Path("manifests/registry.ollama.ai/library/theirs/latest"))]
    assert all((store / name).stat().st_mtime == 1e9 for name in before if name not in changed)


def test_a_blob_that_is_there_is_used(store: Path, model: Path) -> None:
    """The same model under a second name takes no space; a damaged blob is refused, never replaced."""
    install(model, "one", SETTINGS)
    blobs = {p.name for p in (store / "blobs").iterdir()}
    install(model, "two", SETTINGS)
    assert {p.name for p in (store / "blobs").iterdir()} == blobs
    blob = store / "blobs" / f"sha256-{hashlib.sha256(model.read_bytes()).hexdigest()}"
    blob.unlink()
    blob.write_bytes(b"GGUF")
    with pytest.raises(PlanError, match=r"has 4 of \d+ bytes, so it is damaged: delete it"):
        install(model, "three", SETTINGS)
    assert blob.read_bytes() == b"GGUF"


class Killed(BaseException):
    """What a power cut is like: nothing can be written any more, not even by whoever cleans up."""


STEPS = [(os, "mkdir"), (os, "fsync"), (os, "link"), (os, "replace"), (os, "unlink"), (os, "chmod"), (io, "open")]


@contextmanager
def tripping(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, *, dead: bool) -> Iterator[list[str]]:
    """Let the `at`-th change of the file system fail with `error`, and, if `dead`, every one after it, too."""
    done: list[str] = []

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            writes = name != "open" or any(c in str(arguments[1:2] or options.get("mode", "")) for c in "wxa+")
            if writes:
                done.append(name)
                if len(done) == at or (dead and len(done) > at):
                    raise error
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in STEPS:
            patch.setattr(module, name, wrapped(name, getattr(module, name)))
        yield done


def test_a_crash_at_any_step_is_harmless(
    store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any change of the file system: every name in the store leads to a whole model, what was there is
    there, what is left over Ollama will remove, and the same command then works.
    """
    add_model(store, "theirs/latest", b"GGUF other", [("license", "MIT")])
    add_model(store, "merged/latest", b"GGUF old")
    before = snapshot(store)
    old = before[str(Path("manifests/registry.ollama.ai/library/merged/latest"))]
    for move in (True, False):
        at = 0
        while True:
            at += 1
            mine = tmp_path / f"{move}-{at}.gguf"
            place = Store(store, OllamaName.parse("merged"), overwrite=True)
            if move:
                mine = place.workplace()
            mine.write_bytes(model.read_bytes())
            with tripping(monkeypatch, at, Killed(), dead=True) as done, suppress(Killed):
                place.add(mine, SETTINGS, move=move)
            if len(done) < at:
                break
            check_store(store)
            after = snapshot(store)
            manifest = after.pop(str(Path("manifests/registry.ollama.ai/library/merged/latest")))
            assert manifest == old or json.loads(manifest)["layers"][0]["size"] == model.stat().st_size
            assert all(after[name] == data for name, data in before.items() if name in after)
            assert before.keys() - after.keys() <= {str(Path("manifests/registry.ollama.ai/library/merged/latest"))}
            for path in (p for p in store.rglob("*") if p.is_file() and str(p.relative_to(store)) not in before):
                assert path.parent == store / "blobs", f"{path}: Ollama would not remove it"
            if move and not mine.exists():
                mine.write_bytes(model.read_bytes())
            place.add(mine, SETTINGS, move=move)
            check_store(store)
            assert layers_of(store, "merged/latest")["model"] == [model.read_bytes()]
            for path in (store / "blobs").iterdir():  # so that the next round has every step again
                if str(path.relative_to(store)) not in before:
                    path.unlink()
            (store / "manifests/registry.ollama.ai/library/merged/latest").write_bytes(old)
        assert at > 15


def test_an_error_at_any_step_leaves_no_temporary_file(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is one line that names what could not be written, and the name does not appear."""
    at, messages = 0, []
    while True:
        at += 1
        place = Store(store / str(at), OllamaName.parse("merged"))
        add_model(place.root, "theirs/latest", b"GGUF other")
        with tripping(monkeypatch, at, OSError(errno.ENOSPC, "No space left on device"), dead=False) as done:
            try:
                place.add(model, SETTINGS)
            except PlanError as error:
                messages.append(str(error))
        if len(done) < at:
            break
        assert not list((place.root / "blobs").glob(".*"))
        check_store(place.root)
    assert at > 15
    assert sum("the model needs" in message for message in messages) > 10
    assert all(str(store) in message and len(message.splitlines()) == 1 for message in messages)


def test_blobs_on_a_disk_of_their_own(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest cannot be renamed into place from there: it is written where Ollama does not look for names."""
    real = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        if ("blobs" in str(source)) != ("blobs" in str(target)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    install(model, "merged")
    check_store(store)
    assert not list((store / "manifests").glob(".*"))


def test_a_blob_that_a_starting_server_removes_is_noticed(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ollama removes old blobs that nothing refers to; one that was about to be used is missed."""
    real = Store._write_manifest

    def prune(self: Store, path: Path, data: bytes) -> None:
        real(self, path, data)
        next((store / "blobs").iterdir()).unlink()

    monkeypatch.setattr(Store, "_write_manifest", prune)
    with pytest.raises(PlanError, match=r"Ollama removed sha256:.* meanwhile; give the same command again"):
        install(model, "merged")


def test_the_users_store_then_the_services(home: Path, model: Path, tmp_path: Path) -> None:
    """Where there is no OLLAMA_MODELS, the first store that can be written; none is made where Ollama never was."""
    with pytest.raises(PlanError, match=r"there is no Ollama store here, and no Ollama server answers at http://127"):
        destination("m")
    assert not (home / ".ollama").exists()
    (tmp_path / "no service").mkdir()
    assert str(destination("m")) == str(tmp_path / "no service")
    (home / ".ollama/models").mkdir(parents=True)
    assert str(destination("m")) == str(home / ".ollama/models")


def test_a_store_of_somebody_else(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a service's: without a server the message has both ways out."""
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(store)))
    with pytest.raises(PlanError, match=r"is not writable, and no Ollama server .*: start Ollama .*or write a file"):
        destination("m")


def test_space_for_a_copy_is_asked_for_before_work_starts(store: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Only a file on another disk has to be copied into the store."""
    place = Store(store, OllamaName.parse("m"))
    place.check_space(tmp_path, 1 << 60)
    monkeypatch.setattr(sink, "_device", lambda path: str(path))
    with pytest.raises(PlanError, match=r"the model needs 1152921504\.6 GB there but"):
        place.check_space(tmp_path, 1 << 60)


@pytest.mark.parametrize("name", ["", "a/b/c/d", "-x", "x:", "x y", "näme"])
def test_names_that_ollama_would_not_take(store: Path, name: str) -> None:
    """Are refused before work starts."""
    with pytest.raises(PlanError, match="cannot be the name of an Ollama model"):
        destination(name)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_types_that_ollama_does_not_know(store: Path, tmp_path: Path, kind: str) -> None:
    """llama.cpp reads them."""
    write_tiny_llama(tmp_path / "m.gguf", layers=1, embed=256, ff=256, type=kind)
    with pytest.raises(PlanError, match=rf"Ollama would refuse the result: \S+ is {kind}, a type that Ollama does not"):
        install(tmp_path / "m.gguf", "m")
    assert not list(store.rglob("*"))


@pytest.mark.parametrize("kind", [t for t in TensorType if t.is_quantized or t.is_float])
def test_all_other_types_are_fine(kind: TensorType) -> None:
    """Of those that can be written."""
    unknown = {TensorType.Q2_0, TensorType.TQ1_0, TensorType.TQ2_0}
    assert bool(refusals({"t": kind}, MetadataEditor())) == (kind in unknown)


@pytest.mark.parametrize(
    ("value", "kind", "complaint"),
    [
        ("x" * ((16 << 20) + 1), None, "a text of 16777217 bytes"),
        (["short", "é" * (8 << 20) + "x"], None, "a text of 16777217 bytes"),
        (np.zeros((64 << 20) + 1, np.uint8), None, "has 67108865 elements"),
        (1, ValueKind.U8, ""),
        (1, ValueKind.I16, ""),
        (1.0, ValueKind.F64, ""),
        (1, ValueKind.U32, ""),
        ("x" * (16 << 20), None, ""),
        (np.zeros(64 << 20, np.int8), None, ""),
        (["é" * (8 << 20)] * 2, None, ""),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 99 else "",
)
def test_metadata_that_ollama_refuses(value: Any, kind: ValueKind | None, complaint: str) -> None:
    """Its parser has limits that llama.cpp does not have; numbers of every kind are fine."""
    metadata = MetadataEditor()
    metadata.set("some.key", value, kind)
    found = "\n".join(refusals({}, metadata))
    assert (complaint in found and "some.key" in found) if complaint else not found


def test_shards_are_refused(store: Path, model: Path, tmp_path: Path) -> None:
    """The store keeps a model in one file."""
    file = open_gguf(model)
    file.paths = file.paths * 2
    with pytest.raises(PlanError, match="is split into 2 shards; Ollama takes one file"):
        sink.check_file(file)


def test_numbers_are_shown_as_ollama_shows_them() -> None:
    """As in `ollama show`."""
    shown = {999: "999", 1500: "2K", 134_515_008: "134.52M", 7_000_000: "7M", 3_212_749_888: "3.2B", 8 * 10**9: "8B"}
    assert {n: human_number(n) for n in shown} == shown


def test_the_workplace_is_in_the_store_and_no_blob(store: Path) -> None:
    """Its name is the same for the same model, so a build goes on there, and has no colon, which Windows lacks."""
    path = Store(store, OllamaName.parse("localhost:5000/a/b")).workplace()
    assert path == store / "blobs" / "ggufmerge-localhost-5000-a-b-latest.gguf"


@pytest.mark.parametrize(
    ("kind", "said"), [("adapter", "FROM BASE and ADAPTER ./m.gguf"), ("mmproj", "is not a model")]
)
def test_only_models_are_installed(store: Path, tmp_path: Path, kind: str, said: str) -> None:
    """An adapter needs a base, which its Modelfile names."""
    write_tiny_llama(tmp_path / "m.gguf", layers=1, embed=32, ff=32, metadata={"general.type": kind})
    with pytest.raises(PlanError, match=said):
        install(tmp_path / "m.gguf", "m")
    assert not list(store.iterdir())
