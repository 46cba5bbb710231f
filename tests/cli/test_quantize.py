"""`ggufmerge quantize` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ggufmerge
from tests.tiny import write_tiny_llama


def ggufmerge_quantize(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ggufmerge", "quantize", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "model.gguf", embed=256, ff=256)
    return tmp_path


def test_a_table_says_what_became_of_each_kind_of_tensor(folder: Path) -> None:
    """Type, bits per weight, error; and one line about the file."""
    done = ggufmerge_quantize(folder, "model.gguf", "out.gguf", "q4_k_m", "--tensor-type", "ffn_up=Q8_0")
    assert done.returncode == 0
    assert "warning" not in done.stderr
    row = next(line for line in done.stdout.splitlines() if "ffn_up" in line)
    assert row.split()[-3:-1] == ["Q8_0", "8.5"]
    assert "out.gguf: Q4_K_M" in done.stdout
    assert ggufmerge.open(folder / "out.gguf").tensors["blk.1.ffn_up.weight"].type == "Q8_0"


def test_json_has_every_tensor(folder: Path) -> None:
    """With the reason for its type and its error; a dry run writes nothing."""
    done = ggufmerge_quantize(folder, "model.gguf", "out.gguf", "Q5_K_M", "--json", "--dry-run")
    planned = json.loads(done.stdout)
    assert not (folder / "out.gguf").exists()
    facts = json.loads(ggufmerge_quantize(folder, "model.gguf", "out.gguf", "Q5_K_M", "--json").stdout)
    assert [t["type"] for t in facts["tensors"]] == [t["type"] for t in planned["tensors"]]
    assert all(t["why"] for t in facts["tensors"])
    assert all(0 < t["relative_error"] < 0.1 for t in facts["tensors"] if t["type"] in ("Q5_K", "Q6_K"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("model.gguf", "out.gguf", "Q4_L"), 'unknown type "Q4_L"'),
        (("model.gguf", "model.gguf", "Q8_0", "--overwrite"), "also an input"),
        (("nothing.gguf", "out.gguf", "Q8_0"), "nothing.gguf"),
        (("model.gguf", "out.gguf", "Q8_0", "--tensor-type", "ffn_up"), "NAME=TYPE"),
        (("model.gguf", "out.gguf", "Q8_0", "--imatrix", "model.gguf"), "imatrix"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    """And exit code 1, and nothing is written."""
    before = sorted(p.name for p in folder.iterdir())
    done = ggufmerge_quantize(folder, *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("source", "kind", "result"),
    [
        ("model.gguf", "Q8_0", "model-Q8_0.gguf"),
        ("in/model-f16.gguf", "Q8_0", "in/model-Q8_0.gguf"),
        ("model.F16.gguf", "Q4_K_M", "model-Q4_K_M.gguf"),
        ("llama-3-8b.gguf", "Q8_0", "llama-3-8b-Q8_0.gguf"),
        ("model-q4_k_m-00001-of-00003.gguf", "Q8_0", "model-Q8_0.gguf"),
        ("model.gguf", "COPY", "model-copy.gguf"),
        ("ollama:llama3.2:3b", "Q8_0", "llama3.2-3b-Q8_0.gguf"),
        ("hf:me/tuned-GGUF/tuned-F16.gguf", "Q8_0", "tuned-Q8_0.gguf"),
    ],
)
def test_a_result_without_a_name_stands_beside_its_input(source: str, kind: str, result: str) -> None:
    """Under its name, with the new type in place of the old one."""
    from ggufmerge.cli.quantize import _beside

    assert _beside(source, kind) == Path(result)


def test_keep_split_writes_the_shards_of_the_input(folder: Path) -> None:
    """As many, each with the tensors it had, and the same weights as without."""
    from ggufmerge.files import open_gguf
    from ggufmerge.files.sharded import SplitLimit
    from ggufmerge.files.split import split_gguf

    split_gguf(folder / "model.gguf", folder / "part", SplitLimit(max_tensors=8))
    for output, options in (("kept.gguf", ("--keep-split",)), ("one.gguf", ())):
        done = ggufmerge_quantize(folder, "part-00001-of-00003.gguf", output, "Q8_0", *options)
        assert done.returncode == 0, done.stderr
    with open_gguf(folder / "part-00001-of-00003.gguf") as was, open_gguf(folder / "kept-00001-of-00003.gguf") as kept:
        assert kept.shard_counts == was.shard_counts == [8, 8, 5]
        assert list(kept.tensors) == list(was.tensors)
        with open_gguf(folder / "one.gguf") as one:
            assert all((t.raw == one.tensors[name].raw).all() for name, t in kept.tensors.items())


def test_types_of_tensors_come_from_a_file_too(folder: Path) -> None:
    """One pair a word; those on the command line come first."""
    (folder / "types.txt").write_text("attn_q=Q4_0\nffn_up=F16 ffn_down=F16\n")
    done = ggufmerge_quantize(
        folder, "model.gguf", "o.gguf", "Q8_0", "--tensor-type-file", "types.txt", "--tensor-type", "attn_q=Q5_0"
    )
    assert done.returncode == 0, done.stderr
    tensors = ggufmerge.open(folder / "o.gguf").tensors
    assert {tensors[f"blk.0.{n}.weight"].type for n in ("ffn_up", "ffn_down")} == {"F16"}
    assert tensors["blk.0.attn_q.weight"].type == "Q5_0"


def test_a_tied_model_has_no_output_to_leave(folder: Path) -> None:
    """The line says what its output is."""
    write_tiny_llama(folder / "tied.gguf", tied=True)
    done = ggufmerge_quantize(folder, "tied.gguf", "out.gguf", "Q8_0", "--leave-output-tensor")
    assert done.returncode == 1
    assert (
        "no output.weight, its token embeddings are the output; --token-embedding-type sets their type" in done.stderr
    )
