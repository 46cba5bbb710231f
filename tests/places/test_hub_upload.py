"""Uploads to the Hub, through huggingface_hub to a server of its API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.errors import PlanError
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import split_gguf
from ggufmerge.places.hub.upload import plan_upload, push
from tests import hub_server
from tests.hub_server import TOKEN, HubServer, Repo, forget, use
from tests.tiny import write_tiny_llama

NAME = "Tiny-78K-v1.0-F32.gguf"


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server.running() as server:
        yield server


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub without repositories, where the user is logged in."""
    use(server.url, tmp_path / "home", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.repos, server.broken = {}, False
    server.requests.clear()
    server.uploads.clear()
    return server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "out.gguf", layers=1, metadata={"general.name": "Tiny"})
    return tmp_path / "out.gguf"


def test_a_model_and_its_card_are_one_commit(hub: HubServer, model: Path) -> None:
    """In a new repository, under a conventional name; the address of the commit is given."""
    upload = plan_upload(model, "me/tiny")
    url = push(upload, private=True, message="First")
    repo = hub.repos["me/tiny"]
    assert upload.card is not None
    assert repo.revisions["main"] == {NAME: model.read_bytes(), "README.md": upload.card.encode()}
    assert NAME in upload.card
    assert (repo.private, repo.commits) == (True, ["First"])
    assert url == f"{hub.url}/me/tiny/commit/{hub_server.COMMIT}"


def test_all_shards_are_uploaded(hub: HubServer, model: Path, tmp_path: Path) -> None:
    """In the same commit."""
    shards = split_gguf(model, tmp_path / "cut", SplitLimit(max_tensors=6))
    push(plan_upload(shards[0], "me/tiny"))
    files = hub.repos["me/tiny"].revisions["main"]
    names = [f"Tiny-78K-v1.0-F32-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert [files[name] for name in names] == [shard.read_bytes() for shard in shards]
    assert hub.repos["me/tiny"].commits == [f"Upload {names[0]}"]


def test_a_plan_changes_nothing(hub: HubServer, model: Path) -> None:
    """It only asks."""
    upload = plan_upload(model, "me/tiny")
    assert not upload.exists
    assert upload.files == {NAME: model}
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    assert hub.repos == {}


def test_what_is_there_is_kept(hub: HubServer, model: Path) -> None:
    """A file of the name is an error, a README stays with a note, unless they may be overwritten."""
    hub.repos["me/tiny"] = Repo({"main": {"README.md": b"mine", NAME: b"old"}})
    with pytest.raises(PlanError, match=f"has {NAME} already: use --overwrite"):
        plan_upload(model, "me/tiny")
    del hub.repos["me/tiny"].revisions["main"][NAME]
    upload = plan_upload(model, "me/tiny")
    assert upload.exists
    assert "its README.md is kept" in upload.notes[0]
    push(upload)
    assert hub.repos["me/tiny"].revisions["main"] == {"README.md": b"mine", NAME: model.read_bytes()}
    push(plan_upload(model, "me/tiny", overwrite=True))
    assert hub.repos["me/tiny"].revisions["main"]["README.md"].startswith(b"---\nlibrary_name: gguf")


def test_refusals_are_explained(hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody logged in, no name of a repository, no model."""
    upload = plan_upload(model, "me/tiny")
    monkeypatch.delenv("HF_TOKEN")
    forget(monkeypatch)
    with pytest.raises(PlanError, match="log in with `hf auth login` or set HF_TOKEN"):
        push(upload)
    with pytest.raises(PlanError, match="write owner/name"):
        plan_upload(model, "tiny")


def test_the_command_shows_then_uploads(hub: HubServer, model: Path) -> None:
    """A dry run prints names and card; without it the address is printed."""
    shown = CliRunner().invoke(app, ["push", str(model), "me/tiny", "--dry-run"], catch_exceptions=False)
    assert NAME in shown.stdout
    assert "library_name: gguf" in shown.stdout
    assert "nothing was uploaded; the repository would be created" in shown.stdout
    assert hub.repos == {}
    done = CliRunner().invoke(app, ["push", str(model), "me/tiny", "--json"], catch_exceptions=False)
    facts = json.loads(done.stdout)
    assert facts["uploads"] == {NAME: str(model)}
    assert facts["url"].endswith(hub_server.COMMIT)
    assert NAME in hub.repos["me/tiny"].revisions["main"]


def test_without_a_connection_a_plan_is_made_all_the_same(
    hub: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a note that the repository was not looked at."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget(monkeypatch)
    upload = plan_upload(model, "me/tiny")
    assert upload.files == {NAME: model}
    assert "HF_HUB_OFFLINE" in upload.notes[0]
    with pytest.raises(PlanError, match="HF_HUB_OFFLINE"):
        push(upload)
