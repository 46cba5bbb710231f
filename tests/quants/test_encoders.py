"""Encoders: found by name; what they write of rows that keep blocks, have offsets, scales or a change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufmerge.errors import GgufmergeError
from ggufmerge.quants import codec, dequantize, encoders, quantize
from ggufmerge.quants.encoders import Piece, encoder, encoder_names, register
from ggufmerge.types import TensorType

Q4_0 = TensorType.Q4_0


def rows(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)


def written(piece: Piece, name: str = "nearest", kind: TensorType = Q4_0) -> NDArray[np.uint8]:
    raw = np.empty((len(piece.rows), kind.row_bytes(piece.rows.shape[1])), np.uint8)
    encoder(name).encode(codec(kind), piece, raw)
    return raw


def some_chance(out: NDArray[np.uint32]) -> None:
    out[:] = np.random.default_rng(3).integers(0, 1 << 32, out.size, np.uint32)


def test_encoders_have_names() -> None:
    """The nearest one is suggested for another."""
    assert [encoder(name).name for name in encoder_names()] == list(encoder_names())
    with pytest.raises(GgufmergeError, match='unknown rounding "stocastic": did you mean "stochastic"'):
        encoder("stocastic")


def test_an_encoder_can_be_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name changes its meaning."""
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))

    class Mine(encoders.Nearest):
        name = "mine"

    register(Mine())
    assert isinstance(encoder("mine"), Mine)
    with pytest.raises(GgufmergeError, match='an encoder "mine" already'):
        register(Mine())


def test_the_nearest_is_what_ggml_writes() -> None:
    """Of weights plus their offset, in units of their scale."""
    x = rows()
    np.testing.assert_array_equal(written(Piece(x)), quantize(x, Q4_0))
    np.testing.assert_array_equal(written(Piece(x, offset=1.0)), quantize(x + np.float32(1), Q4_0))
    scaled = quantize((x + np.float32(1)) / np.float32(0.3), Q4_0)
    np.testing.assert_array_equal(written(Piece(x, offset=1.0, scale=np.float32(0.3))), scaled)


@pytest.mark.parametrize("name", ["nearest", "stochastic"])
def test_blocks_of_equal_values_keep_their_bytes(name: str) -> None:
    """Whatever quantizing them anew would make of them."""
    stored = quantize(np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32), "Q6_K")
    values = dequantize(stored, "Q6_K", 256)
    assert (quantize(values, "Q6_K")[[0, 2]] != stored[[0, 2]]).any()
    piece: dict[str, Any] = {"base": values, "blocks": stored, "chance": some_chance}
    changed = values.copy()
    changed[1] += np.float32(0.1)
    kind = TensorType.Q6_K
    found = written(Piece(changed, stored=[(values, stored)], **piece), name, kind)
    np.testing.assert_array_equal(found[[0, 2, 3]], stored[[0, 2, 3]])
    assert (found[1] != stored[1]).any()


def test_chance_keeps_what_the_nearest_loses() -> None:
    """A change of a tenth of a step: gone, or there on average."""
    stored = quantize(np.tile(rows(), (64, 1)), Q4_0)
    base = dequantize(stored, Q4_0, 64)
    change = np.float32(0.03)
    kept = {}
    for name in encoder_names():
        back = dequantize(written(Piece(base + change, base, stored, chance=some_chance), name), Q4_0, 64)
        kept[name] = float((back - base).mean()) / change
    assert abs(kept["nearest"]) < 0.2
    assert kept["stochastic"] == pytest.approx(1, abs=0.1)


def test_without_a_base_nothing_is_left_to_chance() -> None:
    """There is no grid to round on."""
    np.testing.assert_array_equal(written(Piece(rows()), "stochastic"), quantize(rows(), Q4_0))
