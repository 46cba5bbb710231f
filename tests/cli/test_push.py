"""`ggufmerge build --card` and `--push`: a merge that ends on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ggufmerge.cli.app import app
from tests import hub_server
from tests.hub_server import TOKEN, HubServer, forget, use
from tests.tiny import write_tiny_llama

RECIPE = "name: Tiny\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a.gguf}, {model: b.gguf}]\n"
NAME = "Tiny-78K-merge-v1.0-F32.gguf"


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server.running() as server:
        yield server


@pytest.fixture
def folder(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe and its models; a Hub without repositories, where the user is logged in."""
    use(server.url, tmp_path / "home", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.repos = {}
    write_tiny_llama(tmp_path / "a.gguf", layers=1)
    write_tiny_llama(tmp_path / "b.gguf", layers=1, tune=(1, 0.1))
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def build(folder: Path, *arguments: str) -> Result:
    output = folder / "out.gguf"
    return CliRunner().invoke(
        app, ["build", str(folder / "recipe.yaml"), "-o", str(output), "--no-modelfile", *arguments]
    )


def test_a_merge_is_built_and_uploaded(folder: Path, server: HubServer) -> None:
    """With its card; the address is told."""
    done = build(folder, "--push", "me/tiny", "--json")
    assert done.exit_code == 0
    files = server.repos["me/tiny"].revisions["main"]
    assert files[NAME] == (folder / "out.gguf").read_bytes()
    assert RECIPE in files["README.md"].decode()
    assert json.loads(done.stdout)["push"]["url"].endswith(hub_server.COMMIT)


def test_a_dry_run_builds_but_does_not_upload(folder: Path, server: HubServer) -> None:
    """Names, sizes and card are shown."""
    done = build(folder, "--push", "me/tiny", "--push-dry-run")
    assert done.exit_code == 0
    assert NAME in done.stdout
    assert "nothing was uploaded" in done.stdout
    assert server.repos == {}
    assert (folder / "out.gguf").exists()


def test_a_card_is_written_beside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any connection; what is in the way is kept."""
    card = folder / "CARD.md"
    assert build(folder, "--card", str(card)).exit_code == 0
    assert "| out.gguf |" in card.read_text(encoding="utf-8")
    card.write_text("mine", encoding="utf-8")
    (folder / "out.gguf").unlink()
    refused = build(folder, "--card", str(card))
    assert "CARD.md: exists: use --overwrite" in str(refused.exception)
    assert card.read_text(encoding="utf-8") == "mine"
    assert not (folder / "out.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("--push", "tiny"), "write owner/name"), (("--push", "me/tiny"), "nobody is logged in")],
)
def test_what_will_fail_fails_before_the_merge(
    arguments: tuple[str, ...], complaint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of work are not needed to see it."""
    monkeypatch.delenv("HF_TOKEN")
    forget(monkeypatch)
    assert complaint in str(build(folder, *arguments).exception)
    assert not (folder / "out.gguf").exists()


def test_a_failed_upload_leaves_the_merge(folder: Path, server: HubServer) -> None:
    """And says how to upload it later."""
    server.repos["me/tiny"] = hub_server.Repo({"main": {NAME: b"old"}})
    failed = build(folder, "--push", "me/tiny")
    assert "already" in str(failed.exception)
    assert f"ggufmerge push {folder / 'out.gguf'} me/tiny" in failed.stderr
    assert (folder / "out.gguf").exists()
