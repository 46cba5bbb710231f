"""Metadata: values decode to what was stored, spans survive untouched, and edits keep places and types."""

from __future__ import annotations

import pathlib
import struct
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufmerge.errors import GgufmergeError
from ggufmerge.files import GGUFWriter, Metadata, MetadataEditor, ValueKind, open_gguf
from tests import models
from tests.files import craft


@pytest.fixture
def metadata(tmp_path: pathlib.Path) -> Metadata:
    (tmp_path / "model.gguf").write_bytes(craft.valid())
    return open_gguf(tmp_path / "model.gguf").metadata


def test_every_type_decodes_to_its_python_value(metadata: Metadata) -> None:
    """int, float, bool and str for single values."""
    expected = {
        "general.architecture": "llama",
        "x.u8": 200,
        "x.i8": -100,
        "x.u16": 60000,
        "x.i16": -30000,
        "x.u32": 4000000000,
        "x.i32": -2000000000,
        "x.f32": 1.5,
        "x.bool": True,
        "x.u64": 2**64 - 1,
        "x.i64": -(2**63),
        "x.f64": 0.1,
        "x.empty": "",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert {type(metadata[key]) for key in expected} == {int, float, bool, str}


def test_arrays_of_numbers_are_numpy_arrays_and_arrays_of_strings_lists(metadata: Metadata) -> None:
    """Each in its stored type, read-only; any byte but 0 is true; an array may be empty."""
    assert metadata["x.words"] == ["a", "", "größe"]
    scores, flags, none = metadata["x.scores"], metadata["x.flags"], metadata["x.none"]
    assert (scores.dtype, scores.tolist()) == (np.float32, [0.25, -1.0])
    assert (flags.dtype, flags.tolist()) == (np.bool_, [False, True, True])
    assert (none.dtype, none.tolist()) == (np.int32, [])
    assert not any(array.flags.writeable for array in (scores, flags))


def test_the_first_elements_come_without_the_others(metadata: Metadata) -> None:
    """Of arrays of both sorts; asking for more than there are gives all."""
    assert metadata.first("x.words", 2) == ["a", ""]
    assert metadata.first("x.words", 9) == ["a", "", "größe"]
    assert metadata.first("x.scores", 1).tolist() == [0.25]
    assert metadata.first("x.u8", 1) == 200


def test_types_and_lengths_are_known_without_decoding(metadata: Metadata) -> None:
    """`kind`, `element_kind`, `count` and `nbytes` look at the first bytes only."""
    assert (metadata.kind("x.u16"), metadata.element_kind("x.u16"), metadata.count("x.u16")) == (
        ValueKind.U16,
        ValueKind.U16,
        1,
    )
    assert (metadata.kind("x.words"), metadata.element_kind("x.words"), metadata.count("x.words")) == (
        ValueKind.ARRAY,
        ValueKind.STRING,
        3,
    )
    assert metadata.nbytes("x.u16") == len(metadata.raw("x.u16")) == 6


def test_a_raw_span_is_tag_and_value(metadata: Metadata) -> None:
    """As they stand in the file."""
    assert metadata.raw("x.u16") == struct.pack("<IH", 2, 60000)
    assert metadata.raw("general.architecture") == struct.pack("<IQ", 8, 5) + b"llama"


def test_an_unknown_key_is_a_key_error(metadata: Metadata) -> None:
    """As of any mapping, `get` included."""
    assert "nothing" not in metadata
    assert metadata.get("nothing", 7) == 7
    with pytest.raises(KeyError):
        metadata["nothing"]
    with pytest.raises(KeyError):
        metadata.kind("nothing")


def test_an_untouched_copy_encodes_to_the_same_bytes(metadata: Metadata) -> None:
    """Copying metadata changes no byte of it, empty strings and odd booleans included."""
    encoded = MetadataEditor(metadata).encode()
    assert encoded == craft.valid()[24 : 24 + len(encoded)]
    assert len(MetadataEditor(metadata)) == len(metadata) == 17


def test_equality_is_that_of_the_bytes(metadata: Metadata) -> None:
    """Order does not matter, types do."""
    editor = MetadataEditor(metadata)
    span = editor.raw("x.u8")
    editor.remove("x.u8")
    assert editor != metadata
    editor.set_raw("x.u8", span)
    assert editor == metadata
    editor.set("x.u8", 200, ValueKind.U16)
    assert editor != metadata
    assert editor != {"x.u8": 200}


INFERRED: list[tuple[Any, ValueKind, ValueKind]] = [
    ("text", ValueKind.STRING, ValueKind.STRING),
    (True, ValueKind.BOOL, ValueKind.BOOL),
    (np.True_, ValueKind.BOOL, ValueKind.BOOL),
    (0, ValueKind.U32, ValueKind.U32),
    (2**32 - 1, ValueKind.U32, ValueKind.U32),
    (2**32, ValueKind.I64, ValueKind.I64),
    (-1, ValueKind.I64, ValueKind.I64),
    (2**63, ValueKind.U64, ValueKind.U64),
    (np.int16(5), ValueKind.U32, ValueKind.U32),
    (0.5, ValueKind.F32, ValueKind.F32),
    (np.float64(0.5), ValueKind.F32, ValueKind.F32),
    (["a", "b"], ValueKind.ARRAY, ValueKind.STRING),
    ([True, False], ValueKind.ARRAY, ValueKind.BOOL),
    ([1, -2], ValueKind.ARRAY, ValueKind.I32),
    ([2**32 - 1], ValueKind.ARRAY, ValueKind.U32),
    ([2**32 - 1, -1], ValueKind.ARRAY, ValueKind.I64),
    ([2**64 - 1], ValueKind.ARRAY, ValueKind.U64),
    ((1, 2.5), ValueKind.ARRAY, ValueKind.F32),
    (np.array([1, 2], np.int8), ValueKind.ARRAY, ValueKind.I8),
    (np.array([1.0], np.float64), ValueKind.ARRAY, ValueKind.F64),
    (np.array([1.0], np.float16), ValueKind.ARRAY, ValueKind.F32),
    (np.array(["a"]), ValueKind.ARRAY, ValueKind.STRING),
    (np.array([], np.float32), ValueKind.ARRAY, ValueKind.F32),
]


@pytest.mark.parametrize(("value", "kind", "element"), INFERRED)
def test_a_new_value_gets_the_type_that_suits_it(value: Any, kind: ValueKind, element: ValueKind) -> None:
    """Numbers take the narrowest of llama.cpp's usual types, and decode to themselves."""
    editor = MetadataEditor()
    editor.set("key", value)
    assert (editor.kind("key"), editor.element_kind("key")) == (kind, element)
    np.testing.assert_array_equal(editor["key"], np.asarray(value))


KEPT = [("x.u8", 7), ("x.i8", -7), ("x.u16", 7), ("x.i64", 7), ("x.f64", 0.1), ("x.f32", 3), ("x.bool", False)]


@pytest.mark.parametrize(("key", "value"), KEPT)
def test_a_known_key_keeps_its_type_and_place(key: str, value: Any, metadata: Metadata) -> None:
    """llama.cpp refuses a number of another type than it expects, so an edit must not change it."""
    editor = MetadataEditor(metadata)
    editor.set(key, value)
    assert editor[key] == value
    assert editor.kind(key) == metadata.kind(key)
    assert list(editor) == list(metadata)


def test_a_known_array_keeps_the_type_of_its_elements(metadata: Metadata) -> None:
    """Also when it becomes empty, or its new elements would be of another type by themselves."""
    editor = MetadataEditor(metadata)
    editor.set("x.scores", [1, 2, 3])
    editor.set("x.words", [])
    assert (editor.element_kind("x.scores"), editor["x.scores"].tolist()) == (ValueKind.F32, [1, 2, 3])
    assert (editor.element_kind("x.words"), editor["x.words"]) == (ValueKind.STRING, [])


def test_a_value_that_does_not_fit_the_old_type_gets_a_new_one(metadata: Metadata) -> None:
    """No value is cut off to fit."""
    editor = MetadataEditor(metadata)
    editor.set("x.u8", 300)
    editor.set("x.bool", "yes")
    editor.set("x.f32", [1.0])
    kinds = [editor.element_kind(key) for key in ("x.u8", "x.bool", "x.f32")]
    assert kinds == [ValueKind.U32, ValueKind.STRING, ValueKind.F32]
    assert (editor["x.u8"], editor["x.bool"], editor["x.f32"].tolist()) == (300, "yes", [1.0])


REFUSED: list[tuple[Any, ValueKind | None, str]] = [
    (None, None, "a NoneType is not a value that GGUF can hold"),
    ({}, None, "a dict is not a value"),
    ([], None, "an empty list has no type of its own"),
    ([[1]], None, "a list is not a value"),
    (["a", 1], None, "1 is not a value of type STRING"),
    ([1, "a"], None, "'a' is not a value of type U64"),
    ([1, True], None, "True is not a value"),
    (2**64, None, "do not fit U64"),
    (300, ValueKind.U8, "300..300 is outside U8"),
    (-1, ValueKind.U64, "-1..-1 is outside U64"),
    (1.5, ValueKind.U32, "1.5 is not a value of type U32"),
    (True, ValueKind.U32, "True is not a value of type U32"),
    (1, ValueKind.BOOL, "1 is not a value of type BOOL"),
    (1e300, ValueKind.F32, "a value is too large for F32"),
    (1, ValueKind.ARRAY, "the type of an array is that of its elements"),
    (np.zeros((2, 2)), None, "arrays have one dimension"),
    ("\ud800", None, "surrogates not allowed"),
]


@pytest.mark.parametrize(("value", "kind", "message"), REFUSED)
def test_a_value_that_cannot_be_stored_is_refused(value: Any, kind: ValueKind | None, message: str) -> None:
    """The message names the key and the value; what was there stays."""
    editor = MetadataEditor()
    editor.set("some.key", "old")
    with pytest.raises(GgufmergeError, match=r"some\.key: ") as caught:
        editor.set("some.key", value, kind)
    assert message in str(caught.value)
    assert editor["some.key"] == "old"


def test_an_empty_key_is_refused() -> None:
    """llama.cpp does not read it back."""
    with pytest.raises(GgufmergeError, match="must not be empty"):
        MetadataEditor().set("", 1)
    with pytest.raises(GgufmergeError, match="must not be empty"):
        MetadataEditor().set_raw("", b"")


def test_removing_what_is_not_there_is_fine(metadata: Metadata) -> None:
    """`remove` states that a key shall not be written."""
    editor = MetadataEditor(metadata)
    editor.remove("x.u8")
    editor.remove("x.u8")
    assert "x.u8" not in editor
    assert "x.u8" in metadata


def test_value_offsets_point_at_the_value(metadata: Metadata) -> None:
    """Of a number at its bytes, of a string at its characters; an array has none."""
    editor = MetadataEditor(metadata)
    encoded = editor.encode()
    for key, value in (("x.u16", struct.pack("<H", 60000)), ("general.architecture", b"llama")):
        assert encoded[editor.value_offset(key) :].startswith(value)
    with pytest.raises(GgufmergeError, match="an array cannot be patched"):
        editor.value_offset("x.words")
    with pytest.raises(KeyError):
        editor.value_offset("nothing")


INTEGERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(width=32, allow_nan=False)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.one_of(
    st.booleans(),
    INTEGERS,
    FLOATS,
    TEXT,
    st.lists(TEXT, min_size=1, max_size=5),
    st.lists(FLOATS, min_size=1, max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.text("abc.ö", min_size=1, max_size=8), VALUES, min_size=1, max_size=6))
def test_whatever_is_set_is_read_back(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Through a file, by us and by gguf-py, whatever the value."""
    editor = MetadataEditor()
    for key, value in values.items():
        editor.set(key, value)
    path = tmp_path_factory.mktemp("metadata") / "model.gguf"
    with GGUFWriter(path, editor, []) as writer:
        writer.commit()
    theirs = gguf.GGUFReader(path).fields
    with open_gguf(path) as file:
        assert file.metadata == editor
        for key, value in values.items():
            np.testing.assert_array_equal(file.metadata[key], value)
            np.testing.assert_array_equal(theirs[key].contents(), value)


def test_a_vocabulary_survives_an_edit_byte_for_byte() -> None:
    """Spans of a real model that nobody changed are those of the file."""
    with open_gguf(models.smollm2()) as file:
        editor = MetadataEditor(file.metadata)
        editor.set("general.name", "something longer than before")
        assert all(editor.raw(key) == file.metadata.raw(key) for key in editor if key != "general.name")
        assert list(editor) == list(file.metadata)


@pytest.mark.parametrize("kind", ["text", "integer", "number", "flag", "texts", "integers"])
def test_a_value_is_given_only_as_what_it_is(kind: str) -> None:
    """Each kind of question has an answer for its own values, and for any other none, which is noted."""
    values = {
        "a text": "abc",
        "an empty text": "",
        "a number": 3,
        "a fraction": 1.5,
        "true": True,
        "texts": ["a"],
        "numbers": np.array([1, 2], np.uint32),
        "fractions": np.array([1.5], np.float32),
        "flags": np.array([True]),
    }
    fits = {
        "text": {"a text", "an empty text"},
        "integer": {"a number"},
        "number": {"a number", "a fraction"},
        "flag": {"true"},
        "texts": {"texts"},
        "integers": {"numbers"},
    }[kind]
    editor = MetadataEditor()
    for name, value in values.items():
        editor.set(name, value)
    got = {name: getattr(editor, kind)(name) for name in values}
    assert {name for name, value in got.items() if value is not None} == fits
    assert {line.split(" is ")[0] for line in editor.misfits()} == values.keys() - fits
    assert getattr(editor, kind)("missing") is None
    assert len(editor.misfits()) == len(values) - len(fits)


def test_numbers_out_of_range_are_not_given() -> None:
    """A bound is part of the question; NaN and infinity are no numbers."""
    editor = MetadataEditor(where="x.gguf")
    for key, value in {"minus": -1, "large": 2**64 - 1, "nan": float("nan")}.items():
        editor.set(key, value)
    assert editor.integer("minus") is None
    assert editor.integer("minus", low=-1) == -1
    assert editor.integer("large", 0, 512) is None
    assert editor.number("nan") is None
    with pytest.raises(GgufmergeError, match=r'^x\.gguf: the key "minus" is i64 -1, not a whole number; '):
        editor.need_integer("minus")
    with pytest.raises(GgufmergeError, match=r'^x\.gguf: the key "none" is missing; '):
        editor.need_text("none")


def test_a_number_for_each_layer_is_found_by_the_layer() -> None:
    """One that stands alone holds for all; a list that is too short has none."""
    editor = MetadataEditor()
    editor.set("one", 4)
    editor.set("each", [4, 2])
    assert [editor.integer_of("one", 5), editor.integer_of("each", 1), editor.integer_of("each", 2)] == [4, 2, None]


def test_an_empty_list_is_a_list_of_anything() -> None:
    """Since nothing in it is of another type."""
    editor = MetadataEditor()
    editor.set("none", [], ValueKind.U32)
    assert editor.texts("none") == []
    assert editor.integers("none") is not None
