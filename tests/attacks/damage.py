"""What is done to valid inputs: values of other types, texts that reach for the terminal, numbers at the edges, pieces
swapped, doubled and missing, bits flipped.

All chances are drawn from a `random.Random`, so the same seed makes the same damage.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import json
import math
import random
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf

import ggufmerge
from ggufmerge.keys import OWN, base_model, lineage, source
from ggufmerge.types import TensorType
from tests.attacks.containers import SCALARS, Gguf, Pair, Pieces, Safetensors, array_value, elements
from tests.files import craft

# stands at the start of a line only if a text out of a file was printed with its line breaks
MARK = "INJECTED"

_TEXTS: tuple[str | bytes, ...] = (
    "",
    " ",
    "\0",
    "x",
    "abc",
    f"x\x1b[2J\nerror: {MARK}",
    f"x\rerror: {MARK}\x0b\x0c\x1c\x85\u2028\u2029{MARK}",
    f"x\nFROM {MARK}\nSYSTEM {MARK}\n#",
    f'"""\nSYSTEM {MARK}\n"""',
    "\x9b2J\x7f\u202e",
    b"\xff",
    b"\xed\xa0\x80x",
    b"caf\xe9\n",
    "\U0001f600" * 16,
    "a" * 64,
    "a" * 70_000,
    "../../x",
    "/x",
    "C:\\x",
    "a/b",
    ".",
    "..",
    "*",
    "[",
    "(.+)+!",
    "%s%n{0}",
    "{{ x }}{% for %}",
    "{{ .System }}{{",
    "[bold]x[/bold][/",
    "nan",
    "1e999",
    "-1",
    "true",
    "null",
    "mit",
    "llama",
    "llama2",
    "adapter",
    "model",
    "Q4_0",
    "https://huggingface.co/a/b",
    "https://x/\x1b[2J",
)
_WHOLE = (0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 127, 128, 255, 256, 300, 1000, 32767, 65535, 65536, 10**6)
_EDGES = (2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**33, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (
    math.nan,
    -math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    1e-45,
    1e-38,
    65504.0,
    7e4,
    1e9,
    3e38,
    -3e38,
    1e300,
    0.5,
)
_F32_BITS = (0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00000001, 0x80000000, 0x4E6E6B28)
_F16_BITS = (0x7E00, 0xFE00, 0x7C01, 0x7C00, 0xFC00, 0x7BFF, 0xFBFF, 0x0001, 0x8000)

# first bytes of the scales in a block (16-bit floats; of MXFP4 and NVFP4 one byte)
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,),
    "IQ3_S": (0,), "IQ1_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,), "Q1_0": (0,),
    "Q2_0": (0,), "F16": (0,), "BF16": (0,),
}  # fmt: skip
BYTE_SCALES = {"MXFP4": (0,), "NVFP4": (0, 1, 2, 3)}


def text(rng: random.Random, old: str | bytes = "") -> bytes:
    """A text that somebody might not expect, at times made from an old one; not always UTF-8."""
    chosen = rng.choice(_TEXTS)
    new = chosen.encode() if isinstance(chosen, str) else chosen
    before = old.encode("utf-8", "surrogateescape") if isinstance(old, str) else old
    return rng.choice((new, new, before + new, before[: len(before) // 2], before.swapcase(), before + before))


def word(rng: random.Random, old: str = "") -> str:
    """The same as a str; bytes that are no UTF-8 become other letters."""
    return text(rng, old).decode("utf-8", "replace")


def whole(rng: random.Random) -> int:
    number = rng.choice((rng.choice(_WHOLE), rng.choice(_EDGES), rng.randrange(2**16)))
    return -number if rng.random() < 0.2 else number


def real(rng: random.Random) -> float:
    return rng.choice((rng.choice(_FLOATS), rng.uniform(-2, 2)))


# Values of GGUF ---------------------------------------------------------------------------------------------------


def scalar(rng: random.Random, kind: int) -> bytes:
    """The bytes of a number or switch of a kind."""
    code = SCALARS.get(kind, "<B")  # an earlier damage may have made up the kind
    if code == "<f":
        return rng.choice(_F32_BITS).to_bytes(4, "little") if rng.random() < 0.5 else struct.pack(code, rng.random())
    if code == "<d":
        return struct.pack(code, real(rng))
    size = struct.calcsize(code)
    return (whole(rng) % 2 ** (8 * size)).to_bytes(size, "little")


def value_of_kind(rng: random.Random, number: int) -> tuple[int, bytes]:
    """A value of one of `VALUE_KINDS` kinds: every type of GGUF, and arrays of several."""
    scalars = list(SCALARS)
    if number < len(scalars):
        return scalars[number], scalar(rng, scalars[number])
    if number == len(scalars):
        return craft.STRING, craft.string(text(rng))
    if number == len(scalars) + 1:
        return craft.ARRAY, array_value(rng.choice((*scalars, craft.STRING)), [])
    element = (craft.STRING, craft.U32, craft.I32, craft.F32, craft.BOOL, craft.F64)[number - len(scalars) - 2]
    count = rng.choice((1, 1, 2, 3, 40))
    items = [text(rng) if element == craft.STRING else scalar(rng, element) for _ in range(count)]
    return craft.ARRAY, array_value(element, items)


VALUE_KINDS = len(SCALARS) + 8


def any_value(rng: random.Random) -> tuple[int, bytes]:
    return value_of_kind(rng, rng.randrange(VALUE_KINDS))


@functools.cache
def known_keys() -> tuple[bytes, ...]:
    """Metadata keys that the program's own source names, so that new ones join by themselves."""
    complete = re.compile(r"(general|tokenizer|adapter|imatrix|split|quantize|ggufmerge|clip)(\.[a-z0-9_]+)+")
    ends = {key.removeprefix("{arch}.") for key in _gguf_keys() if key.startswith("{arch}.")}
    numbered = {base_model(0, "name"), source(1, "file"), lineage(0, "recipe"), OWN + "version"}
    found = set(numbered)
    for path in sorted(Path(ggufmerge.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if complete.fullmatch(node.value):
                    found.add(node.value)
                elif (end := node.value.removeprefix(".")) in ends:  # "{architecture}.block_count"
                    found.add(f"llama.{end}")
    return tuple(sorted(key.encode() for key in found))


def _gguf_keys() -> set[str]:
    """All keys that llama.cpp's own package names."""
    groups = [group for name, group in vars(gguf.Keys).items() if not name.startswith("_")]
    return {key for group in groups for key in vars(group).values() if isinstance(key, str)}


# GGUF files -------------------------------------------------------------------------------------------------------


def damage_gguf(rng: random.Random, file: Gguf, *, where: str = "pid") -> bytes:
    """One to three changes; where: in pairs, infos (descriptions of tensors), data, or the container as a whole (c)."""
    file = file.copy()
    settle, raw = True, False
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.choice(where)
        if place == "p" and file.pairs:
            rng.choice(_PAIR_DAMAGE)(rng, file)
        elif place == "i" and file.entries:
            change = rng.choice(_INFO_DAMAGE)
            settle = settle and change not in _UNSETTLED
            change(rng, file)
        elif place == "d" and file.entries:
            damage_data(rng, file)
        elif place == "c":
            settle = False
            raw = raw or rng.random() < 0.5
            rng.choice(_CONTAINER_DAMAGE)(rng, file)
    if settle and rng.random() < 0.9:
        file.settle()
    packed = bytes(file)
    return damage_bytes(rng, packed, _header_length(file, packed)) if raw else packed


def _header_length(file: Gguf, packed: bytes) -> int:
    return len(packed) - sum(len(e.data) for e in file.entries) - len(file.tail)


def damage_bytes(rng: random.Random, data: bytes, within: int | None = None) -> bytes:
    """Bits flipped, words overwritten, pieces cut out, doubled and put in; within: only in the first bytes."""
    out = bytearray(data)
    end = min(len(out), within) if within else len(out)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(max(end, 1))
        change = rng.randrange(7)
        if not out or change == 0:
            out[at:at] = rng.choice((b"\0", b"\n", b"\xff\xfe", b"[" * 5000, text(rng), rng.randbytes(8)))
        elif change == 1:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif change == 2:
            out[at : at + 8] = (whole(rng) % 2**64).to_bytes(8, "little")
        elif change == 3:
            out[at : at + 4] = (whole(rng) % 2**32).to_bytes(4, "little")
        elif change == 4:
            del out[at : at + rng.choice((1, 1, 4, 16))]
        elif change == 5:
            out[at:at] = out[at : at + rng.choice((4, 32, 256))]
        elif rng.random() < 0.3:
            del out[at:]
        end = min(end, len(out))
    return bytes(out)


def _set_known(rng: random.Random, file: Gguf) -> None:
    key = rng.choice(known_keys())
    architecture = file.pair(b"general.architecture")
    if key.startswith(b"llama.") and architecture is not None and architecture.kind == craft.STRING:
        key = architecture.value[8:] + key[5:]
    file.put(key, *any_value(rng))


def _retype(rng: random.Random, file: Gguf) -> None:
    pair = rng.choice(file.pairs)
    pair.kind, pair.value = any_value(rng)


def _renumber(rng: random.Random, file: Gguf) -> None:
    """Another value of the same kind."""
    pair = rng.choice(file.pairs)
    if pair.kind == craft.STRING:
        pair.value = craft.string(text(rng, pair.value[8:]))
    elif pair.kind != craft.ARRAY:
        pair.value = scalar(rng, pair.kind)
    else:
        _change_array(rng, pair)


def _change_array(rng: random.Random, pair: Pair) -> None:
    with contextlib.suppress(struct.error, KeyError):  # damaged before
        kind, items = elements(pair.value)
        at = rng.randrange(len(items) + 1)
        new = text(rng, items[at] if at < len(items) else b"") if kind == craft.STRING else scalar(rng, kind)
        change = rng.randrange(6)
        if change == 0 or not items:
            items.insert(at, new)
        elif change == 1:
            items[at - 1] = new
        elif change == 2:
            del items[at - 1]
        elif change == 3:
            items[at - 1] = rng.choice(items)
        elif change == 4:
            del items[at:]
        else:
            rng.shuffle(items)
        pair.value = array_value(kind, items)


def damage_vocabulary(rng: random.Random, file: Gguf) -> None:
    """Tokens, scores and types."""
    _change_array(rng, rng.choice([p for p in file.pairs if p.key.startswith(b"tokenizer.") and p.kind == craft.ARRAY]))


def _drop_pair(rng: random.Random, file: Gguf) -> None:
    file.pairs.remove(rng.choice(file.pairs))


def _double_pair(rng: random.Random, file: Gguf) -> None:
    file.pairs.append(copy.copy(rng.choice(file.pairs)))


def _rename_pair(rng: random.Random, file: Gguf) -> None:
    pair = rng.choice(file.pairs)
    pair.key = rng.choice((text(rng, pair.key), rng.choice(known_keys())))


def _swap_values(rng: random.Random, file: Gguf) -> None:
    a, b = rng.choice(file.pairs), rng.choice(file.pairs)
    a.kind, a.value, b.kind, b.value = b.kind, b.value, a.kind, a.value


def _shuffle_pairs(rng: random.Random, file: Gguf) -> None:
    rng.shuffle(file.pairs)


def _lie_about_value(rng: random.Random, file: Gguf) -> None:
    """Lengths, counts and kinds that the bytes do not have."""
    pair = rng.choice(file.pairs)
    if pair.kind == craft.STRING:
        pair.value = (whole(rng) % 2**64).to_bytes(8, "little") + pair.value[8:]
    elif pair.kind == craft.ARRAY and rng.random() < 0.6:
        pair.value = pair.value[:4] + (whole(rng) % 2**64).to_bytes(8, "little") + pair.value[12:]
    elif pair.kind == craft.ARRAY:
        pair.value = (rng.randrange(15)).to_bytes(4, "little") + pair.value[4:]
    else:
        pair.kind = rng.choice((rng.randrange(16), whole(rng) % 2**32))


_PAIR_DAMAGE: Sequence[Callable[[random.Random, Gguf], None]] = (
    _set_known, _set_known, _retype, _retype, _renumber, _renumber, _renumber, _drop_pair, _double_pair, _rename_pair,
    _swap_values, _shuffle_pairs,
)  # fmt: skip


def _rename_tensor(rng: random.Random, file: Gguf) -> None:
    entry = rng.choice(file.entries)
    other = rng.choice(file.entries).name
    layer = re.sub(rb"^blk\.\d+", b"blk.%d" % abs(whole(rng)), entry.name)
    end = re.sub(rb"\.[a-z_]+$", rng.choice((b".bias", b".scale", b".input_scale", b"", b".x")), entry.name)
    entry.name = rng.choice((text(rng, entry.name), layer, end, other, entry.name + b"x", b"blk." + entry.name))


def _swap_names(rng: random.Random, file: Gguf) -> None:
    a, b = rng.choice(file.entries), rng.choice(file.entries)
    a.name, b.name = b.name, a.name


def _reshape(rng: random.Random, file: Gguf) -> None:
    entry = rng.choice(file.entries)
    change = rng.randrange(7)
    if change == 0 or not entry.ne:
        entry.ne.insert(rng.randrange(len(entry.ne) + 1), rng.choice((1, 1, 2, 0, 3)))
    elif change == 1:
        entry.ne.reverse()
    elif change == 2:
        del entry.ne[rng.randrange(len(entry.ne))]
    elif change == 3:
        at = rng.randrange(len(entry.ne))
        entry.ne[at] = rng.choice((0, 1, entry.ne[at] * 2, entry.ne[at] // 2, entry.ne[at] + 1, entry.ne[at] - 1))
    elif change == 4:
        entry.ne[-1] = rng.choice((0, 1, 32, 64, 256, 1000))
    elif change == 5:
        entry.ne = list(rng.choice(file.entries).ne)
    else:
        entry.ne[rng.randrange(len(entry.ne))] = whole(rng)


def _other_type(rng: random.Random, file: Gguf) -> None:
    entry = rng.choice(file.entries)
    entry.type = rng.choice((rng.choice(list(TensorType)).id, rng.choice(list(TensorType)).id, rng.randrange(50)))


def _drop_tensor(rng: random.Random, file: Gguf) -> None:
    del file.entries[rng.randrange(len(file.entries))]


def _double_tensor(rng: random.Random, file: Gguf) -> None:
    again = copy.copy(rng.choice(file.entries))
    again.ne = list(again.ne)
    again.name = rng.choice((again.name, again.name + b"2", again.name.replace(b".weight", b".scale")))
    file.entries.append(again)


def _shuffle_tensors(rng: random.Random, file: Gguf) -> None:
    rng.shuffle(file.entries)


def _other_offset(rng: random.Random, file: Gguf) -> None:
    entry = rng.choice(file.entries)
    entry.offset = rng.choice((whole(rng), entry.offset + 32, entry.offset - 32, entry.offset + 1))


def _other_layers(rng: random.Random, file: Gguf) -> None:
    """All tensors of a layer under another number."""
    old, new = b"blk.%d." % rng.randrange(2), b"blk.%d." % rng.choice((0, 1, 2, 3, 10**6, 2**32 - 1, 2**64))
    for entry in file.entries:
        if entry.name.startswith(old):
            entry.name = new + entry.name.removeprefix(old)


_INFO_DAMAGE: Sequence[Callable[[random.Random, Gguf], None]] = (
    _rename_tensor, _rename_tensor, _swap_names, _reshape, _reshape, _reshape, _other_type, _other_type, _drop_tensor,
    _double_tensor, _shuffle_tensors, _other_offset, _other_layers,
)  # fmt: skip
_UNSETTLED = (_other_offset,)


def damage_data(rng: random.Random, file: Gguf) -> None:
    """Weights: NaN, infinity, huge and tiny numbers, in one scale or in all of a tensor, zeros, anything at all."""
    entry = rng.choice(file.entries)
    if not entry.data:
        return
    data = bytearray(entry.data)
    with contextlib.suppress(KeyError):
        kind = TensorType.from_id(entry.type)
        change = rng.randrange(8)
        if change == 0:
            data = bytearray(rng.randbytes(len(data)))
        elif change == 1:
            data = bytearray(bytes((rng.choice((0, 0, 0xFF, 0x7F, 0x80)),)) * len(data))
        elif change == 2:
            data = bytearray(rng.choice(file.entries).data or b"\0")
            data = bytearray((bytes(data) * (len(entry.data) // len(data) + 1))[: len(entry.data)])
        else:
            blocks = max(len(data) // kind.block_bytes, 1)
            every = rng.random() < 0.3
            number = _block_number(rng, str(kind))
            if number is None:
                data = bytearray(damage_bytes(rng, bytes(data))[: len(entry.data)].ljust(len(entry.data), b"\0"))
            else:
                for block in range(blocks) if every else [rng.randrange(blocks)]:
                    at = block * kind.block_bytes + number[0]
                    if at + len(number[1]) <= len(data):
                        data[at : at + len(number[1])] = number[1]
    entry.data = bytes(data)


def spoil(rng: random.Random, file: Gguf) -> bytes:
    """Make one weight of a matrix, or a scale, NaN or infinite; returns the name of the tensor."""
    kept = (b"token_embd", b"ffn_gate_inp")  # a type of their own, which llama-quantize leaves as it is
    matrices = [e for e in file.entries if len(e.ne) > 1 and not any(name in e.name for name in kept)]
    entry = rng.choice(matrices)
    kind = TensorType.from_id(entry.type)
    if str(kind) == "F32":
        at, number = 0, rng.choice((b"\0\0\xc0\x7f", b"\0\0\xc0\xff", b"\0\0\x80\x7f", b"\0\0\x80\xff"))
    elif str(kind) == "BF16":
        at, number = 0, rng.choice((b"\xc0\x7f", b"\xc0\xff", b"\x80\x7f", b"\x80\xff"))
    else:
        at, number = rng.choice(SCALES[str(kind)]), rng.choice((b"\0\x7e", b"\0\xfe", b"\0\x7c", b"\0\xfc"))
    at += rng.randrange((Gguf.size_of(entry) or 0) // kind.block_bytes) * kind.block_bytes
    entry.data = entry.data[:at] + number + entry.data[at + len(number) :]
    return entry.name


def _block_number(rng: random.Random, kind: str) -> tuple[int, bytes] | None:
    """Where in a block to put which special number."""
    if kind == "F32":
        return 0, rng.choice((rng.choice(_F32_BITS).to_bytes(4, "little"), struct.pack("<f", rng.choice((1e9, 1e37)))))
    if kind == "F64":
        return 0, struct.pack("<d", real(rng))
    if kind == "BF16":
        return 0, (rng.choice(_F32_BITS) >> 16).to_bytes(2, "little")
    if kind in SCALES:
        return rng.choice(SCALES[kind]), rng.choice(_F16_BITS).to_bytes(2, "little")
    if kind in BYTE_SCALES:
        return rng.choice(BYTE_SCALES[kind]), bytes((rng.choice((0xFF, 0xFE, 0x7F, 0x80, 0)),))
    return None


def _lie_about_counts(rng: random.Random, file: Gguf) -> None:
    counts = [len(file.entries), len(file.pairs)]
    at = rng.randrange(2)
    counts[at] = rng.choice((counts[at] + 1, counts[at] - 1, -1, 0, min(abs(whole(rng)), 2**63 - 1)))
    file.counts = (counts[0], counts[1])


def _other_version(rng: random.Random, file: Gguf) -> None:
    if rng.random() < 0.5:
        file.version = rng.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))
    else:
        file.magic = rng.choice((b"ggml", b"FUGG", b"GGUF\0", b"PK\x03\x04", b"", b"tjgg"))


def _other_alignment(rng: random.Random, file: Gguf) -> None:
    number = rng.choice((0, 1, 8, 16, 32, 33, 64, 4096, 2**31, 2**32 - 1))
    file.put(b"general.alignment", craft.U32, struct.pack("<I", number))
    if rng.random() < 0.5 and 0 < number <= 4096:
        file.alignment = number


def _cut_data(rng: random.Random, file: Gguf) -> None:
    if file.entries:
        entry = file.entries[-1]
        entry.data = entry.data[: rng.randrange(len(entry.data) + 1)]


def _longer(rng: random.Random, file: Gguf) -> None:
    file.tail = rng.randbytes(rng.choice((1, 32, 1000)))


def _flip(rng: random.Random, file: Gguf) -> None:
    """Nothing here: the packed bytes are damaged."""


_CONTAINER_DAMAGE: Sequence[Callable[[random.Random, Gguf], None]] = (
    _lie_about_counts, _other_version, _other_alignment, _cut_data, _longer, _flip, _flip, _flip,
    lambda rng, file: _lie_about_value(rng, file) if file.pairs else None,
    lambda rng, file: _lie_about_value(rng, file) if file.pairs else None,
)  # fmt: skip


# Trees of JSON and YAML -------------------------------------------------------------------------------------------


def leaf(rng: random.Random, old: Any = None) -> Any:
    """A value that a key might not expect."""
    near: list[Any] = [None, True, [], {}]
    if isinstance(old, str):
        near += [word(rng, old)] * 4
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        near += [-old, str(old), old * 2, old + 1, 0, 10**400]
    values: tuple[Any, ...] = (
        None, True, False, "", 0, -1, 1.5, [], {}, [None], [[]], {"": None}, word(rng), whole(rng), real(rng),
        [word(rng), whole(rng)], {word(rng): whole(rng)}, 10**400, -(10**25), [old], [old, old], {"x": old}, str(old),
    )  # fmt: skip
    return rng.choice((rng.choice(values), rng.choice(near)))


def damage_tree(rng: random.Random, tree: Any, words: Sequence[str] = ()) -> Any:
    """One to three changes of a tree of dicts, lists and scalars; words: keys and values that mean something."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        spots = list(_spots(tree))
        if not spots:
            return leaf(rng, tree)
        parent, key = rng.choice(spots)
        old = parent[key]
        change = rng.randrange(11)
        if change <= 4:
            parent[key] = leaf(rng, old)
        elif change == 5:
            del parent[key]
        elif change == 6 and isinstance(parent, dict):
            parent[rng.choice((word(rng, str(key)), *words))] = parent.pop(key)
        elif change == 7 and words:
            if isinstance(parent, dict):
                parent[rng.choice(words)] = leaf(rng, old)
            else:
                parent[key] = rng.choice(words)
        elif change == 8:
            other, place = rng.choice(spots)
            with contextlib.suppress(IndexError, KeyError):
                parent[key] = copy.deepcopy(other[place])
        elif change == 9 and isinstance(parent, list):
            parent[key:key] = [copy.deepcopy(old)] * rng.choice((1, 2, 30))
        else:
            parent[key] = [old] if rng.random() < 0.5 else {"value": old}
    return tree


def _spots(tree: Any) -> Any:
    """(container, key) of every value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _spots(value)


def damage_json(rng: random.Random, tree: Any, words: Sequence[str] = ()) -> bytes:
    """A damaged tree as JSON, or JSON damaged as a text."""
    if rng.random() < 0.8:
        tree = damage_tree(rng, tree, words)
    data = json.dumps(tree, skipkeys=True).encode()
    return damage_json_text(rng, data) if rng.random() < 0.25 else data


def damage_json_text(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    values = (
        b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"1e999999", b"NaN", b"-Infinity", b'"\\ud800"', b"\xff",
        b"\xef\xbb\xbf", b"// x\n", b"\0", b",", b"}", b'"a":1,"a":2,',
    )  # fmt: skip
    numbers = [m.span() for m in re.finditer(rb"(?<=[ :\[])-?\d+(\.\d+)?", data)]
    change = rng.randrange(6)
    if change == 0:
        return data[:at] + rng.choice(values) + data[at:]
    if change == 1:
        return rng.choice(values)
    if change == 2 and numbers:
        start, stop = rng.choice(numbers)
        return data[:start] + rng.choice(values) + data[stop:]
    if change == 3:
        return data[:at]
    if change == 4:
        return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    return damage_bytes(rng, data)


def damage_yaml_text(rng: random.Random, data: bytes) -> bytes:
    """YAML that a parser has to think about."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines) + 1)
    line = rng.choice((
        b"\tx: 1", b"x: &a [*a]", b"x: *nothing", b"<<: {a: 1}", b"<<: [1]", b"? [a]\n: b", b"---", b"...",
        b"%YAML 9.9",
        b"x: !!python/object/apply:os.getcwd []", b"x: !!binary zz", b"x: 1:59:59:59", b"x: 0x" + b"f" * 5000,
        b"seed: " + b"9" * 5000, b"x: 2001-13-45", b"x: |", b"x: >-\n  a", b"x: {", b"x: ]", b"x: " + b"[" * 2000,
        b"a: &a [1,2,3,4,5,6,7,8,9]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c]",
        b"x: \xff", b"\xef\xbb\xbf", b"\0", b"x: \x1b[2J", b"merge_method: linear", b"- x", b"x: 1e5", b"x: .nan",
        b"x: .inf", b"x: 08", b"x: 1_0", b'x: "\\x1b[2J\\nerror: ' + MARK.encode() + b'"', b"? x", b": y", b"x: =",
        b"out_type: !!str 5", b"name: !!null", b"x: " + b"a" * 200_000,
    ))  # fmt: skip
    if rng.random() < 0.03:  # a recipe may have 1 MiB
        line = rng.choice(
            (b"x: [" + b"a," * 400_000 + b"]", b"---\n" * 50_000, b"".join(b"k%d: 1\n" % i for i in range(60_000)))
        )
    change = rng.randrange(6)
    if change <= 2:
        lines.insert(at, line)
    elif change == 3:
        lines[min(at, len(lines) - 1)] = rng.choice((b" ", b"  ")) + lines[min(at, len(lines) - 1)]
    elif change == 4:
        return damage_bytes(rng, data)
    else:
        return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be")))
    return b"\n".join(lines)


# Other files ------------------------------------------------------------------------------------------------------


def damage_safetensors(rng: random.Random, file: Safetensors) -> bytes:
    file = Safetensors(copy.deepcopy(file.header), file.data, None)
    change = rng.randrange(10)
    if change == 0:
        return damage_bytes(rng, file.pack(), 8 + len(json.dumps(file.header)))
    if change == 1:
        file.length = rng.choice((whole(rng), 0, 1, 100_000_001, 2**63))
        return file.pack()
    if change == 2:
        return file.pack(damage_json_text(rng, json.dumps(file.header).encode()))
    names = [name for name in file.header if name != "__metadata__"]
    if change <= 4:
        words = ("F32", "F16", "BF16", "I8", "F8_E4M3", "I64", "dtype", "shape", "data_offsets", *names[:3])
        file.header = damage_tree(rng, file.header, words)
    elif change <= 7 and names:
        _damage_entry(rng, file, rng.choice(names))
    else:
        data = bytearray(file.data)
        for _ in range(rng.choice((1, 1, 8))):
            at = rng.randrange(max(len(data) // 4, 1)) * 4
            data[at : at + 4] = rng.choice((rng.choice(_F32_BITS).to_bytes(4, "little"), rng.randbytes(4)))
        file.data = bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data) + 1)))])
    return file.pack()


def _damage_entry(rng: random.Random, file: Safetensors, name: str) -> None:
    entry = file.header[name]
    change = rng.randrange(6)
    if change == 0:
        entry["shape"] = [leaf(rng, n) if rng.random() < 0.5 else n for n in entry["shape"]]
    elif change == 1:
        entry["shape"] = rng.choice((entry["shape"][::-1], [], [0, 2**70], [1, *entry["shape"]], [2**32, 2**32]))
    elif change == 2:
        start, stop = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            ([stop, start], [start, stop + 4], [-4, stop], [0, 2**64], [start, stop - 4])
        )
    elif change == 3:
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I8", "BOOL", "F8_E5M2", "x", word(rng)))
    elif change == 4:
        file.header[word(rng, name)] = file.header.pop(name)
    else:
        parts = name.split(".")
        parts[rng.randrange(len(parts))] = rng.choice(
            ("0", "1", "999999999999", "-1", "x", "lora_A", "weight", "q_proj")
        )
        file.header[".".join(parts)] = file.header.pop(name)


def damage_pieces(rng: random.Random, file: Pieces) -> bytes:
    """A SentencePiece model."""
    pieces = Pieces(list(file.pieces), file.rest)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(pieces.pieces))
        piece, score, kind = pieces.pieces[at]
        change = rng.randrange(8)
        if change <= 1:
            pieces.pieces[at] = (text(rng, piece), score, kind)
        elif change == 2:
            pieces.pieces[at] = (piece, rng.choice((math.nan, math.inf, -1e38, 0.0)), kind)
        elif change == 3:
            pieces.pieces[at] = (piece, score, rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 2**31, 2**64 - 1)))
        elif change == 4:
            del pieces.pieces[at]
        elif change == 5:
            pieces.pieces.insert(at, rng.choice(pieces.pieces))
        elif change == 6:
            pieces.rest = damage_bytes(rng, pieces.rest)
        else:
            return damage_bytes(rng, bytes(pieces))
    return bytes(pieces)


def damage_text(rng: random.Random, data: bytes) -> bytes:
    """Any text: a line put in, left out or doubled, or its bytes."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    change = rng.randrange(5)
    if change == 0:
        lines.insert(at, text(rng, lines[at]))
    elif change == 1:
        del lines[at]
    elif change == 2:
        lines.insert(at, lines[at])
    elif change == 3:
        lines[at] = damage_json_text(rng, lines[at])
    else:
        return damage_bytes(rng, data)
    return b"\n".join(lines)
