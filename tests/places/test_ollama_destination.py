"""Where a model for Ollama goes, and under which name: what `ollama run` then finds, asked of the server itself."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ggufmerge.errors import PlanError
from ggufmerge.places.ollama import server as ollama_api
from ggufmerge.places.ollama import store as ollama
from ggufmerge.places.ollama.destination import destination, install
from ggufmerge.places.ollama.names import OllamaName
from ggufmerge.places.ollama.publish import Store, manifest_digests
from ggufmerge.places.ollama.server import Server
from ggufmerge.places.ollama.store import OllamaSettings
from tests.ollama_store import add_model, check_store, layers_of, snapshot
from tests.places.ollama_rules import GRACE, Ollama, Refused
from tests.places.ollama_server import OllamaServer, ollama_server

SETTINGS = OllamaSettings(template="{{ .Prompt }}", licenses=("MIT",))
OTHER = 54321  # a user who is neither the one of the tests nor root


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, root: Path | None, uid: int | None = None) -> Iterator[OllamaServer]:
    """A server at the address that Ollama has when nobody says another."""
    with ollama_server(root=root, uid=uid) as server, monkeypatch.context() as patch:
        patch.setattr(ollama_api, "_PORT", server.server_port)
        yield server


def finds(root: Path, name: str, weights: bytes, times: int = 40) -> None:
    """Assert that the server of a store finds a model of these weights under a name, whatever its order of names is."""
    server = Ollama(root)
    for _ in range(times):
        (layer,) = (e for e in server.find(name).entries if e["mediaType"].endswith("image.model"))
        assert (root / "blobs" / layer["digest"].replace(":", "-")).read_bytes() == weights


def tree(root: Path) -> set[str]:
    """Files and folders."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# names


@pytest.mark.parametrize(
    ("theirs", "ours", "name"),
    [
        ("hf.co/o/r/Q4_K_M", "mine:q4_k_m", "mine:Q4_K_M"),
        ("registry.ollama.ai/acme/Foo/latest", "foo", "Foo:latest"),
        ("registry.ollama.ai/Team/a/1", "hf.co/team/b:1", "hf.co/Team/b:1"),
        ("HF.co/o/r/1", "hf.co/x/y:2", "HF.co/x/y:2"),
        ("registry.ollama.ai/library/x/Latest", "mine", "mine:Latest"),
    ],
)
def test_a_new_name_harms_no_other(store: Path, model: Path, theirs: str, ours: str, name: str) -> None:
    """Beside a model that has one of its parts in other case, both are found, every time, in any spelling."""
    add_model(store, theirs, b"GGUF theirs")
    done = install(model, ours)
    assert done.name == name
    for spelling in (ours, ours.upper(), name):
        finds(store, spelling, model.read_bytes())
    *path, tag = theirs.split("/")
    finds(store, f"{'/'.join(path)}:{tag}", b"GGUF theirs")
    check_store(store)


def test_the_name_is_looked_up_when_it_is_written(store: Path, model: Path) -> None:
    """Others may make models while a merge takes its time."""
    place = destination("mine:q4_k_m")
    add_model(store, "hf.co/o/r/Q4_K_M", b"GGUF theirs")
    assert place.add(model, SETTINGS).name == "mine:Q4_K_M"
    finds(store, "mine:q4_k_m", model.read_bytes())


def test_two_spellings_are_warned_of_with_a_remedy_that_helps(store: Path, model: Path) -> None:
    """The line names a path and what to rename it to; when that is done, all models are found again."""
    add_model(store, "hf.co/o/r/Q4_K_M", b"GGUF theirs")
    add_model(store, "mine/q4_k_m", b"GGUF mine")
    place = destination("other:q4_K_m")
    (note,) = place.notes
    assert (
        "and hf.co/o/r:Q4_K_M and mine:q4_k_m do in their tag, so it finds models of either spelling only somet" in note
    )
    old, new = note.rpartition("; rename ")[2].split(" to ")
    Path(old).rename(new)
    place = destination("other:q4_K_m")
    assert not place.notes
    place.add(model, SETTINGS)
    finds(store, "mine:q4_k_m", b"GGUF mine")
    finds(store, "hf.co/o/r:q4_k_m", b"GGUF theirs")
    finds(store, "other:q4_k_m", model.read_bytes())


def test_two_folders_are_put_together(store: Path) -> None:
    """Where both spellings are folders of one folder."""
    add_model(store, "foo/1", b"GGUF one")
    add_model(store, "Foo/2", b"GGUF two")
    (note,) = destination("foo:3").notes
    old, new = (Path(text) for text in note.rpartition("; move what is in ")[2].split(" to "))
    for path in old.iterdir():
        path.rename(new / path.name)
    finds(store, "foo:1", b"GGUF one")
    finds(store, "foo:2", b"GGUF two")


def test_a_server_says_how_it_spells_the_name(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP the server chooses, and what it has chosen is told."""
    with ollama_server() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        add_model(server.ollama.root, "hf.co/o/r/Q4_K_M", b"GGUF theirs")
        assert install(model, "mine:q4_k_m").name == "mine:Q4_K_M"
        finds(server.ollama.root, "mine:q4_k_m", model.read_bytes())
        add_model(server.ollama.root, "y/q4_k_m", b"GGUF theirs")
        (note,) = destination("z:q4_k_m").notes
        assert "copy y:q4_k_m to another name (ollama cp) and remove it (ollama rm), each until it succeeds" in note
        for work in (lambda: server.ollama.copy("y:q4_k_m", "y:q4"), lambda: server.ollama.delete("y:q4_k_m")):
            while True:
                try:
                    work()
                    break
                except Refused:  # it has looked for the other spelling
                    continue
        assert not destination("z:q4_k_m").notes
        finds(server.ollama.root, "hf.co/o/r:Q4_K_M", b"GGUF theirs")
        finds(server.ollama.root, "y:q4", b"GGUF theirs")


# the right store


def test_the_servers_own_store_is_written(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With models in it or without; the server is asked whether it has the model."""
    with serving(monkeypatch, store) as server:
        for name in ("first", "second"):
            done = install(model, name)
            assert (done.place, done.seen) == (str(store), True)
            finds(store, name, model.read_bytes())
        assert not server.models, "nothing was sent"


def test_a_server_with_other_models_has_another_store(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a service's beside a folder of the user's own, empty or not: the model goes where `ollama run` looks."""
    for _ in range(2):
        before = tree(store)
        with serving(monkeypatch, None) as server:
            add_model(server.ollama.root, "theirs/latest", b"GGUF theirs")
            place = destination("mine")
            assert [*place.notes] == [
                f"the Ollama server at {server.url} runs from another store than {store}, so the model is sent to it"
            ]
            done = place.add(model, SETTINGS)
            assert (done.place, done.seen) == (server.url, True)
            finds(server.ollama.root, "mine", model.read_bytes())
        assert tree(store) == before
        add_model(store, "mine/other", b"GGUF mine")


def test_the_service_store_may_be_the_servers(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the user has one, too: of all stores that may be written the one is taken that has the server's models."""
    service = tmp_path / "service"
    monkeypatch.setattr(ollama, "SERVICE_ROOT", service)
    add_model(home / ".ollama/models", "mine/latest", b"GGUF mine")
    add_model(service, "theirs/latest", b"GGUF theirs")
    with serving(monkeypatch, service):
        assert install(model, "m").place == str(service)
    with serving(monkeypatch, home / ".ollama/models"):
        assert install(model, "m").place == str(home / ".ollama/models")


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "moved"])
def test_two_empty_stores_are_told_apart_afterwards(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    """The server is asked for the model when it is there; else it gets it, and the store is as it was."""
    if not linked:
        monkeypatch.setattr(os, "link", _no_links)
    with serving(monkeypatch, None) as server:
        place = destination("mine")
        assert isinstance(place, Store)
        before = tree(store)
        mine = place.workplace()
        shutil.copy(model, mine)
        done = place.add(mine, SETTINGS, move=True)
        assert done.place == server.url
        assert mine.read_bytes() == model.read_bytes(), "the caller removes it"
        mine.unlink()
        finds(server.ollama.root, "mine", model.read_bytes())
        assert tree(store) - {"blobs"} == before
        assert any("runs from another store" in note for note in place.notes)


def _no_links(*arguments: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_copy_of_the_servers_store_is_no_place_for_a_model(
    store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same models; what was replaced in it comes back, and nothing else is touched."""
    add_model(store, "theirs/latest", b"GGUF theirs", [("license", "MIT")])
    shutil.copytree(store, tmp_path / "copy")
    before = snapshot(store)
    with serving(monkeypatch, tmp_path / "copy") as server:
        done = install(model, "theirs", SETTINGS, overwrite=True)
        assert done.place == server.url
        finds(tmp_path / "copy", "theirs", model.read_bytes())
    assert snapshot(store) == before
    finds(store, "theirs", b"GGUF theirs")


def test_when_the_server_does_not_take_it_both_places_are_named(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the wrong store has no model that nobody would find."""
    with serving(monkeypatch, None) as server:
        server.troubles.add("no room")
        with pytest.raises(PlanError, match="no space left") as caught:
            install(model, "mine")
        assert str(store) in str(caught.value)
        assert server.url in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert not any(path.is_file() for path in store.rglob("*"))


def test_without_a_server_the_store_is_all_there_is(store: Path, model: Path) -> None:
    """And nobody can say that it is the server's."""
    done = install(model, "mine")
    assert (done.place, done.seen) == (str(store), False)


def test_a_model_whose_blobs_are_gone_is_not_listed(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server leaves it out, so it says nothing about whose store this is."""
    add_model(store, "whole/latest", b"GGUF whole")
    broken = add_model(store, "broken/latest", b"GGUF broken", config={"model_family": "gone"})
    config = Ollama(store).find("broken").content["config"]["digest"]
    (store / "blobs" / config.replace(":", "-")).unlink()
    with serving(monkeypatch, store):
        assert install(model, "mine").place == str(store)
    assert broken.exists()


def test_the_digest_that_ollama_gives_is_known(tmp_path: Path) -> None:
    """Its decoder does not read the line break behind a manifest that ends where a buffer does."""
    for size in (511, 512, 513, 1535, 1536, 1537, 2000):
        path = add_model(tmp_path, "m/latest", b"GGUF")
        text = path.read_text().rstrip()
        path.write_text(text[:-1] + " " * (size - len(text)) + "}\n")
        assert Ollama(tmp_path).find("m").digest in manifest_digests(path.read_bytes())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (Ollama(tmp_path).find("m").digest == digest) == (size not in (512, 1536))


def test_what_waits_for_a_server_is_not_built_elsewhere(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier run has built it for a server that is down now."""
    monkeypatch.chdir(tmp_path)
    waiting = Server("http://x", OllamaName.parse("Mine")).workplace()
    waiting.write_bytes(b"GGUF")
    with pytest.raises(
        PlanError, match=f"start it to have {waiting.name} sent, which an earlier run has built for it, or"
    ):
        destination("mine")
    assert isinstance(destination("other"), Store)


# owners and modes


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid, raising=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no user numbers")
def test_a_store_of_another_user_is_used_through_its_server_only(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where its folders may be written, as by a group or by root."""
    add_model(store, "theirs/latest", b"GGUF theirs")
    with serving(monkeypatch, store) as server:
        as_user(monkeypatch, OTHER)
        assert install(model, "mine").place == server.url
    before = tree(store)
    with pytest.raises(
        PlanError, match=rf"{store} belongs to .*, not to user {OTHER}, .*start Ollama .*store of your own"
    ):
        destination("more")
    as_user(monkeypatch, 0 if os.getuid() else OTHER)
    with pytest.raises(PlanError, match=f"{store} belongs to "):
        install(model, "more")
    assert tree(store) == before


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("part", ["", "blobs", "manifests", "manifests/registry.ollama.ai/library", "blobs/*"])
def test_any_part_of_a_store_may_be_anothers(store: Path, model: Path, part: str) -> None:
    """The folders that matter, as far as they are there; and all blobs together."""
    add_model(store, "theirs/latest", b"GGUF theirs")
    for path in store.glob(part) if part else [store]:
        os.chown(path, OTHER, OTHER)
    with pytest.raises(PlanError, match=f"belongs to user {OTHER}"):
        destination("mine")
    with pytest.raises(PlanError, match=f"belongs to user {OTHER}"):
        install(model, "mine")


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root can give files away")
def test_root_makes_no_store_in_a_folder_of_a_users(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sudo would, with OLLAMA_MODELS kept."""
    os.chown(home, OTHER, OTHER)
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "models"))
    with pytest.raises(PlanError, match=f"{home} belongs to user {OTHER}"):
        destination("mine")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    assert isinstance(destination("mine"), Store)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no user numbers")
def test_blobs_of_another_user_are_mines(store: Path, model: Path) -> None:
    """Why: a server that runs as somebody else cannot create, copy from or remove what has such files."""
    install(model, "mine", SETTINGS)
    server = Ollama(store, uid=OTHER)
    with pytest.raises(Refused, match=r"chtimes \S+: operation not permitted"):
        server.create({"model": "new", "from": "mine"})
    with pytest.raises(Refused, match=r"chtimes \S+: operation not permitted"):
        server.create({"model": "unrelated", "license": ["MIT"]})
    with pytest.raises(Refused, match=r"remove \S+: permission denied"):
        server.delete("mine")


@pytest.fixture
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("move", [True, False])
def test_modes_are_ollamas_whatever_the_umask(
    store: Path, model: Path, tmp_path: Path, private_umask: None, move: bool
) -> None:
    """So that a server of another user sees the model, and its start, an hour later, takes nothing away."""
    place = Store(store, OllamaName.parse("hf.co/o/mine:1"))
    mine = place.workplace() if move else tmp_path / "mine.gguf"
    mine.write_bytes(model.read_bytes())
    place.add(mine, SETTINGS, move=move)
    if move:
        mine.unlink()
    else:
        assert mine.stat().st_mode & 0o777 == 0o600, "the user's own file keeps its mode"
    for path in store.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
        os.utime(path, (1e9, 1e9))
    before = snapshot(store)
    server = Ollama(store, uid=OTHER)
    server.own |= {store, store / "blobs", store / "manifests"}
    server.start()
    assert snapshot(store) == before
    assert [entry["name"] for entry in server.tags()] == ["hf.co/o/mine:1"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_folder_that_a_crash_left_private_is_opened(store: Path, model: Path) -> None:
    """An empty one is nobody's wish; what has something in it stays as it is."""
    empty, full = store / "manifests/registry.ollama.ai/library/mine", store / "manifests/registry.ollama.ai"
    empty.mkdir(parents=True)
    empty.chmod(0o700)
    full.chmod(0o700)
    install(model, "mine")
    assert (empty.stat().st_mode & 0o777, full.stat().st_mode & 0o777) == (0o755, 0o700)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_link_is_made_where_it_does_no_harm(store: Path, model: Path, tmp_path: Path) -> None:
    """A file that everybody may read is linked, whatever else its mode is; space is asked for where it is not."""
    mine = tmp_path / "mine.gguf"
    shutil.copy(model, mine)
    mine.chmod(0o664)
    install(mine, "mine")
    assert (store / "blobs" / f"sha256-{hashlib.sha256(mine.read_bytes()).hexdigest()}").samefile(mine)
    assert mine.stat().st_mode & 0o777 == 0o664


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_copy_needs_space(store: Path, tmp_path: Path, private_umask: None) -> None:
    """Where the umask keeps files private, known before work starts."""
    with pytest.raises(PlanError, match=r"the model needs 1152921504\.6 GB there but"):
        Store(store, OllamaName.parse("m")).check_space(tmp_path, 1 << 60)


def test_pruning_knows_no_mercy(store: Path, model: Path) -> None:
    """The rules that the tests rely on: old blobs of a model that cannot be seen go, and with a damaged one none."""
    path = add_model(store, "hidden/latest", b"GGUF hidden")
    for blob in (store / "blobs").iterdir():
        os.utime(blob, (1e9, 1e9))
    path.parent.chmod(0o700)
    if os.name != "nt":
        server = Ollama(store, uid=OTHER)
        server.own |= {store, store / "blobs", store / "manifests"}
        server.start()
        assert not list((store / "blobs").iterdir())
    path.parent.chmod(0o755)
    add_model(store, "seen/latest", b"GGUF seen")
    path.write_text("{")
    (store / "blobs/sha256-123-partial").write_bytes(b"half")
    os.utime(store / "blobs/sha256-123-partial", (1e9, 1e9))
    before = tree(store)
    Ollama(store).start()
    assert tree(store) == before
    path.unlink()
    Ollama(store).start()
    assert tree(store) < before
    finds(store, "seen", b"GGUF seen")
    assert GRACE == 3600


# what the disk says


@pytest.mark.parametrize(
    "part",
    [
        "blobs",
        "manifests",
        "manifests/registry.ollama.ai",
        "manifests/registry.ollama.ai/library",
        "manifests/registry.ollama.ai/library/mine",
    ],
)
def test_what_cannot_be_written_is_known_before_work_starts(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Each folder on the way, as far as it is there; with a server the model is sent."""
    (store / part).mkdir(parents=True)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != store / part and real(path, mode))
    with pytest.raises(PlanError, match=f"{store / part} is not writable, and no Ollama server"):
        destination("mine")
    with serving(monkeypatch, store) as server:
        assert install(model, "mine").place == server.url


def test_a_file_where_a_folder_belongs(store: Path) -> None:
    """Is in the way."""
    (store / "manifests").mkdir()
    (store / "manifests/registry.ollama.ai").write_text("")
    with pytest.raises(PlanError, match=r"registry\.ollama\.ai is not a folder"):
        destination("mine")


def test_what_the_disk_refuses_in_the_end_is_sent(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing showed it before; without a server it is the error."""

    def refuse(self: Store, path: Path, data: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Store, "_replace", refuse)
    with pytest.raises(PlanError, match=r"library/mine/latest: cannot be written \(Permission denied\)"):
        install(model, "mine")
    with serving(monkeypatch, store) as server:
        place = destination("mine")
        assert place.add(model, SETTINGS).place == server.url
        assert any("cannot be written (Permission denied)" in note for note in place.notes)
        finds(store, "mine", model.read_bytes())


def test_empty_folders_may_go_at_any_time(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every `ollama rm` the server removes all of them, also the one that a manifest is about to be put into."""
    real, left = Store._replace, [1]

    def replace(self: Store, path: Path, data: bytes) -> None:
        if left:
            left.pop()
            Ollama(store)._remove_empty(store / "manifests")
        real(self, path, data)

    monkeypatch.setattr(Store, "_replace", replace)
    install(model, "mine")
    finds(store, "mine", model.read_bytes())


# the server's version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.30.1", (0, 30, 1)),
        ("0.5.13-rc2", (0, 5, 13)),
        ("v1.2", (1, 2)),
        ("0.9.6-ipex-llm", (0, 9, 6)),
        ("unknown", None),
        ("", None),
    ],
)
def test_versions(home: Path, text: str, expected: tuple[int, ...] | None) -> None:
    """As numbers that compare."""
    with ollama_server() as server:
        server.version = text
        assert Server(server.url, OllamaName.parse("m")).version() == expected


def test_a_version_that_is_none_is_new(home: Path) -> None:
    """0.0.0 is what builds without a number say; nobody's answer is None."""
    with ollama_server() as server:
        asked = Server(server.url, OllamaName.parse("m"))
        server.version = "0.0.0"
        version: Any = asked.version()
        assert version > (0, 30)
    assert asked.version() is None


def test_a_store_keeps_what_others_made_meanwhile(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that this run has made, and another model has come to need, stays when the run takes its own back."""
    real = Server.lists

    def lists(self: Server, *arguments: Any) -> bool | None:
        add_model(store, "theirs/latest", model.read_bytes(), [("license", "MIT")])
        return real(self, *arguments)

    monkeypatch.setattr(Server, "lists", lists)
    with serving(monkeypatch, None) as server:
        assert install(model, "mine", SETTINGS).place == server.url
    finds(store, "theirs", model.read_bytes())
    assert layers_of(store, "theirs/latest")["license"] == [b"MIT"]
    check_store(store)
