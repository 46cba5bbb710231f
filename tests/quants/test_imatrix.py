"""Importance matrices: read from both formats, combined, and handed out as llama-quantize would use them."""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
import pytest

from ggufmerge.errors import FormatError, GgufmergeError, PlanError
from ggufmerge.formats.imatrix import load_imatrix
from ggufmerge.quants.importance import Imatrix, ImatrixEntry
from tests.systems import needs_pipes

Q, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def write_gguf(
    path: pathlib.Path,
    entries: dict[str, tuple[Any, Any]],
    *,
    lacking: Sequence[str] = (),
    datasets: Sequence[str] = ("wiki.txt", "code.txt"),
    dtype: Any = np.float32,
) -> pathlib.Path:
    """As llama-imatrix writes it: name -> (sums [matrices, n], counts [matrices])."""
    writer = gguf.GGUFWriter(path, "")
    keys = {
        "imatrix.datasets": lambda key: writer.add_array(key, list(datasets)),
        "imatrix.chunk_count": lambda key: writer.add_uint32(key, 7),
        "imatrix.chunk_size": lambda key: writer.add_uint32(key, 512),
    }
    for key, add in keys.items():
        if key not in lacking:
            add(key)
    for name, (sums, counts) in entries.items():
        if sums is not None:
            writer.add_tensor(f"{name}.in_sum2", np.array(sums, dtype))
        if counts is not None:
            writer.add_tensor(f"{name}.counts", np.array(counts, dtype).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy_entry(name: bytes, calls: int, values: Sequence[float]) -> bytes:
    head = struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
    return head + np.array(values, "<f4").tobytes()


def write_legacy(path: pathlib.Path, *entries: bytes, trailer: bytes = b"") -> pathlib.Path:
    path.write_bytes(struct.pack("<i", len(entries)) + b"".join(entries) + trailer)
    return path


def imatrix(entries: dict[str, tuple[Sequence[float], Sequence[int]]], **options: Any) -> Imatrix:
    made = {n: ImatrixEntry(np.array(s, np.float32), np.array(c, np.int64)) for n, (s, c) in entries.items()}
    return Imatrix(made, **options)


def test_values_are_sums_over_counts(tmp_path: pathlib.Path) -> None:
    loaded = load_imatrix(write_gguf(tmp_path / "a.gguf", {Q: ([[3, 6, 9, 1]], [3])}))
    values = loaded.get(Q, 4)
    assert values is not None
    assert (values.dtype, values.shape) == (np.float32, (1, 4))
    assert values.tolist() == [[1, 2, 3, np.float32(1) / np.float32(3)]]


def test_each_expert_has_its_own_row_and_one_that_no_token_met_weighs_all_alike(tmp_path: pathlib.Path) -> None:
    sums = [[2, 4], [0, 0], [9, 3]]
    loaded = load_imatrix(write_gguf(tmp_path / "a.gguf", {EXPERTS: (sums, [2, 0, 3])}))
    values = loaded.get(EXPERTS, 2, 3)
    assert values is not None
    assert values.tolist() == [[1, 2], [1, 1], [3, 1]]


def test_a_gguf_file_tells_its_origin(tmp_path: pathlib.Path) -> None:
    loaded = load_imatrix(write_gguf(tmp_path / "a.gguf", {Q: ([[1]], [1]), EXPERTS: ([[1]], [1])}))
    assert loaded.names == [Q, EXPERTS]
    assert (loaded.datasets, loaded.chunks, loaded.chunk_size) == (("wiki.txt", "code.txt"), 7, 512)
    assert loaded.metadata() == {
        "quantize.imatrix.file": "a.gguf",
        "quantize.imatrix.dataset": "wiki.txt",
        "quantize.imatrix.entries_count": 2,
        "quantize.imatrix.chunks_count": 7,
    }


def test_legacy_values_are_divided_by_the_calls(tmp_path: pathlib.Path) -> None:
    trailer = struct.pack("<ii", 7, 8) + b"wiki.txt"
    entries = legacy_entry(Q.encode(), 2, [2, 4, 6]), legacy_entry(b"never", 0, [5, 6])
    loaded = load_imatrix(write_legacy(tmp_path / "a.dat", *entries, trailer=trailer))
    assert [loaded.get(Q, 3).tolist(), loaded.get("never", 2).tolist()] == [[[1, 2, 3]], [[5, 6]]]  # type: ignore[union-attr]
    assert (loaded.datasets, loaded.chunks, loaded.file) == (("wiki.txt",), 7, "a.dat")


@pytest.mark.parametrize("trailer", [b"", struct.pack("<i", 3)])
def test_a_legacy_file_may_end_after_its_entries(tmp_path: pathlib.Path, trailer: bytes) -> None:
    loaded = load_imatrix(write_legacy(tmp_path / "a.dat", legacy_entry(b"w", 1, [1]), trailer=trailer))
    assert (loaded.names, loaded.datasets) == (["w"], ())


def test_a_legacy_file_can_hold_stacks_of_experts(tmp_path: pathlib.Path) -> None:
    loaded = load_imatrix(write_legacy(tmp_path / "a.dat", legacy_entry(EXPERTS.encode(), 2, [2, 4, 6, 8])))
    values = loaded.get(EXPERTS, 2, 2)
    assert values is not None
    assert values.tolist() == [[1, 2], [3, 4]]


def test_a_weight_that_was_not_collected_has_none() -> None:
    made = imatrix({Q: ([1, 2], [1])})
    assert made.get("blk.1.attn_q.weight", 2) is None
    assert Q in made
    assert "blk.1.attn_q.weight" not in made


def test_a_matrix_for_another_shape_is_refused_with_both_sizes() -> None:
    made = imatrix({Q: ([1, 2, 3, 4], [1])}, file="other.gguf")
    with pytest.raises(PlanError, match=r"other\.gguf: blk\.0\.attn_q\.weight has 4 .* needs 6 \(1 x 6\)"):
        made.get(Q, 6)


def test_token_embeddings_of_another_shape_have_none() -> None:
    """llama-quantize goes on without, because llama-imatrix cannot collect them properly."""
    assert imatrix({"token_embd.weight": ([1, 2], [1])}).get("token_embd.weight", 8) is None


def test_combining_is_measuring_on_all_texts_together() -> None:
    """Sums and counts add: the mean of the union, not the mean of the means."""
    a = imatrix({Q: ([2, 4], [1]), "a": ([1], [1])}, datasets=["x", "y"], chunks=1, chunk_size=512, file="a")
    b = imatrix({Q: ([9, 3], [3]), "b": ([1], [1])}, datasets=["y"], chunks=3, chunk_size=512, file="b")
    both = a.combine([b])
    assert both.get(Q, 2).tolist() == [[11 / 4, 7 / 4]]  # type: ignore[union-attr]
    assert both.names == [Q, "a", "b"]
    assert (both.datasets, both.chunks, both.file) == (("x", "y"), 4, "a + b")
    assert a.get(Q, 2).tolist() == [[2, 4]]  # type: ignore[union-attr]


def test_legacy_chunks_weigh_as_many_tokens_as_they_have() -> None:
    """One legacy chunk of mean 2 and one chunk of 512 tokens of mean 4 give mean 3."""
    legacy = imatrix({Q: ([2, 2], [1])}, chunks=1)
    modern = imatrix({Q: ([4 * 512, 4 * 512], [512])}, chunks=1, chunk_size=512)
    for both in (legacy.combine([modern]), modern.combine([legacy])):
        assert both.get(Q, 2).tolist() == [[3, 3]]  # type: ignore[union-attr]


def test_one_count_stands_for_each_expert() -> None:
    both = imatrix({EXPERTS: ([2, 2, 4, 4], [1])}).combine([imatrix({EXPERTS: ([4, 4, 2, 2], [1, 2])})])
    assert both.get(EXPERTS, 2, 2).tolist() == [[3, 3], [2, 2]]  # type: ignore[union-attr]


def test_matrices_of_different_models_do_not_combine() -> None:
    with pytest.raises(PlanError, match=r"b\.gguf: blk\.0\.attn_q\.weight has 3 values, 2 in a\.gguf"):
        imatrix({Q: ([1, 2], [1])}, file="a.gguf").combine([imatrix({Q: ([1, 2, 3], [1])}, file="b.gguf")])


def test_entries_can_be_selected_by_parts_of_their_names() -> None:
    made = imatrix({"blk.0.attn_q.weight": ([1], [1]), "blk.0.ffn_up.weight": ([1], [1]), "output.weight": ([1], [1])})
    assert made.select(include=["attn", "output"]).names == ["blk.0.attn_q.weight", "output.weight"]
    assert made.select(exclude=["ffn"]).names == ["blk.0.attn_q.weight", "output.weight"]
    assert made.select().names == made.names
    with pytest.raises(GgufmergeError, match='"atn" is found in no name'):
        made.select(include=["atn"])
    with pytest.raises(GgufmergeError, match="cannot be used together"):
        made.select(["attn"], ["ffn"])


BAD_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "no data sets": ({"lacking": ["imatrix.datasets"]}, r"lacks imatrix\.datasets"),
    "no chunk count": ({"lacking": ["imatrix.chunk_count", "imatrix.chunk_size"]}, r"lacks imatrix\.chunk_count, "),
    "no counts": ({"entries": {Q: ([[1]], None)}}, r"in_sum2 is there without its other half"),
    "no sums": ({"entries": {Q: (None, [1])}}, r"counts is there without its other half"),
    "nothing": ({"entries": {}}, "holds no importance values"),
    "halves": ({"dtype": np.float16}, "is F16 instead of F32"),
    "not a number": ({"entries": {Q: ([[1, np.nan]], [1])}}, rf"{Q} holds NaN or infinity"),
    "infinite": ({"entries": {Q: ([[1, np.inf]], [1])}}, rf"{Q} holds NaN or infinity"),
    "infinite count": ({"entries": {Q: ([[1, 2]], [np.inf])}}, rf"{Q}\.counts holds no counts"),
    "absurd count": ({"entries": {Q: ([[1, 2]], [1e30])}}, rf"{Q}\.counts holds no counts"),
    "uneven": ({"entries": {Q: ([[1, 2, 3]], [1, 1])}}, rf"{Q} has 3 sums for 2 counts"),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_a_damaged_gguf_imatrix_is_refused_with_the_reason(tmp_path: pathlib.Path, case: str) -> None:
    options, message = BAD_GGUF[case]
    path = write_gguf(tmp_path / "bad.gguf", **{"entries": {Q: ([[1]], [1])}, **options})
    with pytest.raises(FormatError, match=message):
        load_imatrix(path)


GOOD = legacy_entry(b"w", 1, [1.0, 2.0])
BAD_LEGACY: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "should have 4 bytes, but 0 are left"),
    "no entries": (struct.pack("<i", 0), "neither GGUF nor a legacy importance matrix"),
    "text": (b"# A recipe in YAML, say", "neither GGUF nor a legacy importance matrix"),
    "endless entries": (struct.pack("<i", 2**31 - 1) + GOOD, "neither GGUF nor a legacy importance matrix"),
    "an entry too many": (struct.pack("<i", 2) + GOOD + bytes(15), "entry 2 of 2 has no name"),
    "a missing entry": (struct.pack("<i", 1) + GOOD[:-1] + b"", "entry 1 of 1, w, should have 8 bytes, but 7"),
    "endless name": (struct.pack("<ii", 1, 2**31 - 1) + bytes(16), "should have 2147483647 bytes, but 16"),
    "negative name": (struct.pack("<ii", 1, -1) + bytes(16), "should have -1 bytes"),
    "endless values": (struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 2**31 - 1) + bytes(8), "but 8 are left"),
    "no values": (struct.pack("<i", 1) + legacy_entry(b"weight", 1, []), "entry 1 of 1, weight, has 0 values"),
    "not text": (struct.pack("<i", 1) + legacy_entry(b"\xff\xfe", 1, [1.0]), "is not UTF-8"),
    "twice": (struct.pack("<i", 2) + GOOD + GOOD, "w appears twice"),
    "not finite": (struct.pack("<i", 1) + legacy_entry(b"w", 1, [1.0, np.inf]), "w holds NaN or infinity"),
    "half a trailer": (struct.pack("<i", 1) + GOOD + bytes(3), "the number of chunks should have 4 bytes, but 3"),
    "endless data set": (struct.pack("<i", 1) + GOOD + struct.pack("<ii", 1, 99), "the data set should have 99 bytes"),
}


@pytest.mark.parametrize("case", BAD_LEGACY)
def test_a_damaged_legacy_imatrix_is_refused_with_the_reason(tmp_path: pathlib.Path, case: str) -> None:
    data, message = BAD_LEGACY[case]
    path = tmp_path / "bad.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message):
        load_imatrix(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FormatError, match=r"absent\.dat"):
        load_imatrix(tmp_path / "absent.dat")


@needs_pipes
@pytest.mark.parametrize("make", ["mkfifo", "mkdir", "link"])
def test_what_is_no_file_is_no_imatrix(tmp_path: pathlib.Path, make: str) -> None:
    """A pipe, a folder or a device is refused before anything waits for it or reads it without end."""
    path = tmp_path / "x"
    if make == "link":
        path.symlink_to("/dev/zero")
    else:
        getattr(os, make)(path)
    with pytest.raises(FormatError, match=r"this is (not a regular file|a folder)"):
        load_imatrix(tmp_path / "x")


SINGLE = "blk.0.ffn_up.%d.weight"


def test_entries_for_single_experts_are_rows_of_the_stack() -> None:
    """Files for the layout in which each expert has a tensor of its own; an expert without an entry was never seen."""
    made = imatrix({SINGLE % 2: ([6, 8], [2]), SINGLE % 0: ([1, 2], [1]), SINGLE % 1: ([5, 5], [0])})
    values = made.get(EXPERTS, 2, 4)
    assert values is not None
    assert values.tolist() == [[1, 2], [1, 1], [3, 4], [1, 1]]
    assert EXPERTS in made
    assert "blk.1.ffn_up_exps.weight" not in made
    assert made.missed(EXPERTS, 4) == 2


def test_the_entry_of_a_stack_wins_over_those_of_its_experts() -> None:
    made = imatrix({SINGLE % 0: ([7, 7], [1]), EXPERTS: ([1, 2, 3, 4], [1, 1])})
    values = made.get(EXPERTS, 2, 2)
    assert values is not None
    assert values.tolist() == [[1, 2], [3, 4]]


def test_entries_for_experts_of_another_model_are_refused() -> None:
    """More experts than there are, or rows of several lengths; a number that nobody can have costs no memory."""
    with pytest.raises(PlanError, match=r"an entry for expert 99999 of blk\.0\.ffn_up_exps\.weight, which has 4"):
        imatrix({SINGLE % 99999: ([1, 2], [1])}).get(EXPERTS, 2, 4)
    with pytest.raises(PlanError, match=r"single experts of blk\.0\.ffn_up_exps\.weight differ in size"):
        imatrix({SINGLE % 0: ([1, 2], [1]), SINGLE % 1: ([1, 2, 3], [1])}).get(EXPERTS, 2, 4)
    with pytest.raises(PlanError, match=r"has 8 importance values, but the tensor needs 12 \(4 x 3\)"):
        imatrix({SINGLE % 0: ([1, 2], [1])}).get(EXPERTS, 3, 4)


def test_matrices_of_both_layouts_add_up() -> None:
    """Entries for single experts are added to those of the stack."""
    stack = imatrix({EXPERTS: ([1, 2, 3, 4], [1, 1])}, chunk_size=1)
    singles = imatrix({SINGLE % 1: ([5, 6], [3]), Q: ([1, 1], [1])}, chunk_size=1)
    for both in (stack.combine([singles]), singles.combine([stack])):
        assert sorted(both.names) == [Q, EXPERTS]
        assert both.entry(EXPERTS).sums.tolist() == [1, 2, 8, 10]
        assert both.entry(EXPERTS).counts.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("attn_k", "attn_qkv"),
        ("attn_qkv", "attn_q"),
        ("ffn_up_exps", "ffn_gate_up_exps"),
        ("ffn_gate_up_exps", "ffn_gate_exps"),
    ],
)
def test_weights_of_one_input_that_are_stored_apart_or_together_have_one_entry(asked: str, given: str) -> None:
    """What was collected is of the inputs, which are the same."""
    made = imatrix({f"blk.3.{given}.weight": ([1, 2, 3, 4], [1, 1])})
    values = made.get(f"blk.3.{asked}.weight", 2, 2)
    assert values is not None
    assert values.tolist() == [[1, 2], [3, 4]]
    assert made.get("blk.3.ffn_down_exps.weight", 2, 2) is None


def test_weights_that_are_stored_apart_do_not_lend_each_other_their_entries() -> None:
    """What `select` leaves out stays out."""
    made = imatrix({Q: ([1, 2], [1]), "blk.0.attn_k.weight": ([1, 2], [1])}).select(exclude=["attn_k"])
    assert made.get("blk.0.attn_k.weight", 2) is None
