"""Opens GGUF files: reads the header, maps the rest.

Every count in a header is a stranger's word. Each is compared with the bytes that are left in the file before anything
is allocated for it, sizes are computed with Python's unbounded integers, and what llama.cpp's `gguf_init_from_file` or
its model loader would refuse is refused here, with a message that says what to do. Nothing of a tensor is read.

Source: ggml's `docs/gguf.md`; the rules of `ggml/src/gguf.cpp` and `src/llama-model-loader.cpp` (llama.cpp v0.5.0).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from ggufmerge.errors import FormatError
from ggufmerge.files import shards
from ggufmerge.files.absent import absent
from ggufmerge.files.metadata import MAX_ARRAY, MAX_STRING, Metadata, ValueKind
from ggufmerge.files.pieces import of_cut_file, unfinished_download
from ggufmerge.files.small import open_regular
from ggufmerge.files.tensor import MappedFile, Tensor, TensorInfo, Tensors
from ggufmerge.keys import ALIGNMENT, ARCHITECTURE
from ggufmerge.types import TensorType, fork_type

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # llama.cpp reads both; they differ from 1 in the width of counts
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME = 63  # bytes of a tensor's name


class GGUFFile:
    """A model, adapter or imatrix in one GGUF file or several shards, open for reading. Made by `open_gguf`.

    path: the file that was opened.  paths: all its files, in order.  version, alignment, metadata: those of the first.
    tensors: name -> Tensor in file order (`Tensors`).  nbytes: size of all files together.
        self.shard_counts = [len(header.tensors) for header in headers]

    Closing lets go of the files: metadata and tensors cannot be read any more, arrays taken from them stay valid.
    """

    def __init__(self, headers: list[_Header]) -> None:
        first = headers[0]
        self.path = first.file.path
        self.paths = [header.file.path for header in headers]
        self.version = first.version
        self.alignment = first.alignment
        self.metadata = first.metadata
        self.tensors = Tensors((t.name, t) for header in headers for t in header.tensors)
        self.shard_counts = [len(header.tensors) for header in headers]
        self.nbytes = sum(header.size for header in headers)
        self._files = [header.file for header in headers]

    @property
    def architecture(self) -> str:
        """`general.architecture`; "" for files without one, such as an imatrix, and for what is no name."""
        name = self.metadata.text(ARCHITECTURE) or ""
        return name if len(name) <= MAX_NAME else ""

    @property
    def mapped(self) -> list[MappedFile]:
        """The open files, in the order of `paths`."""
        return list(self._files)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {str(self.path)!r}: {self.architecture or 'no architecture'}, {len(self.tensors)} tensors>"


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file; of a split model give the first shard, the others are found by their names.

    FormatError when llama.cpp would refuse the container, or the path cannot be read.
    """
    first = _Header(Path(path))
    headers = [first]
    try:
        count = first.shard_value(shards.COUNT, ValueKind.U16, default=0)
        if count > 1:
            for header in _other_shards(first, count):
                headers.append(header)  # noqa: PERF402 - those opened before one fails are closed below
            _check_total(headers)
    except BaseException:
        for header in headers:
            header.file.close()
        raise
    return GGUFFile(headers)


def check_header(path: str | os.PathLike[str]) -> None:
    """FormatError unless the header of this one file, which may be a shard, is one that llama.cpp reads."""
    _Header(Path(path)).file.close()


def _other_shards(first: _Header, count: int) -> Iterator[_Header]:
    path = first.file.path
    number = first.shard_value(shards.NUMBER, ValueKind.U16)
    paths = shards.shard_paths(path)
    if first.is_followed:
        todo = f"get the shards again, and for one file: ggufmerge join {shards.ShardName('NAME', 1, count)} OUT.gguf"
        first.refuse("shards were run together, and each has a header of its own", todo)
    if number != 0:
        hint = f"open the first one, {paths[0].name}" if paths else "open the first one"
        first.refuse(f"this is part {number + 1} of {count} of a split model", hint)
    if paths is None or paths[0].name != path.name or len(paths) != count:
        expected = shards.ShardName("NAME", 1, count)
        first.refuse(f"the first of {count} shards must be named {expected}", "give the shards their original names")
    for index, other in enumerate(paths[1:], 1):
        if not other.exists():
            first.refuse(f"{other.name} is not in the same folder", f"put all {count} shards in one folder")
        header = _Header(other)
        number = header.shard_value(shards.NUMBER, ValueKind.U16)
        if number != index:
            header.refuse(f"by its contents this is part {number + 1}", "give the shards their original names")
        yield header


def _check_total(headers: list[_Header]) -> None:
    first, seen = headers[0], dict[str, _Header]()
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in seen:
                where = seen[tensor.name].file.path.name
                header.refuse(f"tensor {_show(tensor.name)} is also in {where}", "the shards do not belong together")
            seen[tensor.name] = header
    total = first.shard_value(shards.TENSORS, ValueKind.I32)
    if total != len(seen):
        first.refuse(
            f"its shards should hold {total} tensors but hold {len(seen)}", "the shards do not belong together"
        )


class _Header:
    """The header of one file, parsed and checked. `file` is its mapping, `size` its bytes on disk."""

    def __init__(self, path: Path) -> None:
        self.file = _map(path)
        try:
            self._view = self.file.bytes.data
            self.size = len(self._view)
            self._at = 0
            self._read_preamble()
            self.metadata = Metadata(self._bytes, self._read_pairs(), str(path))
            self.alignment = self._read_alignment()
            self.tensors = self._place(self._read_infos())
        except BaseException:
            self.file.close()
            raise
        finally:
            self._view = memoryview(b"")

    def refuse(self, what: str, todo: str) -> NoReturn:
        what, todo = of_cut_file(self.file.path) or unfinished_download(self.file.path) or (what, todo)
        raise FormatError(f"{self.file.path}: {what}: {todo}")

    @property
    def is_followed(self) -> bool:
        """Whether another GGUF file begins where the data of this one ends."""
        ends = (tensor.offset + tensor.nbytes for tensor in self.tensors)
        end = max(ends, default=_pad(self._at, self.alignment))
        return any(self.file.bytes[at : at + 4].tobytes() == MAGIC for at in {end, _pad(end, self.alignment)})

    def shard_value(self, key: str, kind: ValueKind, default: int | None = None) -> int:
        """A `split.*` number, which must have exactly this type."""
        if key not in self.metadata:
            if default is None:
                self.refuse(f"{key} is missing", "the file is not a shard that llama.cpp would load")
            return default
        if self.metadata.kind(key) != kind:
            self.refuse(f"{key} must be of type {kind.name}", "split the model again with llama-gguf-split")
        value: int = self.metadata[key]
        return value

    def _bytes(self, start: int, stop: int) -> bytes:
        return self.file.bytes[start:stop].tobytes()

    def _read_preamble(self) -> None:
        if self.size == 0:
            self.refuse("the file is empty", "download it again")
        magic = bytes(self._view[:4])
        if magic != MAGIC:
            self._refuse_foreign(bytes(self._view[:64]))
        self._at = 4
        self.version = self._number(_U32, "the version")
        if self.version and self.version & 0xFFFF == 0:
            self.refuse("the file has the other byte order (big-endian)", "convert it with gguf_convert_endian.py")
        if self.version == 1:
            self.refuse("GGUF version 1 is no longer supported", "convert the model again")
        if self.version not in VERSIONS:
            self.refuse(f"GGUF version {self.version} is unknown, versions 2 and 3 are read", "convert the model again")
        tensors = self._number(_I64, "the number of tensors")
        pairs = self._number(_I64, "the number of key-value pairs")
        self._tensor_count = self._counted(tensors, _MIN_INFO, "tensors")
        self._pair_count = self._counted(pairs, _MIN_PAIR, "key-value pairs")

    def _refuse_foreign(self, start: bytes) -> NoReturn:
        if start[8:9] == b"{" and 0 in start[:8]:
            self.refuse("not a GGUF file but safetensors", "convert the model with convert_hf_to_gguf.py of llama.cpp")
        text = start.lstrip()  # the texts of servers may begin with empty lines
        for prefix, what, todo in _FOREIGN:
            if start.startswith(prefix) or (text.startswith(prefix) and prefix[:1].isascii()):
                self.refuse(f"not a GGUF file but {what}", todo)
        self.refuse(f"not a GGUF file (it starts with {start[:4]!r})", "give a .gguf file, or download it again")

    def _counted(self, count: int, least: int, what: str) -> int:
        """A count of things that take at least this many bytes each, when there can be that many."""
        if count < 0:
            self.refuse(f"{count} {what}", _DAMAGED)
        if count * least > self.size - self._at:
            left = self.size - self._at
            self.refuse(f"the header announces {count} {what} but only {left} bytes follow", _TRUNCATED)
        return count

    def _read_pairs(self) -> dict[str, tuple[int, int]]:
        spans: dict[str, tuple[int, int]] = {}
        for index in range(self._pair_count):
            key = self._string(f"key {index + 1}")
            if not key:
                self.refuse(f"key {index + 1} is empty", _DAMAGED)
            if key in spans:
                self.refuse(f"key {_show(key)} appears twice", _DAMAGED)
            start = self._at
            self._skip_value(key)
            spans[key] = start, self._at
        return spans

    def _skip_value(self, key: str) -> None:
        kind = self._kind(key)
        if kind == ValueKind.STRING:
            self._skip_string(f"the value of {_show(key)}")
        elif kind == ValueKind.ARRAY:
            self._skip_array(key)
        else:
            self._take(kind.size, f"the value of {_show(key)}")

    def _skip_array(self, key: str) -> None:
        kind = self._kind(key)
        count = self._number(_U64, f"the length of {_show(key)}")
        if kind == ValueKind.ARRAY:
            self.refuse(f"{_show(key)} is an array of arrays, which llama.cpp does not read", "remove that key")
        if count > MAX_ARRAY:
            self.refuse(f"{_show(key)} has {count} elements, more than {MAX_ARRAY}", _DAMAGED)
        if kind != ValueKind.STRING:
            self._take(count * kind.size, f"array {_show(key)}")
            return
        self._counted(count, 8, f"strings in {_show(key)}")
        # the one long loop of a header (262 144 tokens), so without calls
        view, at, end, unpack = self._view, self._at, self.size, _U64.unpack_from
        for _ in range(count):
            if at + 8 > end:
                break
            length = unpack(view, at)[0]
            at += 8 + length
            if length > MAX_STRING:
                break
        else:
            if at <= end:
                self._at = at
                return
        self.refuse(f"array {_show(key)} runs past the end of the file", _TRUNCATED)

    def _kind(self, key: str) -> ValueKind:
        number = self._number(_U32, f"the type of {_show(key)}")
        try:
            return ValueKind(number)
        except ValueError:
            self.refuse(f"{_show(key)} has the unknown value type {number}", _DAMAGED)

    def _read_alignment(self) -> int:
        if ALIGNMENT not in self.metadata:
            return DEFAULT_ALIGNMENT
        kind = self.metadata.kind(ALIGNMENT)
        if kind != ValueKind.U32:
            self.refuse(f"{ALIGNMENT} must be of type U32, not {kind.name}", "convert the model again")
        alignment: int = self.metadata[ALIGNMENT]
        if alignment.bit_count() != 1:
            self.refuse(f"{ALIGNMENT} is {alignment}, which is not a power of two", "convert the model again")
        return alignment

    def _read_infos(self) -> list[tuple[TensorInfo, int]]:
        """Description and stored offset of every tensor."""
        infos: list[tuple[TensorInfo, int]] = []
        names: set[str] = set()
        for index in range(self._tensor_count):
            start = self._at
            name = self._string(f"the name of tensor {index + 1}")
            if (length := self._at - start - 8) > MAX_NAME:
                self.refuse(
                    f"tensor {_show(name)} has a name of {length} bytes, more than {MAX_NAME}",
                    "convert the model again",
                )
            if name in names:
                self.refuse(f"tensor {_show(name)} appears twice", _DAMAGED)
            names.add(name)
            info = TensorInfo(name, self._shape(name), self._type(name))
            if info.n % info.type.block_size:
                self.refuse(
                    f"tensor {_show(name)} of type {info.type} has rows of {info.n} values, "
                    f"not whole blocks of {info.type.block_size}",
                    _DAMAGED,
                )
            infos.append((info, self._number(_U64, f"the offset of {_show(name)}")))
        return infos

    def _shape(self, name: str) -> tuple[int, ...]:
        count = self._number(_U32, f"the dimensions of {_show(name)}")
        if count > MAX_DIMENSIONS:
            self.refuse(f"tensor {_show(name)} has {count} dimensions, more than {MAX_DIMENSIONS}", _DAMAGED)
        sizes = [self._number(_I64, f"the shape of {_show(name)}") for _ in range(count)]
        if min(sizes, default=0) < 0:
            self.refuse(f"tensor {_show(name)} has the negative dimension {min(sizes)}", _DAMAGED)
        total = sizes[0] if sizes else 1
        for size in sizes[1:]:  # in llama.cpp's order: a product that passes 2^63 on its way to 0 is refused too
            if size > 1 and total > _MAX_I64 // size:
                self.refuse(f"tensor {_show(name)} has more than 2^63 values", _DAMAGED)
            total *= size
        return tuple(reversed(sizes))

    def _type(self, name: str) -> TensorType:
        number = self._number(_U32, f"the type of {_show(name)}")
        if (fork := fork_type(number)) is not None:
            todo = f"make a file in a type of llama.cpp with the llama-quantize of {fork[1]} (--allow-requantize)"
            self.refuse(f"tensor {_show(name)} has the type {fork[0]} ({number}) of {fork[1]}", todo)
        if number in _REMOVED:
            todo = "quantize the model again from its original"
            self.refuse(f"tensor {_show(name)} has type {number}, which llama.cpp no longer reads", todo)
        try:
            return TensorType.from_id(number)
        except KeyError:
            todo = "update ggufmerge if llama.cpp knows it, else download it again"
            self.refuse(f"tensor {_show(name)} has the unknown type {number}", todo)

    def _place(self, infos: list[tuple[TensorInfo, int]]) -> list[Tensor]:
        """Where the tensors lie. They follow each other in the header's order, each padded to the alignment."""
        if not infos:
            return []
        start = _pad(self._at, self.alignment)
        tensors, offset = [], 0
        for info, stored in infos:
            if stored != offset:
                self.refuse(f"tensor {_show(info.name)} has offset {stored}, expected {offset}", _DAMAGED)
            tensors.append(Tensor(info.name, info.shape, info.type, self.file.path, start + offset, self.file))
            offset = _pad(offset + info.nbytes, self.alignment)
        end = max(tensor.offset + tensor.nbytes for tensor in tensors)
        if end > self.size:
            short = next(tensor.name for tensor in tensors if tensor.offset + tensor.nbytes > self.size)
            self.refuse(
                f"tensor {_show(short)} lies past the end of the file, which has {self.size} of {end} bytes", _TRUNCATED
            )
        return tensors

    def _number(self, layout: struct.Struct, what: str) -> int:
        at = self._take(layout.size, what)
        number: int = layout.unpack_from(self._view, at)[0]
        return number

    def _string(self, what: str) -> str:
        start = self._skip_string(what)
        return bytes(self._view[start : self._at]).decode("utf-8", "surrogateescape")

    def _skip_string(self, what: str) -> int:
        """Step over a string; where its first character is."""
        length = self._number(_U64, f"the length of {what}")
        if length > MAX_STRING:
            self.refuse(f"{what} has {length} bytes, more than {MAX_STRING}", _DAMAGED)
        return self._take(length, what)

    def _take(self, count: int, what: str) -> int:
        """Step over this many bytes; where they start."""
        at = self._at
        if count > self.size - at:
            self.refuse(f"{what} runs past the end of the file", _TRUNCATED)
        self._at = at + count
        return at


def _map(path: Path) -> MappedFile:
    try:
        with open_regular(path) as file:
            return MappedFile(path, file.fileno())
    except FileNotFoundError:
        raise FormatError(f"{path}: {absent(path)}") from None
    except IsADirectoryError:
        raise FormatError(f"{path}: this is a folder: give the .gguf file in it") from None
    except PermissionError as error:
        raise FormatError(f"{path}: the file cannot be read ({error.strerror}): check its permissions") from None
    except OSError as error:
        todo = _REMEDIES.get(error.errno or 0, "check the path and the disk")
        raise FormatError(f"{path}: the file cannot be read ({error.strerror}): {todo}") from None


_REMEDIES = {
    errno.ENXIO: "save the model to disk first",
    errno.ENOMEM: "there is too little memory or address space to map it; raise the limit (ulimit -v)",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close some programs",
}


def _pad(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _show(text: str) -> str:
    """A name out of a file, fit for a message: quoted, without control characters, not too long."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_MAX_I64 = 2**63 - 1
_MIN_PAIR = 8 + 1 + 4 + 1  # key of one byte, type, value of one byte
_MIN_INFO = 8 + 0 + 4 + 4 + 8  # empty name, no dimensions, type, offset
_REMOVED = frozenset({4, 5, 31, 32, 33, 36, 37, 38})  # Q4_2, Q4_3, and the interleaved Q4_0 and IQ4_NL
_TRUNCATED = "the file is truncated or damaged, download it again"
_DAMAGED = "the file is damaged, download it again"
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (b"lmgg", "a llama.cpp model older than GGUF", "convert the original model again"),
    (b"fmgg", "a llama.cpp model older than GGUF", "convert the original model again"),
    (b"tjgg", "a llama.cpp model older than GGUF", "convert the original model again"),
    (b"algg", "a LoRA adapter older than GGUF", "convert the adapter again with convert_lora_to_gguf.py"),
    (b"PK\x03\x04", "a zip archive or PyTorch checkpoint", "convert it with convert_hf_to_gguf.py of llama.cpp"),
    (b"PK\x07\x08", "the first part of a zip archive", "get the other parts and unpack it"),
    (b"<", "a web page", "download the file itself"),
    (b"\x1f\x8b", "an archive made with gzip", "unpack it with gunzip, or tar -xzf for a .tar.gz"),
    (b"BZh", "an archive made with bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "an archive made with xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "an archive made with zstd", "unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "an archive made with 7-Zip", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    *(
        (
            bytes([0x80, protocol]),
            "a PyTorch checkpoint (a pickle)",
            "convert it with convert_hf_to_gguf.py of llama.cpp",
        )
        for protocol in range(2, 6)
    ),
    (b"{", "a text in JSON, such as a list of files or a message of a server", "download the file itself"),
    (b"Invalid username", "a message of a server", "log in and download the file itself"),
    (b"Entry not found", "a message of a server", "check the address and download the file itself"),
    (b"Access to model", "a message of a server", "ask for access to the model and download the file itself"),
)
