"""Key-value pairs of a GGUF file, kept as raw bytes and decoded only when somebody asks.

A vocabulary of 262 144 tokens is one value. Turning it into Python objects costs tens of megabytes, and writing it back
could change a type on the way; so a value stays the span of bytes it is in the file (type tag, then value) until it is
looked at, and a span that nobody changed is written back byte for byte.

A file may have anything under any key. Whoever needs a text, a number or a list asks for it by that name (`text`,
`integer`, ...) and never gets a value of another type.

Format: "Metadata key-value pairs" of ggml's `docs/gguf.md`; limits as in llama.cpp's `gguf.cpp`.
"""

from __future__ import annotations

import itertools
import math
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufmerge.errors import FormatError, GgufmergeError
from ggufmerge.text import printable

T = TypeVar("T")
MAX_STRING = 1 << 30  # bytes of a string; llama.cpp refuses longer ones
MAX_ARRAY = 1 << 30  # elements of an array
MAX_INTEGER = (1 << 64) - 1  # the largest number that a value can hold


class ValueKind(IntEnum):
    """Type of a value (`gguf_type`). `code` is its struct/numpy code, `size` its bytes; both empty for the last two."""

    code: str
    size: int

    def __new__(cls, id: int, code: str = "", size: int = 0) -> ValueKind:  # noqa: A002
        self = int.__new__(cls, id)
        self._value_ = id
        self.code, self.size = code, size
        return self

    U8 = 0, "u1", 1
    I8 = 1, "i1", 1
    U16 = 2, "u2", 2
    I16 = 3, "i2", 2
    U32 = 4, "u4", 4
    I32 = 5, "i4", 4
    F32 = 6, "f4", 4
    BOOL = 7, "?", 1
    U64 = 10, "u8", 8
    I64 = 11, "i8", 8
    F64 = 12, "f8", 8
    STRING = 8
    ARRAY = 9

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian numpy type of a scalar kind."""
        return np.dtype("<" + self.code)

    @property
    def is_integer(self) -> bool:
        return self.code[:1] in ("u", "i")

    @property
    def is_float(self) -> bool:
        return self.code[:1] == "f"


class KeyValues(Mapping[str, Any]):
    """Keys to decoded values, over raw spans that a subclass holds.

    A value is int, float, bool or str; an array of numbers or booleans is a read-only numpy array of the stored type;
    an array of strings is a list. Bytes that are not UTF-8 decode with "surrogateescape", so encoding gives them back.
    Each look-up decodes anew: bind a vocabulary to a name instead of indexing in a loop.

    where: what messages call the file.
    """

    where: str
    _misfits: dict[str, str]  # key -> what was wanted under it

    @abstractmethod
    def raw(self, key: str) -> bytes:
        """The span of a key: u32 type tag and value, as they stand in the file. KeyError for an unknown key."""

    @abstractmethod
    def _head(self, key: str) -> bytes:
        """The first 16 bytes of the span, or all of a shorter one."""

    def __getitem__(self, key: str) -> Any:
        return decode(self.raw(key))

    def __eq__(self, other: object) -> bool:
        """Same keys with the same bytes, in whatever order."""
        if not isinstance(other, KeyValues):
            return NotImplemented
        return self.keys() == other.keys() and all(self.raw(key) == other.raw(key) for key in self)

    __hash__ = None  # type: ignore[assignment]

    def first(self, key: str, count: int) -> Any:
        """The first `count` elements of an array, without decoding the others; any other value as it is."""
        return decode(self.raw(key), count)

    def kind(self, key: str) -> ValueKind:
        """Type of the value; ARRAY for arrays, whose elements' type `element_kind` tells."""
        return ValueKind(_U32.unpack_from(self._head(key))[0])

    def element_kind(self, key: str) -> ValueKind:
        """Type of the elements of an array, of the value itself when it is none."""
        tag, *rest = struct.unpack_from("<2I", self._head(key) + bytes(4))
        return ValueKind(rest[0] if tag == ValueKind.ARRAY else tag)

    def count(self, key: str) -> int:
        """Number of elements of an array, without decoding it; 1 for other values."""
        return _ARRAY.unpack(self._head(key))[2] if self.kind(key) == ValueKind.ARRAY else 1

    def text(self, key: str) -> str | None:
        """The value if it is a text. None when the key is missing or, which `misfits` then tells, of another type."""
        value = self._scalar(key)
        return self._fitting(key, value if isinstance(value, str) else None, "a text")

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER) -> int | None:
        """The value if it is a whole number from low to high, otherwise as in `text`; true and false are none."""
        value = self._scalar(key)
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return self._fitting(key, value if fits else None, _range_text(low, high))

    def number(self, key: str) -> float | None:
        """The value if it is a finite number, otherwise as in `text`."""
        value = self._scalar(key)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return self._fitting(key, float(value) if fits else None, "a finite number")

    def flag(self, key: str) -> bool | None:
        """The value if it is true or false, otherwise as in `text`."""
        value = self._scalar(key)
        return self._fitting(key, value if isinstance(value, bool) else None, "true or false")

    def texts(self, key: str) -> list[str] | None:
        """The value if it is a list of texts (an empty list of anything is), otherwise as in `text`."""
        if self._is_list(key) and not self.count(key):
            return []
        fits = self._is_list(key) and self.element_kind(key) == ValueKind.STRING
        return self._fitting(key, self[key] if fits else None, "a list of texts")

    def integers(self, key: str) -> NDArray[np.integer[Any]] | None:
        """The value if it is a list of whole numbers (an empty list of anything is), otherwise as in `text`."""
        if self._is_list(key) and not self.count(key):
            return np.zeros(0, np.int32)
        fits = self._is_list(key) and self.element_kind(key).is_integer
        return self._fitting(key, self[key] if fits else None, "a list of whole numbers")

    def integer_of(self, key: str, index: int, low: int = 0, high: int = MAX_INTEGER) -> int | None:
        """A whole number that holds for all layers, or of a list of them the one of layer `index`; as in `integer`."""
        if not self._is_list(key):
            return self.integer(key, low, high)
        values = self.integers(key)
        if values is not None and index < len(values) and low <= int(values[index]) <= high:
            return int(values[index])
        return self._fitting(key, None, f"{_range_text(low, high)} or a list of such for each layer")

    def need_text(self, key: str) -> str:
        """As `text`; FormatError when there is none."""
        value = self.text(key)
        return value if value is not None else self._refuse(key, "a text")

    def need_integer(self, key: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """As `integer`; FormatError when there is none."""
        value = self.integer(key, low, high)
        return value if value is not None else self._refuse(key, _range_text(low, high))

    def misfits(self) -> list[str]:
        """What was asked for and not given because it is of another type or out of range, a line for each key."""
        return [f"{key} is {self.found(key)}, not {wanted}: it is ignored" for key, wanted in self._misfits.items()]

    def found(self, key: str) -> str:
        """The type of a value in words, and the value of a single number."""
        if key not in self:
            return "missing"
        kind = self.kind(key)
        if kind == ValueKind.ARRAY:
            of = self.element_kind(key)
            what = "texts" if of == ValueKind.STRING else f"{of.name.lower()} values"
            return f"a list of {self.count(key)} {what}"
        if kind == ValueKind.STRING:
            return "a text"
        return f"{kind.name.lower()} {str(self[key]).lower()}"

    def _scalar(self, key: str) -> Any:
        return self[key] if key in self and self.kind(key) != ValueKind.ARRAY else None

    def _is_list(self, key: str) -> bool:
        return key in self and self.kind(key) == ValueKind.ARRAY

    def _fitting(self, key: str, value: T | None, wanted: str) -> T | None:
        """The value; without one, a value that is there but was not wanted is noted."""
        if value is None and key in self:
            self._misfits[key] = wanted
        return value

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        self._misfits.pop(key, None)
        what = f'the key "{key}" is {self.found(key)}' + (f", not {wanted}" if key in self else "")
        raise FormatError(f"{self.where}: {what}; this file is damaged or not a complete model, take another one")


def _range_text(low: int, high: int) -> str:
    if (low, high) == (0, MAX_INTEGER):
        return "a whole number"
    return f"a whole number of at least {low}" if high == MAX_INTEGER else f"a whole number from {low} to {high}"


class Metadata(KeyValues):
    """The key-value pairs of an open file, in file order, read-only; they cannot be read once it is closed."""

    def __init__(
        self, read: Callable[[int, int], bytes], spans: Mapping[str, tuple[int, int]], where: str = "metadata"
    ) -> None:
        """read(start, stop) gives bytes of the file; `spans` says where the span of each key starts and stops."""
        self._read = read
        self._spans = spans
        self.where, self._misfits = where, {}

    def __repr__(self) -> str:
        keys = list(itertools.islice(self._spans, 3))
        return (
            f"<Metadata, {len(self._spans)} keys: {', '.join(map(printable, keys))}{', ...' * (len(self._spans) > 3)}>"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, key: object) -> bool:
        return key in self._spans

    def raw(self, key: str) -> bytes:
        return self._read(*self._spans[key])

    def _head(self, key: str) -> bytes:
        start, stop = self._spans[key]
        return self._read(start, min(stop, start + 16))

    def nbytes(self, key: str) -> int:
        """Bytes of the span, without reading it."""
        start, stop = self._spans[key]
        return stop - start


class MetadataEditor(KeyValues):
    """Key-value pairs to be written: ordered, starting as a copy of a file's (or empty), changed key by key."""

    def __init__(self, metadata: KeyValues | None = None, where: str = "metadata") -> None:
        self._spans: dict[str, bytes] = {key: metadata.raw(key) for key in metadata} if metadata is not None else {}
        self.where, self._misfits = metadata.where if metadata is not None else where, {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, key: object) -> bool:
        return key in self._spans

    def raw(self, key: str) -> bytes:
        return self._spans[key]

    def _head(self, key: str) -> bytes:
        return self._spans[key][:16]

    def set(self, key: str, value: Any, kind: ValueKind | None = None) -> None:
        """Set a key to a value; a new key comes last, a known one keeps its place.

        kind: type of the value, of its elements when the value is a list, tuple or array. When None, a known key keeps
        its type if that can hold the value; otherwise str is STRING, bool BOOL, float F32, int U32 (I64 or U64 when it
        does not fit), a numpy array its own type, and a list of ints I32 (U32, I64, U64), as gguf-py has it.
        GgufmergeError when the type cannot hold the value, or there is none for it.
        """
        if not key:
            raise GgufmergeError("metadata: a key must not be empty")
        try:
            kinds = [kind] if kind is not None else self._candidates(key, value)
            self._spans[key] = _encode_first(value, kinds)
        except (TypeError, ValueError, OverflowError) as error:
            raise GgufmergeError(f"metadata: {key}: {error}") from None

    def set_raw(self, key: str, span: bytes) -> None:
        """Set a key to a span taken from another file with `raw`."""
        if not key:
            raise GgufmergeError("metadata: a key must not be empty")
        self._spans[key] = bytes(span)

    def remove(self, key: str) -> None:
        """Remove a key if it is there."""
        self._spans.pop(key, None)

    def encode(self) -> bytes:
        """All pairs as they stand in a file, behind the header's counts."""
        return b"".join(part for key, span in self._spans.items() for part in (_encode_string(key), span))

    def value_offset(self, key: str) -> int:
        """Where in `encode()` the value of a key starts (of a string: its first character), to patch it in place.

        GgufmergeError for an array, which has no fixed size. KeyError for an unknown key.
        """
        kind = self.kind(key)
        if kind == ValueKind.ARRAY:
            raise GgufmergeError(f"metadata: {key}: an array cannot be patched in place")
        before = 0
        for other, span in self._spans.items():
            before += 8 + len(_utf8(other))
            if other == key:
                break
            before += len(span)
        return before + 4 + (8 if kind == ValueKind.STRING else 0)

    def _candidates(self, key: str, value: Any) -> list[ValueKind]:
        if key not in self._spans or _is_array(value) != (self.kind(key) == ValueKind.ARRAY):
            return _infer(value)
        known = self.element_kind(key)
        return [known] if _is_array(value) and not len(value) else [known, *_infer(value)]


def decode(span: bytes, most: int = MAX_ARRAY) -> Any:
    """The value of a span (type tag and value), as `Metadata` gives it; of an array, no more than `most` elements."""
    kind = ValueKind(_U32.unpack_from(span)[0])
    if kind == ValueKind.STRING:
        return span[12:].decode("utf-8", "surrogateescape")
    if kind != ValueKind.ARRAY:
        return _as_array(span[4:], kind)[0].item()
    _, element, count = _ARRAY.unpack_from(span)
    if element != ValueKind.STRING:
        kind = ValueKind(element)
        return _as_array(span[16 : 16 + min(count, most) * kind.size], kind)
    strings, position = [], 16
    for _ in range(min(count, most)):
        start = position + 8
        position = start + _U64.unpack_from(span, position)[0]
        strings.append(span[start:position].decode("utf-8", "surrogateescape"))
    return strings


_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY = struct.Struct("<IIQ")  # tag, type of the elements, their number


def _as_array(data: bytes, kind: ValueKind) -> NDArray[Any]:
    if kind == ValueKind.BOOL:  # llama.cpp takes any byte but 0 for true
        array: NDArray[Any] = np.frombuffer(data, np.uint8) != 0
        array.flags.writeable = False
        return array
    return np.frombuffer(data, kind.dtype).astype(kind.dtype.newbyteorder("="), copy=False)


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _encode_first(value: Any, kinds: Sequence[ValueKind]) -> bytes:
    """The span of a value in the first of these types that can hold it."""
    for kind in kinds[:-1]:
        try:
            return _encode(value, kind)
        except (TypeError, ValueError, OverflowError):
            continue
    return _encode(value, kinds[-1])


def _encode(value: Any, kind: ValueKind) -> bytes:
    if not _is_array(value):
        return _U32.pack(kind) + _encode_items([value], kind)
    if len(value) > MAX_ARRAY:
        raise ValueError(f"an array of {len(value)} elements: llama.cpp reads at most {MAX_ARRAY}")
    return _ARRAY.pack(ValueKind.ARRAY, kind, len(value)) + _encode_items(value, kind)


def _encode_items(values: Sequence[Any] | NDArray[Any], kind: ValueKind) -> bytes:
    if kind == ValueKind.ARRAY:
        raise ValueError("the type of an array is that of its elements, and arrays of arrays are refused by llama.cpp")
    if kind == ValueKind.STRING:
        return b"".join(_encode_string(_expect(value, str, kind)) for value in values)
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError("arrays have one dimension")
    if not array.size:
        return b""
    # numpy would turn [True, 2] into integers and [1, 2.5] into floats: look at each element of a list
    if not isinstance(values, np.ndarray):
        wanted = bool if kind == ValueKind.BOOL else int if kind.is_integer else float
        array = np.array([_expect(value, wanted, kind) for value in values])
    code = array.dtype.kind
    if code not in {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}["b" if kind == ValueKind.BOOL else kind.code[0]]:
        raise ValueError(f"values of type {array.dtype} do not fit {kind.name}")
    if kind.is_integer:
        limits = np.iinfo(kind.dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ValueError(f"{array.min()}..{array.max()} is outside {kind.name}")
    elif kind == ValueKind.F32 and array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            if (np.isinf(array.astype(np.float32)) & np.isfinite(array)).any():
                raise ValueError("a value is too large for F32")
    return array.astype(kind.dtype).tobytes()


def _expect(value: Any, wanted: type, kind: ValueKind) -> Any:
    """The value as the Python type that `kind` asks for; ints pass as floats, but bools pass as nothing else."""
    if isinstance(value, np.generic):
        value = value.item()
    accepted = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise TypeError(f"{value!r:.60} is not a value of type {kind.name}")
    return value


def _encode_string(text: str) -> bytes:
    data = _utf8(text)
    if len(data) > MAX_STRING:
        raise ValueError(f"a string of {len(data)} bytes: llama.cpp reads at most {MAX_STRING}")
    return _U64.pack(len(data)) + data


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _infer(value: Any) -> list[ValueKind]:
    """Types for a value without a type, the preferred first."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        by_dtype = {kind.dtype: kind for kind in ValueKind if kind.code}
        return [by_dtype.get(value.dtype.newbyteorder("<"), ValueKind.F32)]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    first = value
    if _is_array(value):
        if not value:
            raise ValueError("an empty list has no type of its own: give the type of its elements")
        first = next((item for item in value if isinstance(item, float)), value[0])  # [1, 2.5] is a list of floats
    if isinstance(first, np.generic):
        first = first.item()
    if isinstance(first, bool):
        return [ValueKind.BOOL]
    if isinstance(first, int):
        small = [ValueKind.I32, ValueKind.U32] if _is_array(value) else [ValueKind.U32]
        return [*small, ValueKind.I64, ValueKind.U64]
    if isinstance(first, float):
        return [ValueKind.F32]
    if isinstance(first, str):
        return [ValueKind.STRING]
    raise TypeError(f"a {type(first).__name__} is not a value that GGUF can hold")
