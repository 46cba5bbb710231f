"""`ggufmerge diff` and `engine.compare`: the figures are those that NumPy gives for the dequantized tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.engine.compare import compare
from ggufmerge.errors import PlanError
from tests.tiny import write_tiny_llama


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    weights = {name: write_tiny_llama(tmp_path / f"{name}.gguf", tune=tune) for name, tune in TUNES.items()}
    return tmp_path, weights


TUNES = {"base": None, "a": (1, 0.05), "b": (2, 0.05)}


def test_figures_of_two_models(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """Relative difference, largest difference, share of equal values, cosine."""
    folder, weights = models
    for t in compare(folder / "a.gguf", folder / "b.gguf").tensors:
        a, b = (weights[m][t.name].astype(np.float64).ravel() for m in ("a", "b"))
        assert t.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-9)
        assert t.largest == np.abs(a - b).max()
        assert t.equal == np.mean(a == b)
        assert t.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)
        assert math.isnan(t.same_sign)


def test_figures_of_two_changes(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """With a base, cosine and signs are those of the differences from it."""
    folder, weights = models
    for t in compare(folder / "a.gguf", folder / "b.gguf", base=folder / "base.gguf", threads=2).tensors:
        base, a, b = (weights[m][t.name].astype(np.float64).ravel() for m in ("base", "a", "b"))
        p, q = a - base, b - base
        if p.any() and q.any():
            assert t.cosine == pytest.approx(p @ q / np.linalg.norm(p) / np.linalg.norm(q), rel=1e-6)
            assert t.same_sign == pytest.approx(np.mean((p * q > 0)[(p != 0) & (q != 0)]))


def test_a_model_equals_itself(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """No difference, every value equal, cosine 1."""
    folder, _ = models
    for t in compare(folder / "a.gguf", folder / "a.gguf").tensors:
        assert (t.relative, t.largest, t.equal) == (0, 0, 1)
        assert t.cosine == pytest.approx(1)


def test_the_command_groups_layers_and_lists_all_on_demand(
    models: tuple[Path, dict[str, dict[str, np.ndarray]]],
) -> None:
    """A table of kinds, or every tensor; JSON has no NaN."""
    folder, _ = models
    arguments = ["diff", str(folder / "a.gguf"), str(folder / "b.gguf")]
    assert "2 x blk.*.ffn_up.weight" in CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "blk.1.ffn_up.weight" in CliRunner().invoke(app, [*arguments, "--all"], catch_exceptions=False).stdout
    facts = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert all(t["same_sign"] is None for t in facts["tensors"])


def test_models_of_other_shapes_or_layers(tmp_path: Path) -> None:
    """A difference of shape is refused; tensors that only one model has are named."""
    write_tiny_llama(tmp_path / "a.gguf")
    write_tiny_llama(tmp_path / "wide.gguf", ff=256)
    write_tiny_llama(tmp_path / "deep.gguf", layers=3)
    with pytest.raises(PlanError, match="the shapes differ"):
        compare(tmp_path / "a.gguf", tmp_path / "wide.gguf")
    assert all(n.startswith("blk.2.") for n in compare(tmp_path / "a.gguf", tmp_path / "deep.gguf").only_second)


def test_figures_without_a_value_are_null_in_json(tmp_path: Path) -> None:
    """Relative to zeros there is no difference: valid JSON, without NaN and Infinity."""
    zeros = {"blk.0.attn_q.weight": np.zeros((64, 64), np.float32)}
    write_tiny_llama(tmp_path / "zero.gguf", replace=zeros)
    write_tiny_llama(tmp_path / "a.gguf")
    result = CliRunner().invoke(app, ["diff", str(tmp_path / "zero.gguf"), str(tmp_path / "a.gguf"), "--json"])

    def no_number(text: str) -> None:
        raise AssertionError(text)

    facts = json.loads(result.stdout, parse_constant=no_number)
    (found,) = [t for t in facts["tensors"] if t["name"] == "blk.0.attn_q.weight"]
    assert found["relative"] is None
    assert found["largest"] > 0
