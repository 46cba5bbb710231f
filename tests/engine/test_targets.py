"""Nothing that a build reads is written by it, and no two things that it writes have one name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggufmerge.engine import build, run
from ggufmerge.engine.build import Sink
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError, OutputError, PlanError
from ggufmerge.sinks import CardSink
from tests.engine.test_interruption import RECIPE
from tests.engine.test_quantize import write_imatrix
from tests.tiny import write_tiny_llama


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_llama(tmp_path / "a.gguf")
    write_tiny_llama(tmp_path / "b.gguf", tune=(1, 0.02))
    (tmp_path / "r.yaml").write_text(RECIPE)
    write_imatrix(tmp_path / "i.dat", {"blk.0.ffn_up.weight": np.ones((1, 64))})
    return tmp_path


def snapshot() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().iterdir()}


@pytest.mark.parametrize("target", ["a.gguf", "r.yaml", "i.dat", "like.gguf"])
def test_what_a_build_reads_is_not_its_output(models: Path, target: str) -> None:
    """Models, the recipe, importance matrices, the file whose types are followed."""
    (models / "like.gguf").write_bytes((models / "a.gguf").read_bytes())
    (models / "r.yaml").write_text(RECIPE.replace("weight: 1}}", "weight: 1}, like: like.gguf}"))
    before = snapshot()
    with pytest.raises(PlanError, match="also an input"):
        build("r.yaml", target, imatrix=["i.dat"], overwrite=True)
    assert snapshot() == before


@pytest.mark.parametrize("option", ["imatrix", "like"])
def test_what_quantizing_reads_is_not_its_output(models: Path, option: str) -> None:
    """The matrix and the file whose types are followed, too."""
    before = snapshot()
    plan, opened = (
        plan_quantize("a.gguf", "Q8_0", imatrix=["i.dat"])
        if option == "imatrix"
        else plan_quantize("a.gguf", None, like="b.gguf")
    )
    with opened, pytest.raises(PlanError, match="also an input"):
        run(plan, opened, "i.dat" if option == "imatrix" else "b.gguf", overwrite=True)
    assert snapshot() == before


@pytest.mark.parametrize(
    "card", ["o.gguf", "a.gguf", "r.yaml", ".o.gguf.journal", ".o.gguf.partial", "./o.gguf", "link.gguf"]
)
def test_a_card_replaces_neither_inputs_nor_the_output(models: Path, card: str) -> None:
    """Whatever way its path is spelt, with --overwrite, too."""
    (models / "link.gguf").symlink_to("b.gguf")
    before = snapshot()
    sinks: list[Sink] = [CardSink(Path(card), overwrite=True)]
    with pytest.raises(PlanError, match="choose another name"):
        build("r.yaml", "o.gguf", overwrite=True, sinks=sinks)
    assert snapshot() == before


def test_a_file_that_appears_before_a_sink_is_somebodys(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped before it wrote the card does not own what is there when it is given again."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def sinks() -> list[Sink]:
        return [CardSink(Path("card.md"))]

    with monkeypatch.context() as patch:
        patch.setattr("ggufmerge.report.model_card.model_card", stopped)
        with pytest.raises(KeyboardInterrupt):
            build("r.yaml", "o.gguf", sinks=sinks())
    (models / "card.md").write_text("mine")
    with pytest.raises(OutputError, match=r"card\.md: exists"):
        build("r.yaml", "o.gguf", sinks=sinks())
    assert (models / "card.md").read_text() == "mine"
    (models / "card.md").unlink()
    assert "only had to be given its name" in build("r.yaml", "o.gguf", sinks=sinks()).resumption
    assert "ggufmerge" in (models / "card.md").read_text()
    with pytest.raises(GgufmergeError, match="exists"):
        build("r.yaml", "o.gguf", sinks=sinks())
