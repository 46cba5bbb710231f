"""When a plan fails, nothing stays open; what has no values is no reason to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.engine.bake import plan_bake
from ggufmerge.engine.compare import compare
from ggufmerge.engine.extract import plan_extract
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError
from ggufmerge.files import GGUFWriter, MetadataEditor, TensorInfo
from ggufmerge.files.tensor import MappedFile
from ggufmerge.planning.explain import explain
from ggufmerge.planning.models import lay_out
from ggufmerge.planning.planner import make_plan
from ggufmerge.recipe import load_recipe
from ggufmerge.types import TensorType
from tests.tiny import write_tiny_llama

TWO = "{merge_method: linear, models: [{model: a.gguf}, {model: OTHER}], parameters: PARAMETERS}\n"


@pytest.fixture
def still_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Path]]:
    """The files that are mapped and not closed."""
    files: dict[int, MappedFile] = {}
    init, close = MappedFile.__init__, MappedFile.close

    def opened(self: MappedFile, path: Path, descriptor: int) -> None:
        init(self, path, descriptor)
        files[id(self)] = self

    def closed(self: MappedFile) -> None:
        files.pop(id(self), None)
        close(self)

    monkeypatch.setattr(MappedFile, "__init__", opened)
    monkeypatch.setattr(MappedFile, "close", closed)
    return files  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_llama("a.gguf")
    write_tiny_llama("b.gguf", tune=(1, 0.02))
    write_tiny_llama("deep.gguf", layers=3)
    write_tiny_llama("wide.gguf", embed=128)
    write_tiny_llama("spelled.gguf", tokenizer="bpe")
    return tmp_path


def recipe(other: str = "b.gguf", parameters: str = "{weight: 1}", more: str = "name: merge") -> str:
    return TWO.replace("OTHER", other).replace("PARAMETERS", f"{parameters}, {more}")


@pytest.mark.parametrize(
    "fail",
    [
        lambda: make_plan(load_recipe(recipe("missing.gguf"))),
        lambda: make_plan(load_recipe(recipe("deep.gguf"))),
        lambda: make_plan(load_recipe(recipe("wide.gguf"))),
        lambda: make_plan(load_recipe(recipe(parameters="{weight: 0}"))),
        lambda: make_plan(load_recipe(recipe()), imatrix=["missing.gguf"]),
        lambda: plan_quantize("a.gguf", "Q4_0", tensor_types=[("nothing", "Q8_0")]),
        lambda: plan_quantize("a.gguf", "Q4_K_N"),
        lambda: compare("a.gguf", "wide.gguf"),
        lambda: compare("a.gguf", "missing.gguf"),
        lambda: plan_extract("b.gguf", "missing.gguf"),
        lambda: plan_extract("b.gguf", "a.gguf", include=["nothing"]),
        lambda: explain(load_recipe(recipe()), "no such tensor"),
        lambda: explain(load_recipe(recipe(parameters="{weight: 0}"))),
        lambda: explain(load_recipe(recipe("wide.gguf"))),
        lambda: lay_out(load_recipe(recipe("missing.gguf"))),
        lambda: lay_out(load_recipe(recipe("deep.gguf"))),
        lambda: lay_out(load_recipe(recipe("spelled.gguf"))),
        lambda: make_plan(load_recipe(recipe(more="tokenizer_source: union", other="spelled.gguf"))),
        lambda: make_plan(load_recipe(recipe(more="graft: [{model: a.gguf, tensors: [nothing]}]"))),
        lambda: make_plan(load_recipe(recipe(more="metadata: {llama.block_count: 7}"))),
        lambda: plan_quantize("a.gguf", None, like="missing.gguf"),
        lambda: plan_quantize("a.gguf", "Q4_0", imatrix=["b.gguf"]),
        lambda: plan_extract("b.gguf", "wide.gguf"),
        lambda: plan_bake("a.gguf", ["b.gguf"]),
        lambda: compare("a.gguf", "b.gguf", base="a.gguf+b.gguf"),
    ],
)
def test_a_plan_that_fails_closes_what_it_opened(
    folder: Path, still_open: set[Path], fail: Callable[[], object]
) -> None:
    """So that the files can be removed, on Windows too, while the error is told."""
    with pytest.raises(GgufmergeError):
        fail()
    assert not still_open


def test_models_in_one_vocabulary_are_closed_with_their_files(folder: Path, still_open: set[Path]) -> None:
    """A model as the result has it is the same open file, once."""
    write_tiny_llama("more.gguf", vocab=330, added={"<more>": 4})
    union = load_recipe(recipe("more.gguf", more="tokenizer_source: union"))
    _, opened = make_plan(union)
    with opened:
        assert len(still_open) == 2
    assert not still_open
    explain(union)
    assert not still_open


def test_what_is_not_needed_any_more_is_closed(folder: Path, still_open: set[Path]) -> None:
    """After an explanation, a comparison, and a block of a plan's sources."""
    explain(load_recipe(recipe()))
    compare("a.gguf", "b.gguf")
    assert not still_open
    _, opened = make_plan(load_recipe(recipe()))
    with opened:
        assert still_open
    assert not still_open


def with_empty(path: str, shape: tuple[int, ...], kind: TensorType) -> None:
    """The model with one more tensor, which has no values."""
    with ggufmerge.open(path) as file:
        metadata = MetadataEditor(file.metadata)
        values = {t.name: bytes(t.raw) for t in file.tensors.values()}
        infos = [TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values()]
    empty = TensorInfo("blk.0.ffn_none_exps.weight", shape, kind)
    with GGUFWriter(path, metadata, [*infos, empty], overwrite=True) as writer:
        for name, raw in values.items():
            writer.write(name, 0, raw)
        writer.commit()


@pytest.mark.parametrize(
    "shape", [(0,), (4, 0), (0, 64), (0, 4, 64), (3, 4, 0), (3, 0, 64), (0, 0, 0, 0), (2, 0, 0, 64)]
)
@pytest.mark.parametrize("types", [("F32", "F32"), ("F16", "F32")])
def test_tensors_without_values_are_copied(folder: Path, shape: tuple[int, ...], types: tuple[str, str]) -> None:
    """In merges by any method, to any type, and they are no difference of models."""
    for path, kind in zip(("a.gguf", "b.gguf"), types, strict=True):
        with_empty(path, shape, TensorType.parse(kind))
    ties = (
        "{merge_method: ties, base_model: a.gguf, models: [{model: b.gguf, parameters: {weight: 1, density: 0.5}}]}\n"
    )
    for number, text in enumerate((recipe(), ties)):
        ggufmerge.build(load_recipe(text), f"out{number}.gguf", out_type="Q8_0" if number else None)
        with ggufmerge.open(f"out{number}.gguf") as out:
            assert out.tensors["blk.0.ffn_none_exps.weight"].shape == shape
    plan, sources = plan_extract("b.gguf", "a.gguf", rank=2)
    for source in sources:
        source.close()
    assert "blk.0.ffn_none_exps.weight" not in {pair.name for pair in plan.pairs} | plan.left_out.keys()
