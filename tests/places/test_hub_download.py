"""References to the Hub: downloads through huggingface_hub from a server of its API, and its cache without one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import split_gguf
from ggufmerge.places.hub import cache as hub_cache
from ggufmerge.places.references import find
from tests import hub_server
from tests.hub_server import HubServer, Repo, forget, use
from tests.tiny import write_tiny_llama, write_tiny_lora


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.gguf and b.gguf, tuned; a in two shards; an adapter."""
    folder = tmp_path_factory.mktemp("files")
    weights = write_tiny_llama(folder / "a.gguf", layers=1)
    write_tiny_llama(folder / "b.gguf", layers=1, tune=(1, 0.02))
    write_tiny_lora(folder / "lora.gguf", weights)
    split_gguf(folder / "a.gguf", folder / "a", SplitLimit(max_tensors=6))
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server.running() as server:
        yield server


@pytest.fixture
def hub(server: HubServer, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub with two repositories, an empty cache, nobody logged in."""
    use(server.url, tmp_path / "home", monkeypatch)
    server.requests.clear()
    server.broken = False
    a, b = (files / "a.gguf").read_bytes(), (files / "b.gguf").read_bytes()
    shards = {f"big/{p.name}": p.read_bytes() for p in sorted(files.glob("a-0*.gguf"))}
    shards = {name.replace("big/a-", "big/Tiny-BF16-"): data for name, data in shards.items()}
    several = {
        "README.md": b"# Tiny",
        "Tiny-Q4_K_M.gguf": a,
        "Tiny.Q8_0.gguf": b,
        "Tiny-IQ4_XS.gguf": b,
        "Tiny-UD-IQ4_XS.gguf": b,
        "mmproj-Tiny-Q8_0.gguf": b"GGUF",
        "lora.gguf": (files / "lora.gguf").read_bytes(),
        **shards,
    }
    server.repos = {
        "owner/Tiny-GGUF": Repo({"main": several, "old": {"Tiny-Q4_K_M.gguf": b}, "refs/pr/1": {"Tiny-Q6_K.gguf": b}}),
        "owner/single": Repo({"main": {"only.gguf": a}}),
        "owner/none": Repo({"main": {"model.safetensors": b""}}),
        "owner/gated": Repo({"main": {"only.gguf": a}}, gated=True),
        "owner/private": Repo({"main": {"only.gguf": a}}, private=True),
    }
    return server


def bytes_at(reference: str) -> bytes:
    return find(reference).path.read_bytes()


def downloads(server: HubServer) -> list[str]:
    return [path for method, path in server.requests if method == "GET" and "/resolve/" in path]


def test_a_file_is_downloaded_once(hub: HubServer, files: Path) -> None:
    """Into huggingface_hub's cache, from which it comes the second time."""
    for _ in range(2):
        assert bytes_at("hf:owner/Tiny-GGUF/Tiny-Q4_K_M.gguf") == (files / "a.gguf").read_bytes()
    assert downloads(hub) == ["/owner/Tiny-GGUF/resolve/main/Tiny-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("hf:owner/Tiny-GGUF:Q4_K_M", "a.gguf"),
        ("hf:owner/Tiny-GGUF:q8_0", "b.gguf"),
        ("hf:owner/Tiny-GGUF:UD-IQ4_XS", "b.gguf"),
        ("hf:owner/single", "a.gguf"),
        (r"hf:owner\single\only.gguf", "a.gguf"),
        ("hf:owner/Tiny-GGUF/Tiny-Q4_K_M.gguf@old", "b.gguf"),
        ("hf:owner/Tiny-GGUF:Q4_K_M@old", "b.gguf"),
        ("hf:owner/Tiny-GGUF@refs/pr/1", "b.gguf"),
    ],
)
def test_references(reference: str, file: str, hub: HubServer, files: Path) -> None:
    """By file or by type in any case, at the newest or a named revision, or the only one; as a Path of Windows."""
    assert bytes_at(reference) == (files / file).read_bytes()


def test_all_shards_are_downloaded(hub: HubServer, files: Path) -> None:
    """By type or by the first; they open as one model."""
    for reference in ("hf:owner/Tiny-GGUF:BF16", "hf:owner/Tiny-GGUF/big/Tiny-BF16-00001-of-00002.gguf"):
        with ggufmerge.open(find(reference).path) as file, ggufmerge.open(files / "a.gguf") as whole:
            assert list(file.tensors) == list(whole.tensors)
    assert len(downloads(hub)) == 2


def test_a_recipe_merges_models_and_adapters_of_the_hub(hub: HubServer, files: Path, tmp_path: Path) -> None:
    """Like files: the result has the same tensors."""
    part = "  - {{model: {}, parameters: {{weight: 0.5}}}}\n"
    hub_names = ("hf:owner/single+hf:owner/Tiny-GGUF/lora.gguf=0.5", "hf:owner/Tiny-GGUF:Q8_0")
    recipe = f"merge_method: linear\nmodels:\n{part}{part}"
    ggufmerge.build(
        recipe.format(*hub_names),
        tmp_path / "hub.gguf",
    )
    ggufmerge.build(recipe.format(f"{files}/a.gguf+{files}/lora.gguf=0.5", f"{files}/b.gguf"), tmp_path / "files.gguf")
    with ggufmerge.open(tmp_path / "hub.gguf") as a, ggufmerge.open(tmp_path / "files.gguf") as b:
        assert all(bytes(a.tensors[name].raw) == bytes(b.tensors[name].raw) for name in b.tensors)


def test_a_token_opens_doors(hub: HubServer, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN goes to the Hub, which then shows private and gated repositories."""
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    for name in ("private", "gated"):
        assert bytes_at(f"hf:owner/{name}/only.gguf") == (files / "a.gguf").read_bytes()


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("hf:owner/Tiny-GGUF:Q5_K_M", "no file there is called Q5_K_M; there are Tiny-IQ4_XS.gguf, Tiny-Q4_K_M.gguf"),
        ("hf:owner/Tiny-GGUF:IQ4_XS", "several files called IQ4_XS, name one of them: Tiny-IQ4_XS.gguf, Tiny-UD-IQ4"),
        ("hf:owner/Tiny-GGUF", "has several models, name one of them"),
        ("hf:owner/Tiny-GGUF/Tiny-Q4_K.gguf", 'no file Tiny-Q4_K.gguf is there; did you mean "Tiny-Q4_K_M.gguf"?'),
        ("hf:owner/none", "no GGUF model is there"),
        ("hf:owner/nothing:Q4_0", "there is no repository owner/nothing, or it is private: check the name, or log in"),
        ("hf:owner/private/only.gguf", "or it is private: check the name, or log in with `hf auth login`"),
        ("hf:owner/gated/only.gguf", "accept its conditions at"),
        ("hf:owner/single/only.gguf@nowhere", "the repository has no such revision"),
        ("hf:owner/single@nowhere", "the repository has no such revision"),
        ("hf:owner", "write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M"),
        ("hf:owner/single/../x", "write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M"),
        ("hf:owner/single/./a.gguf", "write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M"),
        ("hf:../single/a.gguf", "write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M"),
        ("hf:owner/single/a.gguf@../../x", "write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M"),
        ("hf:owner/single//a.gguf", "write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M"),
        ("hf:owner/single:Q4:0", "write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M"),
        ("hf:owner/--single--/only.gguf", "owner/--single-- is not the name of a repository"),
    ],
)
def test_what_is_not_there_is_said(reference: str, complaint: str, hub: HubServer) -> None:
    """In one line that names the reference and what to do."""
    with pytest.raises(PlanError) as caught:
        find(reference)
    assert complaint in str(caught.value)
    assert reference in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", ["offline", "broken", "gone"])
def test_the_cache_is_enough(
    way: str, hub: HubServer, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In offline mode nobody is asked; nor is an answer needed from a Hub that has errors or cannot be reached."""
    references = ("hf:owner/Tiny-GGUF/Tiny-Q4_K_M.gguf", "hf:owner/Tiny-GGUF:BF16", "hf:owner/Tiny-GGUF:Q4_K_M@old")
    paths = [find(reference).path for reference in references]
    hub.requests.clear()
    if way == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif way == "broken":
        hub.broken = True
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    forget(monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub waits before it asks again
    assert [find(reference).path for reference in references] == paths
    assert ["cache" in w for w in find("hf:owner/Tiny-GGUF:Q4_K_M").warnings] == [True]
    for missing in ("hf:owner/Tiny-GGUF/Tiny.Q8_0.gguf", "hf:owner/single"):
        with pytest.raises(PlanError, match=r"is (not )?in the cache"):
            find(missing)
    assert hub.requests == [] or way != "offline"


def test_the_cache_is_read_without_the_package(hub: HubServer, tmp_path: Path) -> None:
    """Every model in it has a reference that leads to it again; branches stand for their commits."""
    wanted = [
        "hf:owner/Tiny-GGUF/Tiny-Q4_K_M.gguf",
        "hf:owner/Tiny-GGUF/Tiny-Q4_K_M.gguf@old",
        "hf:owner/single/only.gguf",
    ]
    paths = [find(reference).path for reference in wanted]
    assert hub_cache.cache_folder() == tmp_path / "home" / "hub"
    cached = {entry.reference: entry.path for entry in hub_cache.cached_files(hub_cache.cache_folder())}
    assert cached == dict(zip(wanted, paths, strict=True))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; nothing else needs it."""
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(GgufmergeError, match=r"pip install 'ggufmerge\[hub\]'"):
        find("hf:owner/single")
