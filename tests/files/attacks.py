"""Hostile and damaged files: what must be refused, what the message must say, and what ggml itself thinks of them."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

from tests.files.craft import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    TYPE_F32,
    TYPE_Q4_0,
    U16,
    U64,
    Craft,
    array,
    info,
    pair,
    string,
    text,
    u32,
    valid,
)

HUGE = 2**62


@dataclasses.dataclass
class Attack:
    """message: part of what the error must say.  ggml: whether `gguf_init_from_file` accepts the file, because only
    llama.cpp's model loader compares the tensors with the size of the file.
    """

    name: str
    content: bytes
    message: str
    ggml: bool = False


def _tensors(*infos: bytes, data: int = 4096, **parts: Any) -> bytes:
    return bytes(Craft(infos=infos, data=bytes(data), **parts))


def _pairs(*pairs: bytes) -> bytes:
    return bytes(Craft(pairs=pairs))


def attacks() -> Iterator[Attack]:
    yield from _preambles()
    yield from _metadata()
    yield from _descriptions()
    yield from _placement()
    yield from _cuts()


def _preambles() -> Iterator[Attack]:
    yield Attack("empty file", b"", "empty")
    yield Attack("shorter than the magic", b"GG", "not a GGUF file")
    yield Attack("magic only", b"GGUF", "the version runs past the end")
    yield Attack("preamble cut", bytes(Craft())[:20], "key-value pairs runs past the end")
    yield Attack("wrong magic", bytes(Craft(magic=b"GGUX")), "not a GGUF file (it starts with b'GGUX')")
    yield Attack("older format", bytes(Craft(magic=b"tjgg")), "older than GGUF: convert")
    yield Attack("web page", b"<!DOCTYPE html><html>", "a web page: download the file itself")
    yield Attack("git lfs pointer", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")
    yield Attack("safetensors", struct.pack("<Q", 9) + b'{"x": {}}', "safetensors: convert")
    yield Attack("pytorch", b"PK\x03\x04" + bytes(60), "PyTorch")
    yield Attack("version 0", bytes(Craft(version=0)), "version 0 is unknown")
    yield Attack("version 1", bytes(Craft(version=1)), "version 1 is no longer supported: convert the model again")
    yield Attack("version 4", bytes(Craft(version=4)), "version 4 is unknown")
    yield Attack("big-endian", bytes(Craft(version=3 << 24)), "other byte order")
    yield Attack("tensors without end", bytes(Craft(n_tensors=HUGE)), f"announces {HUGE} tensors but only")
    yield Attack("pairs without end", bytes(Craft(n_pairs=HUGE)), f"announces {HUGE} key-value pairs but only")
    yield Attack("negative tensors", bytes(Craft(n_tensors=-1)), "-1 tensors")
    yield Attack("negative pairs", bytes(Craft(n_pairs=-1)), "-1 key-value pairs")
    yield Attack("one pair too many", bytes(Craft(n_pairs=2)), "download it again")
    yield Attack("one tensor too many", bytes(Craft(n_tensors=1)), "download it again", ggml=True)


def _metadata() -> Iterator[Attack]:
    yield Attack("long key", _pairs(struct.pack("<Q", HUGE) + b"key"), "bytes, more than")
    yield Attack("key past the end", _pairs(struct.pack("<Q", 1000) + b"key" + bytes(20)), "key 1 runs past the end")
    yield Attack("empty key", _pairs(text("", "value")), "key 1 is empty")
    yield Attack("double key", _pairs(text("a", "1"), u32("b", 1), text("a", "2")), "key 'a' appears twice")
    yield Attack("unknown value type", _pairs(pair("a", 13, bytes(8))), "'a' has the unknown value type 13")
    yield Attack("huge value type", _pairs(pair("a", 2**32 - 1, bytes(8))), "unknown value type 4294967295")
    yield Attack("long string", _pairs(pair("a", STRING, struct.pack("<Q", 2**40) + b"x")), "bytes, more than")
    yield Attack("negative string", _pairs(pair("a", STRING, b"\xff" * 8)), "bytes, more than")
    yield Attack(
        "string past the end", _pairs(pair("a", STRING, struct.pack("<Q", 99) + b"x")), "value of 'a' runs past"
    )
    yield Attack(
        "array of arrays", _pairs(array("a", ARRAY, 1, struct.pack("<IQ", F32, 0))), "'a' is an array of arrays"
    )
    yield Attack("array of nothing known", _pairs(array("a", 99, 1, bytes(8))), "unknown value type 99")
    yield Attack("array without end", _pairs(array("a", F32, HUGE, bytes(8))), f"{HUGE} elements, more than")
    yield Attack("array of bytes without end", _pairs(array("a", 0, 2**30, bytes(8))), "array 'a' runs past the end")
    yield Attack("array whose size wraps", _pairs(array("a", U64, 2**61 + 1, bytes(8))), "elements, more than")
    yield Attack("array past the end", _pairs(array("a", I32, 100, bytes(8))), "array 'a' runs past the end")
    yield Attack("strings without end", _pairs(array("a", STRING, 2**30, bytes(8))), "strings in 'a' but only")
    yield Attack(
        "strings past the end", _pairs(array("a", STRING, 2, string("x") + struct.pack("<Q", 99))), "'a' runs past"
    )
    huge = struct.pack("<Q", 2**64 - 8) + bytes(64)
    yield Attack("string whose length wraps", _pairs(array("a", STRING, 2, huge)), "array 'a' runs past the end")
    key = "general.alignment"
    yield Attack("alignment u64", _pairs(pair(key, U64, struct.pack("<Q", 32))), "must be of type U32, not U64")
    yield Attack("alignment i32", _pairs(pair(key, I32, struct.pack("<i", 32))), "must be of type U32, not I32")
    yield Attack("alignment string", _pairs(text(key, "32")), "must be of type U32, not STRING")
    yield Attack("alignment array", _pairs(array(key, 4, 1, struct.pack("<I", 32))), "must be of type U32, not ARRAY")
    yield Attack("alignment 0", _pairs(u32(key, 0)), "is 0, which is not a power of two")
    yield Attack("alignment 48", _pairs(u32(key, 48)), "is 48, which is not a power of two")
    yield Attack("alignment bool", _pairs(pair(key, BOOL, b"\x01")), "must be of type U32")


def _descriptions() -> Iterator[Attack]:
    name = "n" * 64
    yield Attack("name of 64 bytes", _tensors(info(name, [4], TYPE_F32, 0)), "a name of 64 bytes, more than 63")
    yield Attack("name in long letters", _tensors(info("ö" * 32, [4], TYPE_F32, 0)), "a name of 64 bytes")
    yield Attack("name without end", _tensors(struct.pack("<Q", HUGE) + bytes(64)), "bytes, more than")
    yield Attack(
        "double name", _tensors(info("a", [4], TYPE_F32, 0), info("a", [4], TYPE_F32, 32)), "'a' appears twice"
    )
    yield Attack("5 dimensions", _tensors(info("a", [1] * 5, TYPE_F32, 0)), "5 dimensions, more than 4")
    many = string("a") + struct.pack("<I", 2**32 - 1) + bytes(64)
    yield Attack("dimensions without end", _tensors(many), "4294967295 dimensions")
    yield Attack("negative dimension", _tensors(info("a", [4, -1], TYPE_F32, 0)), "negative dimension -1")
    yield Attack("2^64 values", _tensors(info("a", [2**32, 2**32], TYPE_F32, 0)), "more than 2^63 values")
    yield Attack("2^64 values in four", _tensors(info("a", [2**16] * 4, TYPE_F32, 0)), "more than 2^63 values")
    yield Attack("2^63 values, then none", _tensors(info("a", [2**32, 2**31, 0], TYPE_F32, 0)), "more than 2^63 values")
    yield Attack("2^65 bytes", _tensors(info("a", [2**62, 1], 28, 0)), "past the end of the file")
    for removed in (4, 5, 31, 32, 33, 36, 37, 38):
        yield Attack(
            f"removed type {removed}", _tensors(info("a", [256], removed, 0)), "which llama.cpp no longer reads"
        )
    yield Attack("unknown type", _tensors(info("a", [256], 43, 0)), "unknown type 43")
    yield Attack("negative type", _tensors(info("a", [256], 2**32 - 1, 0)), "unknown type 4294967295")
    yield Attack("half a block", _tensors(info("a", [48], TYPE_Q4_0, 0)), "rows of 48 values, not whole blocks of 32")
    yield Attack("blocks of one value", _tensors(info("a", [], TYPE_Q4_0, 0)), "rows of 1 values, not whole blocks")


def _placement() -> Iterator[Attack]:
    a, b = info("a", [4], TYPE_F32, 0), info("b", [4], TYPE_F32, 32)
    yield Attack("first offset not 0", _tensors(info("a", [4], TYPE_F32, 32)), "has offset 32, expected 0")
    yield Attack("gap", _tensors(a, info("b", [4], TYPE_F32, 64)), "'b' has offset 64, expected 32")
    yield Attack("overlap", _tensors(a, info("b", [4], TYPE_F32, 0)), "'b' has offset 0, expected 32")
    yield Attack("other order", _tensors(b, a), "'b' has offset 32, expected 0")
    yield Attack("no padding", _tensors(a, info("b", [4], TYPE_F32, 16)), "'b' has offset 16, expected 32")
    yield Attack("offset that wraps", _tensors(a, info("b", [4], TYPE_F32, 2**64 - 32)), "expected 32")
    aligned = (text("general.architecture", "llama"), u32("general.alignment", 64))
    yield Attack("padded for another alignment", _tensors(a, b, pairs=aligned), "'b' has offset 32, expected 64")
    yield Attack("no data", _tensors(a, data=0), "'a' lies past the end of the file", ggml=True)
    yield Attack("data cut", _tensors(a, b, data=47), "'b' lies past the end of the file", ggml=True)
    large = info("a", [2**40], TYPE_F32, 0)
    yield Attack("larger than the file", _tensors(large), "download it again", ggml=True)
    far = (text("general.architecture", "llama"), u32("general.alignment", 2**31))
    yield Attack("data section past the end", _tensors(a, pairs=far), "past the end of the file")


def _cuts() -> Iterator[Attack]:
    """A correct file cut off within its header."""
    whole = valid()
    for length in range(4, len(whole) - 352, 37):
        yield Attack(f"cut at {length}", whole[:length], "download it again")


def wrong_shards() -> tuple[bytes, ...]:
    """Values of `split.count` that are not the u16 llama.cpp asks for."""
    return (
        u32("split.count", 2),
        pair("split.count", I32, struct.pack("<i", 2)),
        text("split.count", "2"),
        array("split.count", U16, 1, struct.pack("<H", 2)),
    )
