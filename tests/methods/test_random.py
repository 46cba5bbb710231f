"""The random streams: Philox4x32-10, keyed by seed, tensor and model."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import pytest

from ggufmerge.methods.random import fill_words, philox, stream_key, threshold, words
from tests.methods import naive

SIZE = 1 << 10 if numba.config.DISABLE_JIT else 1 << 20


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_naive_philox_gives_published_answers(counter, key, expected):
    """The known-answer vectors of Random123."""
    assert " ".join(f"{v:08x}" for v in naive.philox(counter, key)) == expected


@pytest.mark.parametrize("key", [0, 1, 0x0123456789ABCDEF, 2**64 - 1])
@pytest.mark.parametrize("counter", [0, 250, 2**32 - 3, 2**62])
def test_philox_equals_naive(key, counter):
    """Also where the counter passes from its first word into the second, and past a group of lanes."""
    out = np.empty(40, np.uint32)
    philox(np.uint64(key), np.uint64(counter), out)
    halves = [key & 0xFFFFFFFF, key >> 32]
    expected = [naive.philox([c & 0xFFFFFFFF, c >> 32, 0, 0], halves) for c in range(counter, counter + 10)]
    np.testing.assert_array_equal(out.reshape(10, 4), np.array(expected, np.uint32))


@pytest.mark.parametrize(("start", "count"), [(0, 1), (1, 1), (3, 2), (5, 1100), (1023, 9), (2**40 + 3, 8)])
def test_any_part_of_a_stream_can_be_had_alone(start, count):
    """words(start, count) is what a longer piece has there."""
    longer = words(np.uint64(77), start - start % 4, count + 8)
    np.testing.assert_array_equal(words(np.uint64(77), start, count), longer[start % 4 :][:count])


def test_stream_key_never_changes():
    """Old recipes give the same masks for ever, on every machine."""
    assert stream_key(0, "blk.0.attn_q.weight", "a") == np.uint64(0xF3F606D8C23A1C7F)
    assert stream_key(42, "token_embd.weight", "ä") == np.uint64(0x46D653F57D91F100)


def test_streams_of_seeds_tensors_and_models_differ():
    """Also where the texts run into each other: ("ab", "c") is not ("a", "bc")."""
    keys = {stream_key(*k) for k in itertools.product((0, 1), ("a", "ab", ""), ("b", "c", "bc", ""))}
    assert len(keys) == 24


def test_words_are_uniform_and_streams_independent():
    """Mean, variance, serial correlation and correlation with a neighbouring key lie within 5 standard errors."""
    u = words(stream_key(0, "t", "a"), 0, SIZE) / 2.0**32 - 0.5
    v = words(stream_key(0, "t", "b"), 0, SIZE) / 2.0**32 - 0.5
    error = 5 / np.sqrt(SIZE)
    assert abs(u.mean()) < error * np.sqrt(1 / 12)
    assert abs(12 * (u * u).mean() - 1) < error * np.sqrt(4 / 5)
    for other in (v, np.roll(u, 1), np.roll(u, 2), np.roll(u, 4)):
        assert abs(12 * (u * other).mean()) < error


def test_threshold_is_exact_at_the_ends():
    """No word is below the threshold of 0, every one is below that of 1."""
    none, half, every = threshold(np.array([0.0, 0.5, 1.0]))
    assert none == 0
    assert half == 1 << 31
    assert every == 1 << 32
    out = np.empty(64, np.uint32)
    fill_words(np.uint64(1), 0, out)
    assert (out.astype(np.uint64) < every).all()
