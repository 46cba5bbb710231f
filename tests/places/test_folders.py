"""References to models that LM Studio and llama.cpp have downloaded: by path, by the end of one, by folder and type."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ggufmerge.errors import PlanError
from ggufmerge.places.choice import carries_type, models_among
from ggufmerge.places.folders import llama_cpp_folder, lmstudio_folders
from ggufmerge.places.references import find

LMSTUDIO = (
    "lmstudio-community/gemma-3-1b-it-GGUF/gemma-3-1b-it-Q4_K_M.gguf",
    "lmstudio-community/gemma-3-1b-it-GGUF/gemma-3-1b-it-Q8_0.gguf",
    "lmstudio-community/gemma-3-1b-it-GGUF/mmproj-gemma-3-1b-it-F16.gguf",
    "someone/Big-GGUF/Big-BF16-00001-of-00002.gguf",
    "someone/Big-GGUF/Big-BF16-00002-of-00002.gguf",
    "someone/gemma-3-1b-it-GGUF/other.gguf",
)
LLAMA_CPP = (
    "ggml-org_gemma-3-1b-it-GGUF_gemma-3-1b-it-Q4_K_M.gguf",
    "ggml-org_gemma-3-1b-it-GGUF_gemma-3-1b-it-Q8_0.gguf",
    "models--ggml-org--tiny/snapshots/0123/tiny-F16.gguf",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with models of both programs."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama cache"))
    fill(tmp_path / ".lmstudio" / "models", LMSTUDIO)
    fill(tmp_path / "llama cache", LLAMA_CPP)
    return tmp_path


def fill(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (LMSTUDIO[0], LMSTUDIO[0]),
        ("gemma-3-1b-it-Q8_0.gguf", LMSTUDIO[1]),
        ("gemma-3-1b-it-q8_0", LMSTUDIO[1]),
        ("lmstudio-community/gemma-3-1b-it-GGUF:Q4_K_M", LMSTUDIO[0]),
        ("someone/Big-GGUF", LMSTUDIO[3]),
        ("Big-GGUF:bf16", LMSTUDIO[3]),
        ("someone\\gemma-3-1b-it-GGUF\\other.gguf", LMSTUDIO[5]),
    ],
)
def test_models_of_lm_studio(name: str, found: str, home: Path) -> None:
    """In its folder publisher/model/file."""
    assert find(f"lmstudio:{name}").path == home / ".lmstudio/models" / found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (LLAMA_CPP[0], LLAMA_CPP[0]),
        ("ggml-org/gemma-3-1b-it-GGUF:Q8_0", LLAMA_CPP[1]),
        ("ggml-org/tiny", LLAMA_CPP[2]),
        ("tiny-F16", LLAMA_CPP[2]),
    ],
)
def test_models_of_llama_cpp(name: str, found: str, home: Path) -> None:
    """As its option -hf names them, or by file; its newer cache has the folders of huggingface_hub."""
    assert find(f"llama.cpp:{name}").path == home / "llama cache" / found


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        (
            "lmstudio:lmstudio-community/gemma-3-1b-it-GGUF",
            "has several models, name one of them: lmstudio-community/g",
        ),
        ("lmstudio:gemma-3-1b-it-GGUF:Q6_K", "no file there is called Q6_K"),
        ("lmstudio:gema-3-1b-it-Q8_0.gguf", "no such model in "),
        ("llama.cpp:nothing", "no such model in "),
    ],
)
def test_what_is_not_there_is_said(reference: str, complaint: str) -> None:
    """With what is there."""
    with pytest.raises(PlanError, match="^" + reference.replace(".", r"\.")) as caught:
        find(reference)
    assert complaint in str(caught.value)


def test_a_program_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is named."""
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "nowhere"))
    with pytest.raises(PlanError, match=r"there is no folder .*nowhere; give the path of the file instead"):
        find("llama.cpp:tiny")


def test_lm_studio_may_keep_models_elsewhere(home: Path) -> None:
    """As its settings say; its own folder may have been moved, too."""
    moved = home / "moved"
    moved.mkdir()
    (home / ".lmstudio-home-pointer").write_text(f"{moved}\n", encoding="utf-8")
    (moved / "settings.json").write_text('{"downloadsFolder": "/large/models"}', encoding="utf-8")
    assert lmstudio_folders() == [Path("/large/models"), moved / "models", home / ".cache/lm-studio/models"]
    (moved / "settings.json").write_text("[]", encoding="utf-8")
    assert lmstudio_folders() == [moved / "models", home / ".cache/lm-studio/models"]


@pytest.mark.parametrize(
    ("platform", "folder"),
    [("linux", ".cache/llama.cpp"), ("darwin", "Library/Caches/llama.cpp"), ("win32", "AppData/Local/llama.cpp")],
)
def test_where_llama_cpp_keeps_models(platform: str, folder: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without LLAMA_CACHE, on each system."""
    for name in ("LLAMA_CACHE", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    assert llama_cpp_folder() == home / folder


@pytest.mark.parametrize(
    ("name", "kind", "carried"),
    [
        ("m-Q4_K_M.gguf", "q4_k_m", True),
        ("m.Q4_K_M.gguf", "Q4_K_M", True),
        ("Q4_K_M/m-00001-of-00002.gguf", "Q4_K_M", True),
        ("m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M", True),
        ("m-UD-Q4_K_XL.gguf", "Q4_K_XL", True),
        ("m-Q4_K_M.gguf", "Q4_K", False),
        ("m-IQ4_NL.gguf", "Q4_NL", False),
        ("m-BF16.gguf", "F16", False),
        ("Q8_0/m-Q4_0.gguf", "Q8_0", False),
    ],
)
def test_types_in_names(name: str, kind: str, carried: bool) -> None:
    """A whole word of the file's name, or of the folder's when the file's has no type."""
    assert carries_type(name, kind) == carried


def test_files_beside_models_are_no_models() -> None:
    """Projectors, importance matrices, later shards, other formats."""
    names = ["b.gguf", "mmproj-b.gguf", "b.imatrix.gguf", "mtp-b.gguf", "a-00002-of-00002.gguf", "c.safetensors"]
    assert models_among([*names, "x/a-00001-of-00002.GGUF", "a-00001-of-00002.gguf"]) == [
        "a-00001-of-00002.gguf",
        "b.gguf",
        "x/a-00001-of-00002.GGUF",
    ]
