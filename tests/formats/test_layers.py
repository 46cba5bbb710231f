"""How many layers a model has: the metadata's number, as far as the tensors bear it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ggufmerge
from ggufmerge.engine import make_plan
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError
from ggufmerge.files import MetadataEditor
from ggufmerge.formats.layers import layer_count
from ggufmerge.recipe import load_recipe
from tests.tiny import write_tiny_llama


class File:
    """What is looked at of a file."""

    def __init__(self, names: list[str], architecture: str = "llama", **numbers: Any) -> None:
        self.path, self.paths, self.architecture = Path("x.gguf"), [Path("x.gguf")], architecture
        self.metadata = MetadataEditor(where="x.gguf")
        for key, value in numbers.items():
            self.metadata.set(f"{architecture}.{key}", value)
        self.tensors: dict[str, Any] = dict.fromkeys(names)

    def close(self) -> None: ...


BLOCKS = ["blk.0.a.weight", "blk.1.a.weight"]


@pytest.mark.parametrize(
    ("names", "numbers", "count"),
    [
        (BLOCKS, {"block_count": 2}, 2),
        (BLOCKS, {"block_count": 3, "nextn_predict_layers": 1}, 3),
        (BLOCKS, {"block_count": 5, "architecture": "deci"}, 5),
        (["enc.blk.0.a", "dec.blk.3.a"], {"block_count": 1, "architecture": "t5"}, 1),
        (["token_embd.weight"], {"block_count": 4}, 4),
    ],
)
def test_what_the_tensors_bear_out_is_taken(names: list[str], numbers: dict[str, Any], count: int) -> None:
    """Layers that predict further tokens may be missing, some architectures have layers without tensors, and encoders
    and decoders call theirs by other names.
    """
    assert layer_count(File(names, **numbers)) == count


@pytest.mark.parametrize("count", [0, 1, 3, 512, 3_000_000, 2**32 - 1, 2**64 - 1, -1, 2.0, True, "2", [2, 2]])
def test_any_other_number_is_refused(count: Any) -> None:
    """In one line that names file and key, whatever stands there."""
    with pytest.raises(GgufmergeError, match=r"^x\.gguf: .*llama\.block_count.* is ") as caught:
        layer_count(File(BLOCKS, block_count=count))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("architecture", ["deci", "t5", "llama"])
def test_no_file_has_more_layers_than_llama_cpp_runs(architecture: str) -> None:
    """Whatever its tensors are called."""
    with pytest.raises(GgufmergeError, match="block_count is 4294967295"):
        layer_count(File(["token_embd.weight"], architecture, block_count=2**32 - 1, nextn_predict_layers=2**32 - 1))


def test_a_stranger_s_count_is_refused_before_anything_is_done_with_it(tmp_path: Path) -> None:
    """By recipes of whole models and of slices, and by quantize, whose types depend on it."""
    path = tmp_path / "h.gguf"
    write_tiny_llama(path, metadata={"llama.block_count": 2**32 - 1})
    whole = f"{{merge_method: passthrough, models: [{{model: {path}}}]}}\n"
    part = f"{{merge_method: passthrough, slices: [{{sources: [{{model: {path}, layer_range: [0, 4000000000]}}]}}]}}\n"
    for recipe in (whole, part):
        with pytest.raises(GgufmergeError, match="its tensors are of 2 layers"):
            make_plan(load_recipe(recipe))
    with pytest.raises(GgufmergeError, match="its tensors are of 2 layers"):
        plan_quantize(path, "Q4_K_M")


def test_a_card_lists_the_parents_that_are_named(tmp_path: Path) -> None:
    """However many the file claims."""
    from ggufmerge.report.model_card import model_card

    more = {"general.base_model.count": 2**32 - 1, "general.base_model.7.name": "Seven"}
    write_tiny_llama(tmp_path / "m.gguf", metadata=more)
    with ggufmerge.open(tmp_path / "m.gguf") as file:
        assert "| Seven |" in model_card(file)
