"""Builds GGUF files byte by byte, valid or not, without the code under test."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_F32, TYPE_Q4_0, TYPE_Q8_0 = 0, 2, 8


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key-value pair; `value` as it stands behind the type tag."""
    return string(key) + struct.pack("<I", kind) + value


def text(key: str | bytes, value: str | bytes) -> bytes:
    return pair(key, STRING, string(value))


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array(key: str, element: int, count: int, data: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", element, count) + data)


def info(name: str | bytes, ne: Sequence[int], type: int, offset: int) -> bytes:  # noqa: A002
    """Description of a tensor; `ne` in the file's order, row length first."""
    return string(name) + struct.pack(f"<I{len(ne)}qIQ", len(ne), *ne, type, offset)


@dataclasses.dataclass
class Craft:
    """A file from its parts; the counts are told truthfully unless given."""

    pairs: Sequence[bytes] = (text("general.architecture", "llama"),)
    infos: Sequence[bytes] = ()
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_pairs: int | None = None
    alignment: int = 32

    def __bytes__(self) -> bytes:
        n_tensors = len(self.infos) if self.n_tensors is None else self.n_tensors
        n_pairs = len(self.pairs) if self.n_pairs is None else self.n_pairs
        header = self.magic + struct.pack("<Iqq", self.version, n_tensors, n_pairs)
        header += b"".join(self.pairs) + b"".join(self.infos)
        return header + bytes(-len(header) % self.alignment) + self.data


def valid() -> bytes:
    """A small correct file: every value type, arrays, tensors of 0 to 4 dimensions and two block types."""
    return bytes(
        Craft(
            pairs=(
                text("general.architecture", "llama"),
                pair("x.u8", U8, struct.pack("<B", 200)),
                pair("x.i8", I8, struct.pack("<b", -100)),
                pair("x.u16", U16, struct.pack("<H", 60000)),
                pair("x.i16", I16, struct.pack("<h", -30000)),
                u32("x.u32", 4000000000),
                pair("x.i32", I32, struct.pack("<i", -2000000000)),
                pair("x.f32", F32, struct.pack("<f", 1.5)),
                pair("x.bool", BOOL, b"\x01"),
                pair("x.u64", U64, struct.pack("<Q", 2**64 - 1)),
                pair("x.i64", I64, struct.pack("<q", -(2**63))),
                pair("x.f64", F64, struct.pack("<d", 0.1)),
                text("x.empty", ""),
                array("x.words", STRING, 3, string("a") + string("") + string("größe")),
                array("x.scores", F32, 2, struct.pack("<2f", 0.25, -1.0)),
                array("x.flags", BOOL, 3, b"\x00\x01\x02"),
                array("x.none", I32, 0, b""),
            ),
            infos=(
                info("one", [], TYPE_F32, 0),
                info("vector", [3], TYPE_F32, 32),
                info("blocks", [32, 2], TYPE_Q4_0, 64),
                info("stack", [32, 3, 2, 1], TYPE_Q8_0, 128),
                info("nothing", [32, 0], TYPE_F32, 352),
            ),
            data=bytes(range(256)) + bytes(96),
        )
    )


def splittable() -> bytes:
    """A file of 2.6 MB to cut into shards: strings, numbers and arrays; seven tensors of 4 bytes to 1.2 MB."""
    shapes = ([512, 300], [33], [32, 10], [1024, 300], [512, 200], [1], [512, 100, 2])
    infos, data = [], b""
    for index, ne in enumerate(shapes):
        kind, nbytes = (TYPE_Q8_0, math.prod(ne) // 32 * 34) if index == 2 else (TYPE_F32, math.prod(ne) * 4)
        infos.append(info(f"tensor.{index}", ne, kind, len(data)))
        content = bytes((index + 7 * place) % 256 for place in range(256)) * (nbytes // 256 + 1)
        data += content[:nbytes] + bytes(-nbytes % 32)
    pairs = (
        text("general.architecture", "llama"),
        text("general.name", "Größe"),
        u32("llama.block_count", 1),
        pair("llama.rope.freq_base", F32, struct.pack("<f", 10000.0)),
        array("tokenizer.ggml.tokens", STRING, 3, string("a") + string("") + string("ß")),
        array("tokenizer.ggml.scores", F32, 3, struct.pack("<3f", 0.5, -1.0, 2.0)),
    )
    return bytes(Craft(pairs=pairs, infos=infos, data=data))
