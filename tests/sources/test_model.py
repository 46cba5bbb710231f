"""Sources: how references are found, what they read, and what identifies them."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files import open_gguf
from ggufmerge.formats import experts
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source, lora
from tests.tiny import write_tiny_llama, write_tiny_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    weights = write_tiny_llama(folder / "base.gguf", layers=1)
    write_tiny_llama(folder / "tuned.gguf", layers=1, tune=(1, 0.01))
    write_tiny_lora(folder / "lora.gguf", weights)
    write_tiny_lora(folder / "alpha.gguf", weights, alpha=4.0)
    return folder


def opened(folder: Path, text: str) -> Source:
    return open_source(ModelReference.parse(text), folder)


def test_paths_start_from_the_folder(folder: Path, tmp_path: Path) -> None:
    """Relative ones do; absolute ones and ~ do not need it. Blanks and any letters may stand in them."""
    inside = tmp_path / "my models" / "模型 é.gguf"
    inside.parent.mkdir()
    shutil.copy(folder / "base.gguf", inside)
    assert opened(tmp_path, "my models/模型 é.gguf").file.path == inside
    assert opened(tmp_path / "my models", "../my models/模型 é.gguf").file.path.samefile(inside)
    assert opened(Path("elsewhere"), str(inside)).file.path == inside


def test_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the user's home, for models and adapters."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    source = opened(Path("elsewhere"), "~/base.gguf+~/lora.gguf")
    assert [path.name for path in source.files()] == ["base.gguf", "lora.gguf"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("absent.gguf", "absent.gguf: no such file; the folder .* has .*base.gguf"),
        ("mlabonne/NeuralHermes-2.5-Mistral-7B", "no such file"),
        ("base.gguf+absent.gguf", "no such file"),
        ("~nobody-has-this-name/base.gguf", "no such home folder"),
        ("lora.gguf", r"a LoRA adapter, not a model; write MODEL.gguf\+lora.gguf"),
        ("base.gguf+tuned.gguf", "not a LoRA adapter"),
        ("imatrix.gguf", "an importance matrix, not a model"),
        ("empty.gguf", "holds no tensors"),
        ("text.gguf", "text.gguf"),
        (".", "."),
    ],
)
def test_references_that_lead_to_no_model(folder: Path, text: str, complaint: str) -> None:
    """One line that names the file."""
    (folder / "text.gguf").write_text("merge_method: linear\n")
    for kind in ("imatrix", "empty"):
        writer = gguf.GGUFWriter(folder / f"{kind}.gguf", "llama")
        writer.add_string("general.type", "imatrix" if kind == "imatrix" else "model")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(GgufmergeError, match=complaint) as caught:
        opened(folder, text)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_are_what_the_tensor_holds(folder: Path) -> None:
    """Read anywhere, they are dequantized rows; stored bytes can be had, too."""
    source = opened(folder, "base.gguf")
    tensor = source.open_tensor("blk.0.ffn_up.weight")
    whole = source.tensors["blk.0.ffn_up.weight"].dequantize()
    out = np.empty((3, tensor.n), np.float32)
    tensor.read(5, out)
    np.testing.assert_array_equal(out, whole[5:8])
    np.testing.assert_array_equal(tensor.raw_rows(5, 8).view("<f4"), whole[5:8])


def test_same_data(folder: Path) -> None:
    """A base with different adapters has the same bytes, another tensor or file has not."""
    plain, adapted, tuned = (opened(folder, t) for t in ("base.gguf", "base.gguf+lora.gguf", "tuned.gguf"))
    q = plain.open_tensor("blk.0.attn_q.weight")
    assert q.same_data(adapted.open_tensor("blk.0.attn_q.weight"))
    assert not q.same_data(adapted.open_tensor("blk.0.attn_k.weight"))
    assert not q.same_data(tuned.open_tensor("blk.0.attn_q.weight"))


def test_fingerprint_does_not_depend_on_names_and_places(folder: Path, tmp_path: Path) -> None:
    """The random masks of a merge stay the same when its files are moved, renamed or copied."""
    shutil.copy(folder / "base.gguf", tmp_path / "renamed.gguf")
    shutil.copy(folder / "lora.gguf", tmp_path / "l.gguf")
    moved = opened(tmp_path, "renamed.gguf+l.gguf=0.5").fingerprint()
    assert opened(folder, "base.gguf+lora.gguf=0.5").fingerprint() == moved


def test_fingerprint_tells_models_apart(folder: Path) -> None:
    """Weights, adapters, their order, their strengths and their alpha all count."""
    texts = [
        "base.gguf",
        "tuned.gguf",
        "base.gguf+lora.gguf",
        "base.gguf+lora.gguf=0.5",
        "base.gguf+alpha.gguf",
        "base.gguf+lora.gguf+alpha.gguf",
        "base.gguf+alpha.gguf+lora.gguf",
    ]
    assert len({opened(folder, text).fingerprint() for text in texts}) == len(texts)


@pytest.mark.parametrize("row", [0, 160, 319])
def test_fingerprint_sees_beginning_middle_and_end(folder: Path, tmp_path: Path, row: int) -> None:
    """A change at these places of a single tensor makes another model."""
    weights = write_tiny_llama(tmp_path / "a.gguf", layers=1)
    embedding = weights["token_embd.weight"].copy()
    embedding[row] += 1
    write_tiny_llama(tmp_path / "b.gguf", layers=1, replace={"token_embd.weight": embedding})
    assert opened(tmp_path, "a.gguf").fingerprint() != opened(tmp_path, "b.gguf").fingerprint()


def test_close_lets_go_of_all_files(folder: Path) -> None:
    """The model's and its adapters'."""
    source = opened(folder, "base.gguf+lora.gguf")
    source.close()
    with pytest.raises(ValueError, match="closed"):
        _ = source.tensors["blk.0.attn_q.weight"].raw
    with pytest.raises(ValueError, match="closed"):
        _ = source.adapters[0].file.tensors["blk.0.attn_q.weight.lora_a"].raw


def test_a_source_that_cannot_be_opened_leaves_no_file_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So its files can be deleted, also on Windows."""
    files = []
    for module in (experts, lora):
        monkeypatch.setattr(module, "open_gguf", lambda path: files.append(open_gguf(path)) or files[-1])
    with pytest.raises(PlanError):
        opened(folder, "base.gguf+lora.gguf+tuned.gguf")
    assert len(files) == 3
    for file in files:
        with pytest.raises(ValueError, match="closed"):
            _ = next(iter(file.tensors.values())).raw
