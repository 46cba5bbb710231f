"""Hostile and damaged files are refused with a message that helps, before anything large is allocated."""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
import sys
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ggufmerge.errors import FormatError
from ggufmerge.files import MetadataEditor, describe, open_gguf
from tests.files import craft, oracle
from tests.files.attacks import Attack, attacks

ATTACKS = list(attacks())
Write = Callable[[bytes], pathlib.Path]


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Write:
    def write(content: bytes) -> pathlib.Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_in_one_line_that_names_the_file(attack: Attack, write: Write) -> None:
    """The message says where, what, and what to do."""
    path = write(attack.content)
    with pytest.raises(FormatError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert attack.message in message
    assert message.isprintable()


@pytest.mark.oracle
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_llama_cpp_thinks_the_same(attack: Attack, write: Write) -> None:
    """What we refuse, llama.cpp refuses: the corpus is no opinion of ours."""
    assert oracle.accepts(write(attack.content)) == attack.ggml


@pytest.mark.oracle
def test_llama_cpp_accepts_the_valid_file_too(write: Write) -> None:
    """The file that the attacks are varied from is one that everybody reads."""
    path = write(craft.valid())
    assert oracle.accepts(path)
    assert len(open_gguf(path).tensors) == 5


@pytest.mark.parametrize("attack", [a for a in ATTACKS if "without end" in a.name], ids=lambda attack: attack.name)
def test_a_huge_count_allocates_nothing(attack: Attack, write: Write) -> None:
    """A count that the file cannot hold is refused before memory is taken for it."""
    path = write(attack.content)
    assert _peak(path) < 1 << 20


def test_a_name_with_escape_sequences_cannot_write_over_the_terminal(write: Write) -> None:
    """Text out of a file is quoted in messages."""
    path = write(bytes(craft.Craft(pairs=(craft.text("\x1b[2J\n", "1"), craft.text("\x1b[2J\n", "2")))))
    with pytest.raises(FormatError, match=r"key '\\x1b\[2J\\n' appears twice"):
        open_gguf(path)


HEADER = len(craft.valid()) - 352
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, HEADER - 1), st.integers(0, 255)),
        st.tuples(st.just("word"), st.integers(0, HEADER - 1), st.sampled_from([0, 1, 2**30, 2**31, 2**61, 2**63])),
        st.tuples(st.just("cut"), st.integers(0, HEADER - 1), st.integers(1, 16)),
        st.tuples(st.just("end"), st.integers(0, len(craft.valid())), st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def _mutate(mutations: list[tuple[str, int, int]]) -> bytes:
    content = bytearray(craft.valid())
    for kind, at, value in mutations:
        if kind == "flip":
            content[at : at + 1] = bytes([value])
        elif kind == "word":
            content[at : at + 8] = struct.pack("<Q", value)
        elif kind == "cut":
            del content[at : at + value]
        else:
            del content[at:]
    return bytes(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=MUTATIONS)
@example(mutations=[])
def test_damage_anywhere_opens_or_is_refused(mutations: list[tuple[str, int, int]], write: Write) -> None:
    """A damaged file either opens, and then everything in its header can be looked at, or is a FormatError."""
    path = write(_mutate(mutations))
    with contextlib.suppress(FormatError), open_gguf(path) as file:
        describe(file, full=True)
        assert MetadataEditor(file.metadata) == file.metadata
        for tensor in file.tensors.values():
            assert tensor.raw.nbytes == tensor.nbytes


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=MUTATIONS)
def test_damage_anywhere_allocates_little(mutations: list[tuple[str, int, int]], write: Write) -> None:
    """Whatever a damaged header says, opening it takes no more memory than its size warrants."""
    assert _peak(write(_mutate(mutations))) < 1 << 20


@pytest.mark.oracle
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations=MUTATIONS)
def test_llama_cpp_and_we_agree_about_damage(mutations: list[tuple[str, int, int]], write: Write) -> None:
    """We accept what llama.cpp's parser accepts, unless tensors lie past the end, which its loader looks at later."""
    path = write(_mutate(mutations))
    refusal = ""
    try:
        open_gguf(path).close()
    except FormatError as error:
        refusal = str(error)
    if "lies past the end of the file" not in refusal:
        assert oracle.accepts(path) == (not refusal)


def _peak(path: pathlib.Path) -> int:
    """Most bytes that Python and numpy had allocated at once while opening the file."""
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            open_gguf(path).close()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_refused_with_its_neighbours(tmp_path: pathlib.Path) -> None:
    """A mistyped name lists what the folder has."""
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(craft.valid())
    with pytest.raises(FormatError, match=r"no such file; the folder .* has model-Q4_K_M\.gguf"):
        open_gguf(tmp_path / "model.gguf")


def test_a_missing_folder_is_refused(tmp_path: pathlib.Path) -> None:
    """A path through a folder that does not exist is no crash."""
    with pytest.raises(FormatError, match="no such file: there is no folder"):
        open_gguf(tmp_path / "nowhere" / "model.gguf")


def test_a_folder_is_refused(tmp_path: pathlib.Path) -> None:
    """A folder is not opened by guessing which of its files is meant."""
    with pytest.raises(FormatError, match=r"this is a folder: give the \.gguf file in it"):
        open_gguf(tmp_path)


def test_a_path_through_a_file_is_refused(write: Write) -> None:
    """The system's own complaint is passed on."""
    with pytest.raises(FormatError, match="the file cannot be read"):
        open_gguf(write(craft.valid()) / "model.gguf")


def test_a_path_with_a_nul_is_refused() -> None:
    """A path that no system knows is no crash either."""
    with pytest.raises(FormatError, match="the file cannot be read"):
        open_gguf("model\0.gguf")


if sys.platform != "win32":

    def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: pathlib.Path) -> None:
        """Opening a pipe would block until somebody writes to it."""
        os.mkfifo(tmp_path / "pipe.gguf")
        with pytest.raises(FormatError, match="not a regular file"):
            open_gguf(tmp_path / "pipe.gguf")

    def test_a_file_without_permission_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reason is told (the superuser may read everything, so the refusal is simulated)."""

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        path = write(craft.valid())
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(FormatError, match=r"cannot be read \(Permission denied\): check its permissions"):
            open_gguf(path)
