"""A budget for the tensors of a file, in place of a file type: what `max_size` and `max_bpw` say."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ggufmerge.errors import GgufmergeError
from ggufmerge.text import size

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class ByteBudget:
    """The most that all tensor data of a file may take; the tighter one holds where both are given.

    nbytes: bytes.  bits: bits per weight, of all the weights of the file.
    """

    nbytes: int | None = None
    bits: float | None = None

    @classmethod
    def parse(cls, max_size: str | int | None = None, max_bpw: float | str | None = None) -> ByteBudget | None:
        """What `--max-size` (3.5G, 800M, 3.2GiB, or bytes) and `--max-bpw` say; None when neither is given.

        Sizes are powers of 1000, those with an i of 1024.  GgufmergeError says what is no size.
        """
        if max_size is None and max_bpw is None:
            return None
        return cls(
            None if max_size is None else parse_bytes(max_size), None if max_bpw is None else parse_bits(max_bpw)
        )

    def bytes_for(self, parameters: int) -> int:
        """The budget of a file with so many weights, in bytes of tensor data."""
        limits = [] if self.nbytes is None else [self.nbytes]
        limits += [] if self.bits is None else [math.floor(self.bits * parameters / 8)]
        return min(limits)

    def __str__(self) -> str:
        said = [] if self.nbytes is None else [size(self.nbytes)]
        return " and ".join([*said, *([] if self.bits is None else [f"{self.bits:g} bits per weight"])])


def parse_bytes(text: str | int) -> int:
    """Bytes of a size such as 3.5G, 800M, 3.2GiB or 123456789; GgufmergeError for other texts."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})\s*([KMGT]?)(I?)B?", str(text).strip().upper())
    if match is None or (match[3] and not match[2]) or not float(match[1]):
        raise GgufmergeError(f"{str(text)!r} is not a size: give one such as 3.5G, 800M or 3.2GiB")
    return math.floor(float(match[1]) * (_BINARY if match[3] else _UNITS)[match[2]])


def parse_bits(text: float | str) -> float:
    """Bits per weight, above 0 and at most 64; GgufmergeError for other texts."""
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not 0 < bits <= 64:
        raise GgufmergeError(f"{str(text)!r} is no number of bits per weight: give one such as 4.6")
    return bits
