"""Files taken apart into pieces that may be changed one by one, and put together again whether or not they fit.

Written from the formats' documents, without the code under test.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import struct
from typing import Any

from ggufmerge.types import TensorType
from tests.files import craft

SCALARS = {
    craft.U8: "<B",
    craft.I8: "<b",
    craft.U16: "<H",
    craft.I16: "<h",
    craft.U32: "<I",
    craft.I32: "<i",
    craft.F32: "<f",
    craft.BOOL: "<B",
    craft.U64: "<Q",
    craft.I64: "<q",
    craft.F64: "<d",
}
_LARGEST = 1 << 20  # bytes of a tensor that `settle` still makes room for


@dataclasses.dataclass
class Pair:
    """A key with the bytes of its value, as they follow the number of their kind."""

    key: bytes
    kind: int
    value: bytes


@dataclasses.dataclass
class Entry:
    """The description of a tensor, and its bytes with the padding after them."""

    name: bytes
    ne: list[int]
    type: int
    offset: int
    data: bytes


@dataclasses.dataclass
class Gguf:
    """A GGUF file in pieces. `counts`: what the header says instead of the true numbers of tensors and pairs."""

    pairs: list[Pair]
    entries: list[Entry]
    version: int = 3
    magic: bytes = b"GGUF"
    alignment: int = 32
    counts: tuple[int, int] | None = None
    tail: bytes = b""  # after the last tensor

    @classmethod
    def parse(cls, data: bytes) -> Gguf:
        """Of a valid file."""
        version, n_entries, n_pairs = struct.unpack_from("<IQQ", data, 4)
        reader = _Reader(data, 24)
        pairs = []
        for _ in range(n_pairs):
            key, kind = reader.string(), reader.number("<I")
            start = reader.at
            reader.skip_value(kind)
            pairs.append(Pair(key, kind, data[start : reader.at]))
        entries = []
        for _ in range(n_entries):
            name = reader.string()
            ne = [reader.number("<q") for _ in range(reader.number("<I"))]
            entries.append(Entry(name, ne, reader.number("<I"), reader.number("<Q"), b""))
        start = reader.at + -reader.at % 32
        ends = [*(e.offset for e in entries[1:]), len(data) - start]
        for entry, end in zip(entries, ends, strict=True):
            entry.data = data[start + entry.offset : start + end]
        return cls(pairs, entries, version)

    def copy(self) -> Gguf:
        return copy.deepcopy(self)

    def settle(self) -> Gguf:
        """Give each tensor the bytes and the offset that its shape and type ask for, as far as they make sense."""
        at = 0
        for entry in self.entries:
            size = self.size_of(entry)
            if size is None or size > _LARGEST:
                size = len(entry.data)
            padded = size + -size % self.alignment
            pattern = entry.data or b"\0"
            entry.data = (pattern * (padded // len(pattern) + 1))[:padded]
            entry.offset = at
            at += padded
        return self

    @staticmethod
    def size_of(entry: Entry) -> int | None:
        """Bytes of a tensor without padding; None when its type or shape has no such size."""
        try:
            kind = TensorType.from_id(entry.type)
        except KeyError:
            return None
        values = math.prod(entry.ne)
        if values < 0 or (entry.ne[0] if entry.ne else 1) % kind.block_size:
            return None
        return values // kind.block_size * kind.block_bytes

    def pair(self, key: bytes) -> Pair | None:
        return next((p for p in self.pairs if p.key == key), None)

    def put(self, key: bytes, kind: int, value: bytes) -> None:
        """Set a key, at its place if it is there."""
        found = self.pair(key)
        if found is None:
            self.pairs.append(Pair(key, kind, value))
        else:
            found.kind, found.value = kind, value

    def __bytes__(self) -> bytes:
        infos = [_info(e) for e in self.entries]
        n_tensors, n_pairs = self.counts or (None, None)
        made = craft.Craft(
            pairs=[craft.pair(p.key, p.kind, p.value) for p in self.pairs],
            infos=infos,
            data=b"".join(e.data for e in self.entries) + self.tail,
            magic=self.magic,
            version=self.version,
            n_tensors=n_tensors,
            n_pairs=n_pairs,
            alignment=self.alignment,
        )
        return bytes(made)


def _info(entry: Entry) -> bytes:
    """Numbers of any size: what does not fit is cut off."""
    ne = b"".join((n % 2**64).to_bytes(8, "little") for n in entry.ne)
    end = (entry.type % 2**32).to_bytes(4, "little") + (entry.offset % 2**64).to_bytes(8, "little")
    return craft.string(entry.name) + struct.pack("<I", len(entry.ne)) + ne + end


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def number(self, code: str) -> int:
        [value] = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return int(value)

    def string(self) -> bytes:
        length = self.number("<Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def skip_value(self, kind: int) -> None:
        if kind == craft.STRING:
            self.string()
        elif kind == craft.ARRAY:
            element, count = self.number("<I"), self.number("<Q")
            if element == craft.STRING:
                for _ in range(count):
                    self.string()
            else:
                self.at += count * struct.calcsize(SCALARS[element])
        else:
            self.at += struct.calcsize(SCALARS[kind])


def elements(value: bytes) -> tuple[int, list[bytes]]:
    """Kind and elements (strings without their lengths) of an array, of the bytes of its value."""
    reader = _Reader(value, 0)
    kind, count = reader.number("<I"), reader.number("<Q")
    if kind == craft.STRING:
        return kind, [reader.string() for _ in range(count)]
    size = struct.calcsize(SCALARS[kind])
    return kind, [value[12 + i * size : 12 + (i + 1) * size] for i in range(count)]


def array_value(kind: int, items: list[bytes]) -> bytes:
    """The bytes of an array; the other way round of `elements`."""
    packed = [craft.string(item) for item in items] if kind == craft.STRING else items
    return struct.pack("<IQ", kind, len(items)) + b"".join(packed)


@dataclasses.dataclass
class Safetensors:
    """A safetensors file in pieces. `length`: what it says about the length of its header instead of the truth."""

    header: Any
    data: bytes
    length: int | None = None

    @classmethod
    def parse(cls, data: bytes) -> Safetensors:
        [length] = struct.unpack_from("<Q", data)
        return cls(json.loads(data[8 : 8 + length]), data[8 + length :])

    def pack(self, text: bytes | None = None) -> bytes:
        """text: the header when it is not to be the JSON of `header`."""
        text = json.dumps(self.header).encode() if text is None else text
        length = len(text) if self.length is None else self.length
        return (length % 2**64).to_bytes(8, "little") + text + self.data


@dataclasses.dataclass
class Pieces:
    """A SentencePiece model in pieces: (text, score, type) and the other fields as they are."""

    pieces: list[tuple[bytes, float, int]]
    rest: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Pieces:
        made, at = cls([]), 0
        while at < len(data):
            start = at
            tag, at = _varint(data, at)
            length, at = _varint(data, at)
            body, at = data[at : at + length], at + length
            if tag == 0x0A:
                made.pieces.append(_piece(body))
            else:
                made.rest += data[start:at]
        return made

    def __bytes__(self) -> bytes:
        out = b""
        for text, score, kind in self.pieces:
            body = b"\x0a" + to_varint(len(text)) + text + b"\x15" + struct.pack("<f", score)
            body += b"\x18" + to_varint(kind)
            out += b"\x0a" + to_varint(len(body)) + body
        return out + self.rest


def _piece(body: bytes) -> tuple[bytes, float, int]:
    text, score, kind, at = b"", 0.0, 1, 0
    while at < len(body):
        tag, at = _varint(body, at)
        if tag == 0x0A:
            length, at = _varint(body, at)
            text, at = body[at : at + length], at + length
        elif tag == 0x15:
            [score], at = struct.unpack_from("<f", body, at), at + 4
        else:
            kind, at = _varint(body, at)
    return text, score, kind


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def to_varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
