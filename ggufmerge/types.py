"""GGML tensor types and llama.cpp file types: ids, names and block layouts.

Sources: enum ggml_type and the type traits of ggml (`ggml.h`, `ggml.c`), enum llama_ftype (`llama.h`) of llama.cpp
v0.5.0. This module holds facts only, so every room may import it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from ggufmerge.errors import GgufmergeError, ShapeError, nearest


class TensorType(StrEnum):
    """Storage type of a tensor. Compares equal to its name: ``TensorType.Q4_K == "Q4_K"``.

    Attributes: `id` (ggml_type in the file), `block_size` (values in a block), `block_bytes` (bytes of a block),
    `is_quantized` (values of a block share a scale), `is_float` (F32, F16, BF16).
    """

    id: int
    block_size: int
    block_bytes: int

    def __new__(cls, name: str, id: int, block_size: int, block_bytes: int) -> TensorType:  # noqa: A002
        self = str.__new__(cls, name)
        self._value_ = name
        self.id, self.block_size, self.block_bytes = id, block_size, block_bytes
        return self

    F32 = "F32", 0, 1, 4
    F16 = "F16", 1, 1, 2
    Q4_0 = "Q4_0", 2, 32, 18
    Q4_1 = "Q4_1", 3, 32, 20
    Q5_0 = "Q5_0", 6, 32, 22
    Q5_1 = "Q5_1", 7, 32, 24
    Q8_0 = "Q8_0", 8, 32, 34
    Q8_1 = "Q8_1", 9, 32, 36
    Q2_K = "Q2_K", 10, 256, 84
    Q3_K = "Q3_K", 11, 256, 110
    Q4_K = "Q4_K", 12, 256, 144
    Q5_K = "Q5_K", 13, 256, 176
    Q6_K = "Q6_K", 14, 256, 210
    Q8_K = "Q8_K", 15, 256, 292
    IQ2_XXS = "IQ2_XXS", 16, 256, 66
    IQ2_XS = "IQ2_XS", 17, 256, 74
    IQ3_XXS = "IQ3_XXS", 18, 256, 98
    IQ1_S = "IQ1_S", 19, 256, 50
    IQ4_NL = "IQ4_NL", 20, 32, 18
    IQ3_S = "IQ3_S", 21, 256, 110
    IQ2_S = "IQ2_S", 22, 256, 82
    IQ4_XS = "IQ4_XS", 23, 256, 136
    I8 = "I8", 24, 1, 1
    I16 = "I16", 25, 1, 2
    I32 = "I32", 26, 1, 4
    I64 = "I64", 27, 1, 8
    F64 = "F64", 28, 1, 8
    IQ1_M = "IQ1_M", 29, 256, 56
    BF16 = "BF16", 30, 1, 2
    TQ1_0 = "TQ1_0", 34, 256, 54
    TQ2_0 = "TQ2_0", 35, 256, 66
    MXFP4 = "MXFP4", 39, 32, 17
    NVFP4 = "NVFP4", 40, 64, 36
    Q1_0 = "Q1_0", 41, 128, 18
    Q2_0 = "Q2_0", 42, 64, 18

    @property
    def is_quantized(self) -> bool:
        return self.block_size > 1

    @property
    def is_float(self) -> bool:
        return self.id in (0, 1, 30)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` values; ShapeError unless `n` is a multiple of `block_size`."""
        if n % self.block_size:
            fitting = ", ".join(t for t in _COMMON if n % t.block_size == 0)
            raise ShapeError(
                f"{self}: a row of {n} values is not a whole number of blocks of {self.block_size}; types that fit: "
                f"{fitting}"
            )
        return n // self.block_size * self.block_bytes

    @classmethod
    def from_id(cls, id: int) -> TensorType:  # noqa: A002
        """The type with this ggml_type id; KeyError for removed and unknown ids."""
        return _BY_ID[id]

    @classmethod
    def parse(cls, name: str) -> TensorType:
        """The type of this name, whatever its case; GgufmergeError suggests the nearest name."""
        try:
            return cls[name.upper()]
        except KeyError:
            hint = _of_fork(name) or nearest(name, cls)
            raise GgufmergeError(f'unknown tensor type "{name}": {hint}') from None


_BY_ID = {t.id: t for t in TensorType}
_COMMON = [TensorType[name] for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "F16", "F32")]  # of small blocks


class FileType(StrEnum):
    """A llama.cpp file type (`general.file_type`): which types the tensors of a file have by default.

    Attributes: `id` (llama_ftype), `default` (the type of a tensor that no rule treats differently).
    """

    id: int
    default: TensorType

    def __new__(cls, name: str, id: int, default: TensorType) -> FileType:  # noqa: A002
        self = str.__new__(cls, name)
        self._value_ = name
        self.id, self.default = id, default
        return self

    F32 = "F32", 0, TensorType.F32
    F16 = "F16", 1, TensorType.F16
    Q4_0 = "Q4_0", 2, TensorType.Q4_0
    Q4_1 = "Q4_1", 3, TensorType.Q4_1
    Q8_0 = "Q8_0", 7, TensorType.Q8_0
    Q5_0 = "Q5_0", 8, TensorType.Q5_0
    Q5_1 = "Q5_1", 9, TensorType.Q5_1
    Q2_K = "Q2_K", 10, TensorType.Q2_K
    Q3_K_S = "Q3_K_S", 11, TensorType.Q3_K
    Q3_K_M = "Q3_K_M", 12, TensorType.Q3_K
    Q3_K_L = "Q3_K_L", 13, TensorType.Q3_K
    Q4_K_S = "Q4_K_S", 14, TensorType.Q4_K
    Q4_K_M = "Q4_K_M", 15, TensorType.Q4_K
    Q5_K_S = "Q5_K_S", 16, TensorType.Q5_K
    Q5_K_M = "Q5_K_M", 17, TensorType.Q5_K
    Q6_K = "Q6_K", 18, TensorType.Q6_K
    IQ2_XXS = "IQ2_XXS", 19, TensorType.IQ2_XXS
    IQ2_XS = "IQ2_XS", 20, TensorType.IQ2_XS
    Q2_K_S = "Q2_K_S", 21, TensorType.Q2_K
    IQ3_XS = "IQ3_XS", 22, TensorType.IQ3_S
    IQ3_XXS = "IQ3_XXS", 23, TensorType.IQ3_XXS
    IQ1_S = "IQ1_S", 24, TensorType.IQ1_S
    IQ4_NL = "IQ4_NL", 25, TensorType.IQ4_NL
    IQ3_S = "IQ3_S", 26, TensorType.IQ3_S
    IQ3_M = "IQ3_M", 27, TensorType.IQ3_S
    IQ2_S = "IQ2_S", 28, TensorType.IQ2_XS
    IQ2_M = "IQ2_M", 29, TensorType.IQ2_S
    IQ4_XS = "IQ4_XS", 30, TensorType.IQ4_XS
    IQ1_M = "IQ1_M", 31, TensorType.IQ1_M
    BF16 = "BF16", 32, TensorType.BF16
    TQ1_0 = "TQ1_0", 36, TensorType.TQ1_0
    TQ2_0 = "TQ2_0", 37, TensorType.TQ2_0
    MXFP4_MOE = "MXFP4_MOE", 38, TensorType.MXFP4
    NVFP4 = "NVFP4", 39, TensorType.NVFP4  # stands in files; llama-quantize cannot produce it
    Q1_0 = "Q1_0", 40, TensorType.Q1_0
    Q2_0 = "Q2_0", 41, TensorType.Q2_0

    @classmethod
    def from_id(cls, id: int) -> FileType | None:  # noqa: A002
        """The file type with this llama_ftype id (the "guessed" flag 1024 is dropped); None when there is none."""
        return next((f for f in cls if f.id == id & ~1024), None)

    @classmethod
    def describing(cls, types: Mapping[str, TensorType], declared: Any = None) -> FileType | None:
        """The file type of a file with tensors of these types: the one that it declares, else `of` these.

        declared: what the file has under `general.file_type`; a value that names no type is ignored.
        None without tensors and without a declared type.
        """
        known = cls.from_id(declared) if isinstance(declared, int) and not isinstance(declared, bool) else None
        return cls.of(types) if known is None and types else known

    @classmethod
    def of(cls, types: Mapping[str, TensorType]) -> FileType:
        """The file type that describes tensors of these types best: that of the most common tensor type.

        So guesses llama.cpp for files that do not say (`llama_model_loader`): Q4_K gives Q4_K_M, and in a tie wins the
        type that is first to reach the number in llama.cpp's order of tensors. Unlike there, F32 counts only when
        nothing else is there: norms are F32 in every file and can outnumber the matrices.
        """
        counts: Counter[TensorType] = Counter()
        commonest, most = TensorType.F32, 0
        for name in sorted(types, key=visiting_order):
            kind = types[name]
            counts[kind] += 1
            if counts[kind] > most and kind is not TensorType.F32:
                commonest, most = kind, counts[kind]
        return _FILE_TYPE_OF.get(commonest, cls.F32)

    @classmethod
    def parse(cls, name: str) -> FileType:
        """The file type a user means: a name in any case, llama-quantize's aliases (Q4_K is Q4_K_M), or a tensor type
        whose file type has another name (MXFP4). GgufmergeError suggests the nearest name, or says in words what a
        name of other programs' or a number stands for.
        """
        key = _ALIASES.get(name.upper(), name.upper())
        try:
            return cls[key]
        except KeyError:
            raise GgufmergeError(f'unknown type "{name}": {_what_is_meant(name)}') from None

    @classmethod
    def numbered(cls, number: str) -> FileType | None:
        """The file type whose llama_ftype id these digits are; None for other texts."""
        return cls.from_id(int(number)) if number.isascii() and number.isdigit() and int(number) < 1024 else None


def community_name(name: str) -> str | None:
    """What a name that people give to files stands for, in words; None for names that are types, or nobody's."""
    key = name.upper()
    if key in _LARGE:
        return (
            f"{_LARGE[key]} with Q8_0 for the output and the token embeddings: --output-tensor-type Q8_0 "
            'and --token-embedding-type Q8_0 of quantize, or tensor_types: {"^output": Q8_0, "^token_embd": Q8_0} in a '
            f"recipe, with type {_LARGE[key]}"
        )
    if told := _of_fork(name):
        return told
    if key.startswith("UD-") or key.endswith("_XL"):
        return "a mixture that Unsloth makes for each model: quantize --like FILE takes over that of a file"
    if key.startswith("I1-"):
        return f"{name[3:]} made with an importance matrix: give --imatrix FILE"
    return _MEANT.get(key)


def fork_type(number: int) -> tuple[str, str] | None:
    """(name, program) of a tensor type that only a fork of llama.cpp reads, by its number in files; None for others."""
    if 200 <= number < 400:  # the types of ik_llama.cpp that interleave rows are its others, and ggml's, with 200 added
        return "of interleaved rows", "ik_llama.cpp"
    return (_FORKS[number], "ik_llama.cpp") if number in _FORKS else None


def _of_fork(name: str) -> str:
    """What a name stands for that is a type of a fork, and the usual type of about that size; "" for other names."""
    key = name.upper()
    if key not in _FORKS.values() and not re.fullmatch(r"I?Q\d\w*_R[48]", key):
        return ""
    bits = re.search(r"\d", key)
    near = {"1": "IQ1_M", "2": "IQ2_M", "3": "Q3_K_M", "4": "Q4_K_M", "5": "Q5_K_M", "6": "Q6_K", "8": "Q8_0"}
    return (
        f"a type of ik_llama.cpp, which llama.cpp does not read: of about that size is {near[bits[0]]}" if bits else ""
    )


def _what_is_meant(name: str) -> str:
    if (told := community_name(name)) is not None:
        return told
    if (numbered := FileType.numbered(name)) is not None:
        return f"as a number of llama.cpp's it is {numbered}: give that name"
    near = nearest(name, FileType)
    few = 'usual are Q4_K_M, Q5_K_M, Q6_K, Q8_0 and F16; "ggufmerge types" lists all'
    return near if near.startswith("did") else few


def block_number(name: str) -> int:
    """N of a tensor "blk.N.", -1 for tensors outside the blocks."""
    found = re.match(r"blk\.(\d+)", name, re.ASCII)
    return int(found[1]) if found else -1


def visiting_order(name: str) -> tuple[int, bytes]:
    """llama.cpp's order of tensors: those outside the blocks, then block by block; byte-wise by name."""
    return block_number(name), name.encode("utf-8", "surrogateescape")


_FILE_TYPE_OF = {
    **{TensorType[f.name]: f for f in FileType if f.name in TensorType.__members__},
    TensorType.Q3_K: FileType.Q3_K_M,
    TensorType.Q4_K: FileType.Q4_K_M,
    TensorType.Q5_K: FileType.Q5_K_M,
    TensorType.MXFP4: FileType.MXFP4_MOE,
}
_ALIASES = {
    "Q3_K": "Q3_K_M",
    "Q4_K": "Q4_K_M",
    "Q5_K": "Q5_K_M",
    "MXFP4": "MXFP4_MOE",
    "FP16": "F16",
    "FP32": "F32",
    "FLOAT16": "F16",
    "FLOAT32": "F32",
    "BFLOAT16": "BF16",
}
# Tensor types of ik_llama.cpp (ggml.h), by the numbers that they have in files
_FORKS = {
    133: "Q6_0",
    134: "IQ1_BN",
    135: "IQ2_BN",
    137: "IQ2_K",
    138: "IQ3_K",
    139: "IQ4_K",
    140: "IQ5_K",
    141: "IQ6_K",
    144: "IQ4_KS",
    145: "IQ2_KS",
    146: "IQ4_KSS",
    152: "IQ5_KS",
    153: "IQ2_KT",
    154: "IQ3_KT",
    155: "IQ4_KT",
    156: "IQ3_KS",
    157: "IQ2_KL",
    158: "IQ1_KT",
}
_LARGE = {"Q2_K_L": "Q2_K", "Q3_K_XL": "Q3_K_L", "Q4_K_L": "Q4_K_M", "Q5_K_L": "Q5_K_M", "Q6_K_L": "Q6_K"}
_REPACKED = "llama.cpp repacks Q4_0 by itself when it loads a model: give Q4_0"
_MEANT = {
    **dict.fromkeys(("Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8"), _REPACKED),
    **dict.fromkeys(("Q2", "2BIT", "2-BIT", "INT2"), "the usual type of 2 bits is Q2_K"),
    **dict.fromkeys(("Q3", "3BIT", "3-BIT", "INT3"), "the usual type of 3 bits is Q3_K_M"),
    **dict.fromkeys(("Q4", "4BIT", "4-BIT", "INT4"), "the usual type of 4 bits is Q4_K_M"),
    **dict.fromkeys(("Q5", "5BIT", "5-BIT", "INT5"), "the usual type of 5 bits is Q5_K_M"),
    **dict.fromkeys(("Q6", "6BIT", "6-BIT", "INT6"), "the usual type of 6 bits is Q6_K"),
    **dict.fromkeys(("Q8", "8BIT", "8-BIT", "INT8", "Q8_K"), "the usual type of 8 bits is Q8_0"),
    **dict.fromkeys(("GPTQ", "AWQ", "EXL2", "FP8", "NF4", "BNB"), "GGUF has no such type; the usual one is Q4_K_M"),
}
