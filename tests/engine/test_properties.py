"""What a merge must not depend on: the order of the models, the scale of normalized weights, and copies of a model.

Whole builds, every method. Laws hold byte for byte where no sum is formed in another order, else to float32 rounding.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufmerge.methods import NAMES
from ggufmerge.methods import method as find_method
from ggufmerge.methods.spec import Base
from tests.engine.conftest import build_report, raw, weights
from tests.tiny import write_tiny_llama

# values for parameters without a default, and such that prune and select
PARAMETERS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.05},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.4},
    "della_linear": {"density": 0.4},
    "breadcrumbs": {"density": 0.6, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.6, "gamma": 0.05},
    "sce": {"select_topk": 0.5},
    "ram": {"epsilon": 0.005},
    "ramplus_tl": {"epsilon": 0.005},
}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.9}
ONE_MODEL = (
    "passthrough",
    "slerp",
    "nearswap",
    "arcee_fusion",
)  # besides the base; slerp takes more in a chain, in order
MANY = [name for name in NAMES if name not in ONE_MODEL]
NORMALIZED = {
    name: switch
    for name in MANY
    for switch in ("normalize", "normalize_weights")
    if find_method(name).parameter(switch)
} | {"nuslerp": None}


def recipe(method: str, models: Sequence[str], base: str, factor: float = 1.0, **parameters: Any) -> str:
    """The models `models` merged by a method, each with its weight times `factor` if the method has weights."""
    chosen = find_method(method)
    entries = []
    for path in models[: chosen.max_models if method not in ONE_MODEL else 1]:
        own = {"weight": factor * WEIGHTS[path[0]]} if chosen.parameter("weight") else {}
        entries.append({"model": path, "parameters": own})
    whole = {"merge_method": method, "models": entries, "parameters": PARAMETERS.get(method, {}) | parameters}
    if chosen.base is Base.REQUIRED:
        whole["base_model"] = base
    return json.dumps(whole) + "\n"


def built(folder: Path, text: str, output: Path) -> Path:
    build_report(folder, text, output, threads=1)
    return output


@pytest.mark.parametrize("method", MANY)
def test_the_order_of_the_models_changes_nothing(family: Path, tmp_path: Path, method: str) -> None:
    """Every permutation of three models with their weights gives the same weights, masks of random methods included."""
    count = find_method(method).max_models or 3
    results = []
    for i, order in enumerate(itertools.permutations(("a.f32.gguf", "b.f32.gguf", "c.f32.gguf")[:count])):
        results.append(weights(built(family, recipe(method, order, "base.f32.gguf"), tmp_path / f"{i}.gguf")))
    for name, first in results[0].items():
        for other in results[1:]:
            np.testing.assert_allclose(other[name], first, rtol=0, atol=1e-6 * np.abs(first).max(), err_msg=name)


@pytest.mark.parametrize("method", NORMALIZED)
def test_the_scale_of_normalized_weights_changes_nothing(family: Path, tmp_path: Path, method: str) -> None:
    """All weights four times as large: the same bytes. Three times: the same up to the rounding of the weights."""
    switch = NORMALIZED[method]
    options = {switch: True} if switch else {}
    models = ("a.f32.gguf", "b.f32.gguf", "c.f32.gguf")
    paths = [
        built(family, recipe(method, models, "base.f32.gguf", factor, **options), tmp_path / f"{factor}.gguf")
        for factor in (1, 4, 3)
    ]
    assert raw(paths[0]) == raw(paths[1])
    once, thrice = weights(paths[0]), weights(paths[2])
    for name, values in once.items():
        np.testing.assert_allclose(thrice[name], values, rtol=0, atol=1e-6 * np.abs(values).max(), err_msg=name)


@pytest.fixture(scope="module", params=["Q8_0", "Q3_K", "Q6_K", "IQ4_XS"])
def copies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a quantized model, base.gguf, and copies of it, a, b and c."""
    folder = tmp_path_factory.mktemp("copies")
    write_tiny_llama(folder / "base.gguf", type=request.param, embed=256, ff=256, layers=1)
    for name in "abc":
        shutil.copy(folder / "base.gguf", folder / f"{name}.gguf")
    return folder


@pytest.mark.parametrize("method", NAMES)
def test_a_model_merged_with_itself_is_itself(copies: Path, tmp_path: Path, method: str) -> None:
    """Byte for byte, although most rows of Q3_K would change if their values were quantized anew."""
    text = recipe(method, ("a.gguf", "b.gguf", "c.gguf"), "base.gguf")
    assert raw(built(copies, text, tmp_path / "out.gguf")) == raw(copies / "base.gguf")


def test_blocks_that_a_merge_does_not_change_keep_their_bytes(tmp_path: Path) -> None:
    """A fine-tune that differs from the base in one block of one row: all other blocks are the base's."""
    shape = {"type": "Q6_K", "embed": 512, "ff": 256, "layers": 1}
    tensor = "blk.0.ffn_up.weight"
    changed = write_tiny_llama(tmp_path / "base.gguf", **shape)[tensor].copy()
    changed[7, 256:] *= -1
    write_tiny_llama(tmp_path / "a.gguf", replace={tensor: changed}, **shape)
    out = raw(built(tmp_path, recipe("task_arithmetic", ["a.gguf"], "base.gguf"), tmp_path / "out.gguf"))
    base, tune = raw(tmp_path / "base.gguf"), raw(tmp_path / "a.gguf")
    blocks = {
        key: np.frombuffer(data[tensor], np.uint8).reshape(256, 2, 210)
        for key, data in {"out": out, "base": base, "tune": tune}.items()
    }
    moved = (blocks["out"] != blocks["base"]).any(axis=2)
    assert np.argwhere(moved).tolist() == [[7, 1]]
    assert (blocks["out"][7, 1] != blocks["tune"][7, 1]).any()
    assert {name for name in out if out[name] != base[name]} == {tensor}


def test_a_model_with_an_adapter_merged_with_itself_has_the_adapter(family: Path, tmp_path: Path) -> None:
    """Not the bytes of the file the adapter changes."""
    tuned = "base.q8.gguf+adapter.gguf"
    alone = built(family, recipe("passthrough", [tuned], ""), tmp_path / "alone.gguf")
    text = json.dumps({"merge_method": "karcher", "models": [{"model": tuned}, {"model": tuned}]}) + "\n"
    assert raw(built(family, text, tmp_path / "twice.gguf")) == raw(alone) != raw(family / "base.q8.gguf")
