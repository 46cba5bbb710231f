"""Reading: what gguf-py's reader finds in a file, we find; tensors are views of the file, in numpy's shapes."""

from __future__ import annotations

import pathlib
import struct
import tracemalloc
from collections.abc import Callable

import gguf
import numpy as np
import pytest

import ggufmerge
from ggufmerge.files import GGUFFile, TensorInfo, ValueKind, describe, open_gguf
from ggufmerge.types import TensorType
from tests import ggml, models
from tests.files import craft


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "modèle 1.gguf"
    path.write_bytes(craft.valid())
    return path


def assert_agrees_with_gguf_py(ours: GGUFFile, path: pathlib.Path) -> None:
    """Keys, types, values, tensor names, shapes, types and bytes are those that gguf-py's reader gives."""
    theirs = gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        assert [int(kind) for kind in field.types[:2]] == list(
            dict.fromkeys([int(ours.metadata.kind(key)), int(ours.metadata.element_kind(key))])
        )[: len(field.types)]
        np.testing.assert_array_equal(ours.metadata[key], field.contents())
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert mine.type.id == tensor.tensor_type
        assert mine.offset == tensor.data_offset
        assert mine.nbytes == tensor.n_bytes
        np.testing.assert_array_equal(mine.raw, tensor.data.reshape(-1).view(np.uint8))


@pytest.mark.oracle
def test_a_real_model_reads_as_gguf_py_reads_it() -> None:
    """SmolLM2: 33 keys with a vocabulary of 49 152 tokens, 272 tensors of three types."""
    with open_gguf(models.smollm2()) as file:
        assert_agrees_with_gguf_py(file, models.smollm2())


@pytest.mark.slow
@pytest.mark.oracle
def test_a_large_vocabulary_reads_as_gguf_py_reads_it() -> None:
    """gemma 3: 262 144 tokens, which gguf-py needs 9 s for."""
    with open_gguf(models.gemma3()) as file:
        assert_agrees_with_gguf_py(file, models.gemma3())


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_read_alike(version: int, tmp_path: pathlib.Path) -> None:
    """Versions 2 and 3 have the same layout."""
    content = bytearray(craft.valid())
    content[4:8] = struct.pack("<I", version)
    (tmp_path / "model.gguf").write_bytes(content)
    file = open_gguf(tmp_path / "model.gguf")
    assert file.version == version
    assert list(file.tensors) == ["one", "vector", "blocks", "stack", "nothing"]


@pytest.mark.parametrize("model", [models.smollm2, pytest.param(models.gemma3, marks=pytest.mark.slow)])
def test_a_vocabulary_takes_no_memory(model: Callable[[], pathlib.Path]) -> None:
    """Tokens stay in the file until somebody asks for them."""
    path = model()
    tracemalloc.start()
    try:
        with open_gguf(path) as file:
            assert file.metadata.count("tokenizer.ggml.tokens") > 40_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_facts_of_a_file(path: pathlib.Path) -> None:
    """Path, size, alignment and architecture are there without reading a tensor."""
    with open_gguf(path) as file:
        assert file.path == path
        assert file.paths == [path]
        assert file.nbytes == path.stat().st_size
        assert file.alignment == 32
        assert file.architecture == "llama"
        assert repr(file) == f"<GGUFFile {str(path)!r}: llama, 5 tensors>"


def test_shapes_are_in_numpy_order(path: pathlib.Path) -> None:
    """The file's first dimension, the row, is numpy's last; no dimensions make a single value."""
    tensors = open_gguf(path).tensors
    assert {name: t.shape for name, t in tensors.items()} == {
        "one": (),
        "vector": (3,),
        "blocks": (2, 32),
        "stack": (1, 2, 3, 32),
        "nothing": (0, 32),
    }
    assert {name: (t.rows, t.n, t.size) for name, t in tensors.items()} == {
        "one": (1, 1, 1),
        "vector": (1, 3, 3),
        "blocks": (2, 32, 64),
        "stack": (6, 32, 192),
        "nothing": (0, 32, 0),
    }


def test_raw_bytes_are_those_of_the_file(path: pathlib.Path) -> None:
    """`raw` and `raw_rows` are read-only windows at `offset`."""
    content = np.fromfile(path, np.uint8)
    for tensor in open_gguf(path).tensors.values():
        expected = content[tensor.offset : tensor.offset + tensor.nbytes]
        assert (tensor.raw == expected).all()
        assert (tensor.raw_rows(0, tensor.rows).reshape(-1) == expected).all()
        assert not tensor.raw.flags.writeable
    stack = open_gguf(path).tensors["stack"]
    assert (stack.raw_rows(2, 5) == stack.raw.reshape(6, 34)[2:5]).all()
    assert stack.raw_rows(6, 6).shape == (0, 34)


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 7), (4, 3)])
def test_rows_outside_a_tensor_are_an_error(start: int, stop: int, path: pathlib.Path) -> None:
    """A window never shows a neighbour's bytes."""
    with pytest.raises(IndexError, match="stack: rows"):
        open_gguf(path).tensors["stack"].raw_rows(start, stop)


@pytest.mark.oracle
def test_dequantized_values_are_ggmls_in_the_tensors_shape(tmp_path: pathlib.Path) -> None:
    """`dequantize().shape == shape`, values as ggml's, for 0 to 4 dimensions."""
    raw = ggml.quantize(np.linspace(-1, 1, 192, dtype=np.float32).reshape(6, 32), TensorType.Q8_0)
    content = craft.Craft(
        infos=(
            craft.info("stack", [32, 3, 2, 1], TensorType.Q8_0.id, 0),
            craft.info("one", [], TensorType.F32.id, 224),
            craft.info("nothing", [32, 0], TensorType.Q8_0.id, 256),
        ),
        data=raw.tobytes().ljust(224, b"\0") + struct.pack("<f", 0.5).ljust(32, b"\0"),
    )
    (tmp_path / "model.gguf").write_bytes(bytes(content))
    tensors = open_gguf(tmp_path / "model.gguf").tensors
    expected = ggml.dequantize(raw, TensorType.Q8_0, 32).reshape(1, 2, 3, 32)
    np.testing.assert_array_equal(tensors["stack"].dequantize(), expected)
    np.testing.assert_array_equal(tensors["one"].dequantize(), np.array(0.5, np.float32))
    np.testing.assert_array_equal(tensors["nothing"].dequantize(), np.zeros((0, 32), np.float32))


@pytest.mark.parametrize("type", TensorType)
def test_every_type_of_ggml_reads(type: TensorType, tmp_path: pathlib.Path) -> None:  # noqa: A002
    """All ids through 42, also those that gguf-py does not know."""
    rows, n = 3, 2 * type.block_size
    content = craft.Craft(infos=(craft.info("x", [n, rows], type.id, 0),), data=bytes(rows * type.row_bytes(n)))
    (tmp_path / "model.gguf").write_bytes(bytes(content))
    tensor = open_gguf(tmp_path / "model.gguf").tensors["x"]
    assert tensor.type is type
    assert tensor.raw_rows(0, rows).shape == (rows, 2 * type.block_bytes)


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_any_alignment_reads(alignment: int, tmp_path: pathlib.Path) -> None:
    """Powers of two move the data and the tensors in it."""
    second = -(-12 // alignment) * alignment
    content = craft.Craft(
        pairs=(craft.u32("general.alignment", alignment),),
        infos=(craft.info("a", [3], 0, 0), craft.info("b", [1], 0, second)),
        data=struct.pack("<3f", 1, 2, 3).ljust(second, b"\0") + struct.pack("<f", 4),
        alignment=alignment,
    )
    (tmp_path / "model.gguf").write_bytes(bytes(content))
    file = open_gguf(tmp_path / "model.gguf")
    assert file.alignment == alignment
    assert file.tensors["a"].raw.view("<f4").tolist() == [1, 2, 3]
    assert file.tensors["b"].raw.tobytes() == struct.pack("<f", 4)


def test_a_file_without_tensors_needs_no_padding(tmp_path: pathlib.Path) -> None:
    """A vocabulary file may end right behind its last key."""
    content = b"GGUF" + struct.pack("<Iqq", 3, 0, 1) + craft.text("general.architecture", "llama")
    (tmp_path / "vocab.gguf").write_bytes(content)
    assert open_gguf(tmp_path / "vocab.gguf").tensors == {}


def test_the_last_tensor_needs_no_padding(tmp_path: pathlib.Path) -> None:
    """llama.cpp asks only that the data itself lies within the file."""
    content = craft.Craft(infos=(craft.info("a", [1], 0, 0),), data=struct.pack("<f", 4))
    (tmp_path / "model.gguf").write_bytes(bytes(content))
    assert open_gguf(tmp_path / "model.gguf").tensors["a"].raw.tobytes() == struct.pack("<f", 4)


def test_names_that_are_not_utf8_do_not_crash(tmp_path: pathlib.Path) -> None:
    """Such bytes survive as surrogates, and encode to what they were."""
    content = craft.Craft(
        pairs=(craft.text(b"k\xff", b"v\xfe"), craft.array("words", craft.STRING, 1, craft.string(b"\xc3"))),
        infos=(craft.info(b"t\xfd", [], 0, 0),),
        data=bytes(4),
    )
    (tmp_path / "model.gguf").write_bytes(bytes(content))
    file = open_gguf(tmp_path / "model.gguf")
    assert [name.encode("utf-8", "surrogateescape") for name in (*file.metadata, *file.tensors)] == [
        b"k\xff",
        b"words",
        b"t\xfd",
    ]
    assert file.metadata["k\udcff"].encode("utf-8", "surrogateescape") == b"v\xfe"
    assert file.metadata["words"][0].encode("utf-8", "surrogateescape") == b"\xc3"


def test_a_closed_file_says_so(path: pathlib.Path) -> None:
    """After `close` nothing can be read any more, but arrays taken before stay valid."""
    with open_gguf(path) as file:
        taken = file.tensors["vector"].raw
        expected = taken.copy()
    assert (taken == expected).all()
    with pytest.raises(ValueError, match="the file is closed"):
        file.tensors["vector"].raw  # noqa: B018
    with pytest.raises(ValueError, match="the file is closed"):
        file.metadata["x.u32"]
    file.close()


def test_a_file_without_architecture_has_an_empty_one(tmp_path: pathlib.Path) -> None:
    """An imatrix has no architecture; a number in its place is none either."""
    for pairs in ((craft.text("general.type", "imatrix"),), (craft.u32("general.architecture", 1),)):
        (tmp_path / "imatrix.gguf").write_bytes(bytes(craft.Craft(pairs=pairs)))
        assert open_gguf(tmp_path / "imatrix.gguf").architecture == ""


def test_tensor_infos_compare_by_what_they_say() -> None:
    """A description is plain data."""
    info = TensorInfo("a", (2, 64), TensorType.Q8_0)
    assert info == TensorInfo("a", (2, 64), TensorType.Q8_0)
    assert (info.n, info.rows, info.row_bytes, info.nbytes) == (64, 2, 68, 136)


def test_the_package_opens_files_under_its_own_name(path: pathlib.Path) -> None:
    """`ggufmerge.open`, `quantize`, `dequantize` and the version are public; other names are not there."""
    assert ggufmerge.open(path).metadata["x.u32"] == 4000000000
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    raw = ggufmerge.quantize(values, "q8_0")
    assert np.abs(ggufmerge.dequantize(raw, "Q8_0", 32) - values).max() < 0.01
    assert ggufmerge.__version__.count(".") >= 1
    assert {"open", "quantize", "dequantize"} <= set(dir(ggufmerge))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ggufmerge.nothing  # noqa: B018


def test_a_description_holds_every_fact(path: pathlib.Path) -> None:
    """`describe` is plain data: counts and bits per weight, per type and in total, and each value with its type."""
    facts = describe(open_gguf(path))
    assert facts["parameters"] == 1 + 3 + 64 + 192
    assert facts["types"]["Q8_0"] == {"tensors": 1, "values": 192, "nbytes": 204, "bits_per_weight": 8.5}
    assert facts["metadata"]["x.flags"] == {"kind": "array", "of": "bool", "count": 3, "value": [False, True, True]}
    assert facts["metadata"]["x.u64"] == {"kind": "u64", "value": 2**64 - 1}
    assert facts["tensors"][2]["shape"] == [2, 32]
    assert facts["file_type"] == "Q4_0"  # told from the tensors, since the file does not say


@pytest.mark.parametrize(("number", "name"), [(15, "Q4_K_M"), (15 | 1024, "Q4_K_M"), (999, None)])
def test_a_description_names_the_file_type(number: int, name: str | None, tmp_path: pathlib.Path) -> None:
    """llama.cpp's name, also of a guessed type; none for an unknown one of a file that has no tensors to tell it."""
    (tmp_path / "m.gguf").write_bytes(bytes(craft.Craft(pairs=(craft.u32("general.file_type", number),))))
    assert describe(open_gguf(tmp_path / "m.gguf"))["file_type"] == name


def test_a_description_shortens_long_arrays_unless_asked(tmp_path: pathlib.Path) -> None:
    """64 elements stand for a longer array, which says so."""
    pairs = (craft.array("a", craft.U32, 65, struct.pack("<65I", *range(65))),)
    (tmp_path / "m.gguf").write_bytes(bytes(craft.Craft(pairs=pairs)))
    file = open_gguf(tmp_path / "m.gguf")
    assert describe(file)["metadata"]["a"] == {
        "kind": "array",
        "of": "u32",
        "count": 65,
        "value": list(range(64)),
        "shortened": True,
    }
    assert describe(file, full=True)["metadata"]["a"]["value"] == list(range(65))
    assert file.metadata.kind("a") == ValueKind.ARRAY
