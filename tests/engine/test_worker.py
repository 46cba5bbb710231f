"""Work as data: any process that has the plan can do any task of it, in any order, and the bytes are the same."""

from __future__ import annotations

import functools
import json
import multiprocessing
import pickle
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import Plan, make_plan, run
from ggufmerge.engine.bake import plan_bake
from ggufmerge.engine.documents import planned_documents
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import PlanError
from ggufmerge.planning.opened import Opened, header_of
from ggufmerge.quants import encoders
from ggufmerge.running.making import Making
from ggufmerge.running.report import BuildReport
from ggufmerge.running.tasks import Known, Task, Written
from ggufmerge.running.worker import Worker
from ggufmerge.sources.aligned import AlignedSource
from tests.engine.conftest import raw
from tests.engine.test_quantize import write_imatrix
from tests.tiny import write_tiny_llama, write_tiny_lora

CHUNK = 3000  # values, so that every matrix has several chunks
Plans = tuple[Plan, Opened]
Execute = Callable[[Plan, Task, Known], Any]

MIXED = """
merge_method:
  - {filter: ffn_gate_exps, value: ties}
  - {filter: attn_q, value: dare_ties}
  - {filter: attn_k, value: slerp}
  - {filter: ffn_down_exps, value: sce}
  - {value: linear}
base_model: base.gguf
models:
  - {model: a.gguf, parameters: {weight: 0.6, density: 0.4}}
  - {model: b.gguf, parameters: {weight: 0.5, density: 0.3}}
parameters: {t: 0.3, chain: true, select_topk: 0.3}
tensor_types: {attn_v: Q4_0, attn_output: Q5_1}
graft: [{model: a.gguf, tensors: [token_embd.weight]}]
seed: 5
"""
ADAPTERS = """
merge_method: linear
models:
  - {model: {model: wide.gguf, lora: x.gguf}, parameters: {weight: 0.5}}
  - {model: {model: wide.gguf, lora: y.gguf}, parameters: {weight: 0.7}}
rounding: stochastic
"""
UNION = """
merge_method: linear
tokenizer: {source: union}
models: [{model: wide.gguf, parameters: {weight: 0.5}}, {model: words.gguf, parameters: {weight: 0.5}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a and b with experts; wide, adapters x and y of it, and words, which has another vocabulary."""
    folder = tmp_path_factory.mktemp("worker")
    for number, name in enumerate(("base", "a", "b")):
        tune = (number, 0.02) if number else None
        write_tiny_llama(folder / f"{name}.gguf", layers=1, type="Q8_0", experts=3, tune=tune)
    size: dict[str, Any] = {"layers": 1, "embed": 256, "ff": 256}
    base = write_tiny_llama(folder / "wide.gguf", **size, type="Q4_K")
    write_tiny_llama(folder / "words.gguf", **size, type="Q8_0", vocab=352, added={"<x>": 3}, tune=(5, 0.02))
    for seed, name in enumerate("xy"):
        write_tiny_lora(folder / f"{name}.gguf", base, strength=0.02, seed=seed)
    return folder


def plan_of(folder: Path, recipe: str) -> Plans:
    (folder / "recipe.yaml").write_text(recipe)
    return make_plan(ggufmerge.load_recipe(folder / "recipe.yaml"))


@functools.lru_cache
def _worker(plan: bytes) -> Worker:
    """The worker of a plan in the other process, made of the plan alone."""
    found: Plan = pickle.loads(plan)
    return Worker(found, Opened.from_plan(found))


def _execute(plan: bytes, task: Task, known: Known) -> Any:
    return _worker(plan).execute(task, known)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Execute]:
    """Does a task in another process, to which plan, task and what is known are sent."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda plan, task, known: pool.submit(_execute, pickle.dumps(plan), task, known).result()


def made(plan: Plan, opened: Opened, execute: Execute) -> dict[str, bytes]:
    """The bytes of each tensor, from tasks that are done one by one, those of a batch in a random order."""
    owner, order, result = Worker(plan, opened), random.Random(0), {}
    for tensor in plan.tensors:
        data = bytearray(tensor.nbytes)

        def written(piece: Written, data: bytearray = data, width: int = tensor.type.row_bytes(tensor.n)) -> None:
            assert piece.raw is not None
            data[piece.start * width : piece.start * width + piece.nbytes] = piece.raw

        for batch in Making(owner, tensor, CHUNK, written=written).batches():
            results = {}
            for i in order.sample(range(len(batch.tasks)), len(batch.tasks)):
                results[i] = execute(plan, batch.tasks[i], batch.known)
            for i in range(len(batch.tasks)):
                batch.fold(results[i])
        result[tensor.name] = bytes(data)
    return result


@pytest.mark.parametrize(
    "planned",
    [
        lambda folder: plan_of(folder, MIXED),
        lambda folder: plan_of(folder, ADAPTERS),
        lambda folder: plan_of(folder, UNION),
        lambda folder: plan_bake(folder / "wide.gguf", [folder / "x.gguf"], out_type="Q5_K_M"),
        lambda folder: plan_quantize(folder / "a.gguf", "Q4_0"),
    ],
    ids=["methods", "adapters", "vocabularies", "bake", "quantize"],
)
def test_another_process_makes_the_same_bytes(
    folder: Path, tmp_path: Path, elsewhere: Execute, planned: Callable[[Path], Plans]
) -> None:
    """Task by task, and in another order, as threads of this process do."""
    plan, opened = planned(folder)
    with opened:
        found = made(plan, opened, elsewhere)
        run(plan, opened, tmp_path / "out.gguf", chunk=CHUNK, threads=2)
    assert found == raw(tmp_path / "out.gguf")


def test_the_plans_of_these_tests_have_all_kinds_of_work(folder: Path) -> None:
    """Copies, passes of several methods, surveys of changes that chance rounds, and experts one by one."""
    kinds, methods, rounded = set(), set(), set()
    for recipe in (MIXED, ADAPTERS):
        plan, opened = plan_of(folder, recipe)
        with opened:
            worker = Worker(plan, opened)
            for tensor in plan.tensors:
                methods.add(tensor.method)
                making = Making(worker, tensor, CHUNK)
                for batch in making.batches():
                    kinds |= {(task.kind, task.expert > 0) for task in batch.tasks}
                    for task in batch.tasks:
                        batch.fold(worker.execute(task, batch.known))
                rounded |= {finding.rounding for finding in making.findings}
    assert {"ties", "dare_ties", "slerp", "sce", "linear"} <= methods
    assert {("copy", False), ("pass", False), ("pass", True), ("survey", True), ("write", True)} <= kinds
    assert rounded == {"nearest", "stochastic"}


def test_a_plan_from_json_opens_its_sources(folder: Path) -> None:
    """With the alignment of their vocabularies."""
    plan, opened = plan_of(folder, UNION)
    with opened, Opened.from_plan(Plan.from_json(json.loads(json.dumps(plan.to_json())))) as again:
        assert again.fingerprints() == opened.fingerprints()
        kinds = [type(source) for source in opened.sources]
        assert kinds == [AlignedSource] * len(opened.sources)
        assert [type(source) for source in again.sources] == kinds
        assert header_of(plan, again)[0].encode() == header_of(plan, opened)[0].encode()


def test_a_plan_opens_the_documents_that_it_is_made_from(folder: Path) -> None:
    """By the files that they became, under the names that the recipe has for them."""
    stage = "name: first\nmerge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
    (folder / "two.yaml").write_text(f"{stage}---\n{stage.replace('name: first', '').replace('b.gguf', 'first')}")
    with planned_documents(ggufmerge.load_recipe(folder / "two.yaml")) as documents:
        for plan, opened in zip(documents.plans, documents.sources, strict=True):
            with Opened.from_plan(plan) as again:
                assert [s.label for s in again.sources] == [s.label for s in opened.sources]
                assert [s.file.path for s in again.sources] == [s.file.path for s in opened.sources]


def test_a_plan_opens_the_entries_of_an_importance_matrix_that_it_uses(folder: Path, tmp_path: Path) -> None:
    """Not those that were left out."""
    names = ("blk.0.attn_q.weight", "blk.0.attn_k.weight")
    matrix = write_imatrix(tmp_path / "imatrix.dat", {name: np.ones(256, np.float32) for name in names})
    plan, opened = plan_quantize(folder / "wide.gguf", "Q4_K_M", imatrix=[matrix], exclude_weights=["attn_k"])
    with opened, Opened.from_plan(plan) as again:
        assert again.imatrix is not None
        assert again.imatrix.names == [names[0]]


def test_sources_that_have_changed_are_refused(tmp_path: Path) -> None:
    """By their weights, whatever the time of the file says."""
    write_tiny_llama(tmp_path / "a.gguf", layers=1)
    write_tiny_llama(tmp_path / "b.gguf", layers=1, tune=(1, 0.1))
    plan, opened = plan_of(
        tmp_path, "merge_method: linear\nmodels: [{model: a.gguf}, {model: b.gguf}]\nparameters: {weight: 1}\n"
    )
    opened.close()
    write_tiny_llama(tmp_path / "b.gguf", layers=1, tune=(2, 0.1))
    with pytest.raises(PlanError, match=r"b\.gguf: has other weights than when the plan was made: make the plan again"):
        Opened.from_plan(plan)


class Halving(encoders.Nearest):
    """Writes weights that are halved first, which nobody would want."""

    name = "halving"

    def targets(self, codec: Any, piece: encoders.Piece) -> encoders.Floats:
        return piece.rows * np.float32(0.5)


def test_a_recipe_may_name_an_encoder_that_was_registered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes what was changed, on whatever grid that lies."""
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))
    encoders.register(Halving())

    def built(name: str) -> BuildReport:
        recipe = ADAPTERS.replace("stochastic", name) + "out_type: Q8_0\n"
        (folder / "encoder.yaml").write_text(recipe)
        return ggufmerge.build(folder / "encoder.yaml", tmp_path / f"{name}.gguf")

    built("nearest")
    built("halving")
    with ggufmerge.open(tmp_path / "nearest.gguf") as plain, ggufmerge.open(tmp_path / "halving.gguf") as other:
        x, y = (file.tensors["blk.0.attn_q.weight"].dequantize() for file in (plain, other))
        np.testing.assert_allclose(y, x / 2, atol=1e-3 * np.abs(x).max())
