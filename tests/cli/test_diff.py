"""`ggufmerge diff` and `engine.compare`: the figures are those that NumPy gives for the dequantized tensors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ggufmerge.cli.app import app
from ggufmerge.cli.diff import sparkline
from ggufmerge.engine.compare import compare
from ggufmerge.errors import PlanError
from tests.tiny import write_tiny_llama, write_tiny_lora


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


def shown(*arguments: str | Path) -> str:
    return CliRunner().invoke(app, ["diff", *map(str, arguments)], catch_exceptions=False).stdout


def test_totals_are_those_of_all_weights_together(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """Not means over tensors; of each layer, too."""
    folder, weights = models
    found = compare(folder / "a.gguf", folder / "b.gguf", base=folder / "base.gguf")

    def joined(prefix: str) -> list[np.ndarray]:
        names = [name for name in weights["a"] if name.startswith(prefix)]
        return [np.concatenate([weights[m][n].ravel() for n in names]).astype(np.float64) for m in ("a", "b", "base")]

    for total, prefix in ((found.total, ""), (found.layers[1], "blk.1.")):
        a, b, base = joined(prefix)
        assert total.values == a.size
        assert total.difference.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
        assert total.difference.changed == pytest.approx(np.mean(a != b))
        assert total.first is not None
        assert total.second is not None
        assert total.first.relative == pytest.approx(np.linalg.norm(a - base) / np.linalg.norm(base))
        assert total.second.changed == pytest.approx(np.mean(b != base))
        p, q = a - base, b - base
        assert total.cosine == pytest.approx(p @ q / np.linalg.norm(p) / np.linalg.norm(q))
    assert list(found.layers) == [0, 1]


def test_equal_models_are_called_identical(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """In one line and in JSON, also when only metadata differ; one tensor among others in its row."""
    folder, _ = models
    a = folder / "a.gguf"
    same = shown(a, a)
    assert "identical: all " in same
    assert "cosine" not in same
    assert "metadata: the same" in same
    write_tiny_llama(folder / "c.gguf", tune=TUNES["a"], metadata={"general.name": "other"})
    renamed = shown(a, folder / "c.gguf")
    assert "identical: all " in renamed
    assert "metadata: 1 different (general.name)" in renamed
    assert json.loads(shown(a, folder / "c.gguf", "--json"))["identical"] is True
    weights = write_tiny_llama(folder / "d.gguf", tune=TUNES["a"])
    up = "blk.1.ffn_up.weight"
    write_tiny_llama(folder / "d.gguf", tune=TUNES["a"], replace={up: weights[up] * 1.5})
    rows = {line.split()[0]: line.split()[1:] for line in shown(a, folder / "d.gguf", "--all").splitlines() if line}
    assert rows["blk.0.ffn_up.weight"] == ["identical"]
    assert rows[up][0] == "50.00"


def test_files_are_named_and_headings_explained(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """So that the figures can be read without the docs."""
    folder, _ = models
    text = shown(folder / "a.gguf", folder / "b.gguf", "--base", folder / "base.gguf")
    assert [line.split()[0] for line in text.splitlines()[:3]] == ["A", "B", "base"]
    assert "b.gguf" in text.splitlines()[1]
    assert "difference: RMS of A - B" in text
    assert "by layer, A: " in text
    facts = json.loads(shown(folder / "a.gguf", folder / "b.gguf", "--json"))
    assert (Path(facts["first"]).name, Path(facts["second"]).name, facts["base"]) == ("a.gguf", "b.gguf", None)
    assert facts["total"]["difference"]["changed"] > 0.9


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ((2, 0.05), "unrelated: they will add up without conflict"),
        ((1, 0.05), "largely the same"),
        ((1, -0.05), "pull against each other"),
        (None, "one of the two is the base itself"),
    ],
)
def test_with_a_base_a_sentence_says_what_it_means(
    second: tuple[int, float] | None, said: str, models: tuple[Path, dict[str, dict[str, np.ndarray]]]
) -> None:
    """For merging the two: by the cosine of their changes."""
    folder, _ = models
    write_tiny_llama(folder / "c.gguf", tune=second)
    assert said in shown(folder / "a.gguf", folder / "c.gguf", "--base", folder / "base.gguf")


def test_rounding_that_both_share_is_pointed_out(tmp_path: Path) -> None:
    """Two models in a coarse type have their rounding in common against a base in another."""
    write_tiny_llama(tmp_path / "base.gguf")
    for name, tune in (("a", (1, 0.01)), ("b", (2, 0.01))):
        write_tiny_llama(tmp_path / f"{name}.gguf", tune=tune, type="Q4_0")
    text = shown(tmp_path / "a.gguf", tmp_path / "b.gguf", "--base", tmp_path / "base.gguf")
    assert "careful: A and B are Q4_0 and the base is F32" in text


def test_a_sparkline_has_a_letter_for_each_layer() -> None:
    """Of Unicode, or of ASCII where the terminal has no other; nothing is the lowest letter."""
    values = [0.0, 1.0, 2.0, 4.0]
    assert sparkline(values) == "▁▃▅█"
    assert sparkline(values, blocks=False) == "_:=#"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([1.0, math.inf]) == "██"


def test_a_terminal_without_unicode_gets_ascii(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """No question marks and no escapes."""
    folder, _ = models
    command = [sys.executable, "-m", "ggufmerge", "diff", str(folder / "a.gguf"), str(folder / "b.gguf")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True)
    (line,) = [line for line in done.stdout.decode("ascii").splitlines() if line.startswith("by layer")]
    assert "##" in line


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three tunes of 3 % each, the third with half of the first in it, in Q4_0 and in Q4_K."""
    folder = tmp_path_factory.mktemp("rounded")
    size = {"layers": 1, "embed": 256, "ff": 512, "vocab": 2048}
    weights = [write_tiny_llama(folder / f"{name}.gguf", tune=tune, **size) for name, tune in ROUNDED.items()]
    base, a, b = weights
    c = {name: base[name] + np.sqrt(0.5) * (a[name] - base[name] + b[name] - base[name]) for name in base}
    for kind in ("Q4_0", "Q4_K"):
        for name, values in zip((*ROUNDED, "c"), (*weights, c), strict=True):
            write_tiny_llama(folder / f"{name}-{kind}.gguf", replace=values, type=kind, **size)
    return folder


ROUNDED = {"base": None, "a": (1, 0.03), "b": (2, 0.03)}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_the_change_behind_rounding_is_found(kind: str, rounded: Path) -> None:
    """Of files in one type: sizes as in full precision, and the cosines that rounding had hidden."""
    a, b, base = (rounded / f"{name}-{kind}.gguf" for name in ("a", "b", "base"))
    exact = compare(rounded / "a.gguf", rounded / "b.gguf", base=rounded / "base.gguf").total
    found = compare(a, b, rounded / f"c-{kind}.gguf", base=base)
    signal = found.total.signal
    assert exact.first is not None
    assert found.total.first is not None
    for change in signal.changes:
        assert change.change == pytest.approx(exact.first.relative, rel=0.1)
    assert found.total.first.relative == pytest.approx(signal.changes[0].seen)
    assert signal.changes[0].seen > 2 * signal.changes[0].change
    seen, noise, change = (getattr(signal.changes[0], name) for name in ("seen", "noise", "change"))
    assert seen**2 == pytest.approx(noise**2 + change**2)
    assert signal.changes[0].signal_to_noise == pytest.approx(change / noise)
    assert found.total.cosine > 0.25
    expected = np.array([[1, 0, 0.707], [0, 1, 0.707], [0.707, 0.707, 1]])
    assert np.array(signal.cosines) == pytest.approx(expected, abs=0.05)
    assert np.array(signal.same_signs) == pytest.approx(0.5 + np.arcsin(expected) / np.pi, abs=0.05)
    assert found.others == (str(rounded / f"c-{kind}.gguf"),)


def test_what_rounding_hides_is_said_to_be_hidden(rounded: Path) -> None:
    """From full precision to Q4_0 a change of 3 % cannot be seen: no number, but from where on one could be."""
    total = compare(rounded / "base.gguf", rounded / "a-Q4_0.gguf").total.signal.difference
    assert math.isnan(total.change)
    assert 0.02 < total.limit < 0.1
    assert total.noise == total.seen
    text = shown(rounded / "base.gguf", rounded / "a-Q4_0.gguf")
    assert "can be seen" in text
    assert " < " in text


def test_rounding_is_shown_where_there_is_some(rounded: Path) -> None:
    """A table for each change and one of cosines; none for models in full precision."""
    a, b, c, base = (rounded / f"{name}-Q4_0.gguf" for name in ("a", "b", "c", "base"))
    text = shown(a, b, c, "--base", base)
    assert all(f"{letter} - base, of it rounding" in text for letter in "ABC")
    assert "cosine of changes" in text
    assert "are unrelated: they will add up without conflict" in text
    assert "freed of rounding" in text
    assert "of it rounding" not in shown(rounded / "a.gguf", rounded / "b.gguf")
    facts = json.loads(shown(a, b, c, "--base", base, "--json"))
    assert len(facts["total"]["signal"]["cosines"]) == 3
    assert facts["tensors"][0]["signal"]["changes"][2]["identical_blocks"] < 1


def test_an_adapter_adds_no_rounding(rounded: Path) -> None:
    """A model beside itself with an adapter: the same stored weights, so all of the difference is the adapter's."""
    base = rounded / "base-Q4_0.gguf"
    write_tiny_lora(rounded / "lora.gguf", write_tiny_llama(rounded / "for-lora.gguf", layers=1, embed=256, ff=512))
    found = compare(base, f"{base}+{rounded / 'lora.gguf'}").total
    assert found.difference.relative > 0
    assert found.signal.difference.change == pytest.approx(found.difference.relative)
    assert found.signal.difference.noise == pytest.approx(0)


def test_more_than_two_models_need_a_base(rounded: Path) -> None:
    """One line that names the option."""
    models = [str(rounded / f"{name}-Q4_0.gguf") for name in ("a", "b", "c")]
    result = CliRunner().invoke(app, ["diff", *models])
    assert result.exit_code == 1
    with pytest.raises(PlanError, match="--base"):
        compare(*models)


def test_tensors_that_some_models_lack_are_named(models: tuple[Path, dict[str, dict[str, np.ndarray]]]) -> None:
    """A base without an output head: what cannot be compared is said."""
    folder, _ = models
    write_tiny_llama(folder / "tied.gguf", tied=True)
    found = compare(folder / "a.gguf", folder / "b.gguf", base=folder / "tied.gguf")
    assert found.left_out == ("output.weight",)
    assert "left out: output.weight" in shown(folder / "a.gguf", folder / "b.gguf", "--base", folder / "tied.gguf")
