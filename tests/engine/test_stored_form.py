"""Families whose files hold 1 + w where the model has w: methods work on w, as mergekit does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from tests.engine.conftest import raw, weights
from tests.tiny import write_tiny_llama

NORM, MATRIX = "blk.0.attn_norm.weight", "blk.0.attn_q.weight"


@pytest.fixture
def gemma(tmp_path: Path) -> Callable[[str], Path]:
    """Build a recipe of a.gguf and b.gguf, two models that say they are Gemmas and whose norms differ."""
    for name, tune in (("a", None), ("b", (1, 0.02))):
        path = tmp_path / f"{name}.gguf"
        norm = np.linspace(0.2, 3, 64) ** (1 if tune else 2)
        write_tiny_llama(path, tune=tune, replace={NORM: norm.astype(np.float32)})
        path.write_bytes(path.read_bytes().replace(b"llama", b"gemma"))

    def build(recipe: str) -> Path:
        (tmp_path / "r.yaml").write_text(recipe + "\n")
        ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf", overwrite=True)
        return tmp_path / "out.gguf"

    return build


def test_scaling_a_norm_scales_what_the_model_has(gemma: Callable[[str], Path], tmp_path: Path) -> None:
    """1 + w becomes 1 + 2 w; a matrix becomes twice itself."""
    out = weights(gemma("{merge_method: passthrough, models: [{model: a.gguf}], parameters: {scale: 2}}"))
    a = weights(tmp_path / "a.gguf")
    np.testing.assert_allclose(out[NORM], 1 + 2 * (a[NORM] - 1), rtol=1e-6)
    np.testing.assert_array_equal(out[MATRIX], 2 * a[MATRIX])


def test_slerp_turns_the_norms_that_the_model_has(gemma: Callable[[str], Path], tmp_path: Path) -> None:
    """The angle between w and w', not between 1 + w and 1 + w'."""
    recipe = (
        "{merge_method: slerp, base_model: a.gguf, models: [{model: a.gguf}, {model: b.gguf}], parameters: {t: 0.3}}"
    )
    out = weights(gemma(recipe))
    a, b = (weights(tmp_path / f"{n}.gguf")[NORM] for n in ("a", "b"))
    expected = 1 + ggufmerge.merge([b - 1], "slerp", {"t": 0.3}, base=a - 1)
    np.testing.assert_allclose(out[NORM], expected, rtol=1e-6)
    assert np.abs(ggufmerge.merge([b], "slerp", {"t": 0.3}, base=a) - expected).max() > 1e-3


def test_a_model_merged_with_itself_is_still_itself(gemma: Callable[[str], Path], tmp_path: Path) -> None:
    """Taking 1 away and adding it again changes no byte."""
    recipe = "{merge_method: linear, models: [{model: a.gguf}, {model: a.gguf}], parameters: {weight: 1}}"
    assert raw(gemma(recipe)) == raw(tmp_path / "a.gguf")
