"""What is no whole GGUF file is named for what it is, with what to do: pieces, shards run together, archives, pages."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.errors import FormatError
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import split_gguf
from tests.files import craft
from tests.tiny import write_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    write_tiny_llama(path)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        ggufmerge.open(path)
    [line] = caught.value.lines
    return line


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        (["m.Q6_K.gguf.part1of2", "m.Q6_K.gguf.part2of2"], "m.Q6_K.gguf"),
        (["m.gguf-split-a", "m.gguf-split-b"], "m.gguf"),
        (["m.gguf-part-a", "m.gguf-part-b"], "m.gguf"),
        (["m.gguf.aa", "m.gguf.ab"], "m.gguf"),
        (["m.ggufaa", "m.ggufab"], "m.gguf"),
        (["m.gguf.000", "m.gguf.001"], "m.gguf"),
        (["m.gguf.part00", "m.gguf.part01"], "m.gguf"),
        (["m.gguf.1of2", "m.gguf.2of2"], "m.gguf"),
        (["m-part1of2.gguf", "m-part2of2.gguf"], "m.gguf"),
        (["m b.gguf.part-1-of-2", "m b.gguf.part-2-of-2"], "'m b.gguf'"),
    ],
)
def test_pieces_of_a_cut_file_are_to_be_put_together(model: Path, tmp_path: Path, names: list[str], whole: str) -> None:
    """However `split` was told to call them; the first one, which begins as a GGUF file, and the others alike."""
    data = model.read_bytes()
    for name, piece in zip(names, (data[:100_000], data[100_000:]), strict=True):
        (tmp_path / name).write_bytes(piece)
    listed = " ".join(f"'{name}'" if " " in name else name for name in names)
    for name in names:
        expected = f"part of a file that was cut into pieces: put the parts together: cat {listed} > {whole}"
        assert complaint(tmp_path / name) == f"{tmp_path / name}: by its name a {expected}"
    assert f"it is here in pieces: put them together: cat {listed} >" in complaint(tmp_path / whole.strip("'"))
    (tmp_path / names[1]).unlink()
    plain, alone = whole.strip("'"), complaint(tmp_path / names[0])
    if "aa" in names[0] or "000" in names[0]:
        assert "the file is truncated or damaged" in alone  # any file may be called so
    else:
        assert alone.endswith(f"put all of them together, in their order, to {plain}")


def test_the_tenth_piece_comes_behind_the_ninth(tmp_path: Path) -> None:
    """Numbers are counted, not spelt."""
    for number in range(1, 12):
        (tmp_path / f"m.gguf.part{number}of11").write_bytes(bytes(64))
    assert "part9of11 m.gguf.part10of11 m.gguf.part11of11 > m.gguf" in complaint(tmp_path / "m.gguf.part1of11")


def test_a_whole_file_with_the_name_of_a_piece_is_read(model: Path, tmp_path: Path) -> None:
    """The contents count, where they are right."""
    (tmp_path / "m.gguf.part1of1").write_bytes(model.read_bytes())
    assert ggufmerge.open(tmp_path / "m.gguf.part1of1").tensors


@pytest.mark.parametrize("name", ["all.gguf", "all-00001-of-00003.gguf"])
def test_shards_run_together_are_no_file(model: Path, tmp_path: Path, name: str) -> None:
    """Each has a header of its own; this is what comes of `cat` where `join` was needed."""
    shards = split_gguf(model, tmp_path / "s", SplitLimit(max_tensors=8))
    (tmp_path / name).write_bytes(b"".join(path.read_bytes() for path in shards))
    line = complaint(tmp_path / name)
    assert "shards were run together, and each has a header of its own" in line
    assert line.endswith("ggufmerge join NAME-00001-of-00003.gguf OUT.gguf")


def archive(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")
    return path.read_bytes()


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    """Archives, checkpoints, and what servers send instead of a file."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for data, what in {
        gzip.compress(b"GGUF"): "an archive made with gzip: unpack it with gunzip",
        bz2.compress(b"GGUF"): "an archive made with bzip2",
        lzma.compress(b"GGUF"): "an archive made with xz",
        b"\x28\xb5\x2f\xfd" + bytes(60): "an archive made with zstd",
        b"7z\xbc\xaf\x27\x1c" + bytes(60): "an archive made with 7-Zip",
        archive(tmp_path / "a.zip"): "a zip archive or PyTorch checkpoint",
        pickle.dumps({"w": 1}, protocol=2): "a PyTorch checkpoint (a pickle): convert it with convert_hf_to_gguf.py",
        pickle.dumps({"w": 1}, protocol=4): "a PyTorch checkpoint (a pickle)",
        b'{"error": "Repository not found"}': "a text in JSON, such as a list of files or a message of a server",
        b'\n\n<!DOCTYPE html>\n<html lang="en">': "a web page",
        b"Entry not found": "a message of a server: check the address",
        b"Invalid username or password.": "a message of a server: log in",
        struct.pack("<Q", len(header)) + header + bytes(4): "safetensors: convert the model",
        struct.pack("<Q", 0x7B) + b"{" + b" " * 0x7A: "safetensors: convert the model",
    }.items():
        (tmp_path / "x.gguf").write_bytes(data)
        assert f"not a GGUF file but {what}" in complaint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("number", "name"), [(139, "IQ4_K"), (144, "IQ4_KS"), (133, "Q6_0"), (158, "IQ1_KT"), (339, "of interleaved rows")]
)
def test_types_of_a_fork_are_named(tmp_path: Path, number: int, name: str) -> None:
    """What to do is to make another file with the fork's own program."""
    data = craft.Craft(infos=[craft.info("w", [256], number, 0)], data=bytes(256))
    (tmp_path / "x.gguf").write_bytes(bytes(data))
    line = complaint(tmp_path / "x.gguf")
    assert f"tensor 'w' has the type {name} ({number}) of ik_llama.cpp: make a file in a type of llama.cpp" in line
