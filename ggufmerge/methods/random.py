"""Random numbers that depend on nothing but a key and a position: Philox4x32-10.

A counter-based generator has no state to carry along, so any thread may compute any part of a mask, in any order, and
DARE gives the same model whatever the chunk size, the number of threads or the other tensors.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 4.3. Philox4x32-10
passes BigCrush; the published known answers are in `tests/methods/test_random.py`.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ggufmerge.kernels import kernel


def stream_key(seed: int, tensor: str, model: str) -> np.uint64:
    """The key of the random stream of one model's part in one tensor: the same on every machine, for ever.

    model: what tells the models of a recipe apart (its name or content hash), not its position, so that a list in
    another order gives the same masks.
    """
    text = f"{seed}\0{tensor}\0{model}".encode()
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def words(key: np.uint64, start: int, count: int) -> NDArray[np.uint32]:
    """Words [start, start + count) of the stream `key`, uniform over uint32. Element e of a tensor uses word e."""
    out = np.empty(count, np.uint32)
    fill_words(np.uint64(key), start, out)
    return out


def threshold(probability: NDArray[np.float64]) -> NDArray[np.uint64]:
    """t such that `word < t` holds with this probability, to within 2^-32; exact for 0 and 1."""
    return np.rint(np.asarray(probability, np.float64) * 4294967296.0).astype(np.uint64)


_LANES = 256  # blocks computed side by side, one in each SIMD lane


@kernel
def philox(key, counter, out):
    """Philox4x32-10: the four words of each of the blocks counter, counter + 1, ..., to `out`, uint32 [4 · blocks].

    key, counter: uint64. The upper half of the 128-bit counter is zero.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    multiplier0, multiplier1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    weyl0, weyl1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    c0, c1 = np.empty(_LANES, np.uint32), np.empty(_LANES, np.uint32)
    c2, c3 = np.empty(_LANES, np.uint32), np.empty(_LANES, np.uint32)
    blocks = out.size // 4
    for first in range(0, blocks, _LANES):
        for i in range(_LANES):
            at = np.uint64(counter + np.uint64(first + i))
            c0[i] = np.uint32(at & low)
            c1[i] = np.uint32(at >> half)
            c2[i] = np.uint32(0)
            c3[i] = np.uint32(0)
        k0, k1 = key & low, key >> half
        for _ in range(10):
            for i in range(_LANES):
                p0 = multiplier0 * np.uint64(c0[i])
                p1 = multiplier1 * np.uint64(c2[i])
                c0[i] = np.uint32((p1 >> half) ^ np.uint64(c1[i]) ^ k0)
                c1[i] = np.uint32(p1 & low)
                c2[i] = np.uint32((p0 >> half) ^ np.uint64(c3[i]) ^ k1)
                c3[i] = np.uint32(p0 & low)
            k0 = (k0 + weyl0) & low
            k1 = (k1 + weyl1) & low
        target = out[4 * first :]
        for i in range(min(_LANES, blocks - first)):
            target[4 * i] = c0[i]
            target[4 * i + 1] = c1[i]
            target[4 * i + 2] = c2[i]
            target[4 * i + 3] = c3[i]


@kernel
def fill_words(key, start, out):
    """Write words [start, start + len(out)) of the stream `key` to `out`, uint32."""
    first = start // 4
    blocks = np.empty(4 * ((start + out.size + 3) // 4 - first), np.uint32)
    philox(key, np.uint64(first), blocks)
    wanted = blocks[start - 4 * first :]
    for i in range(out.size):
        out[i] = wanted[i]
