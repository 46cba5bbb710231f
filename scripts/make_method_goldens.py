"""Write the numbers that tests/methods/test_mergekit.py compares with: what mergekit's own kernels give.

Needs an environment of its own (mergekit is LGPL-3.0 and never a dependency of this project):

    python -m venv mergekit-env
    mergekit-env/bin/pip install torch==2.13.0 numpy "pydantic>=2.10,<3"
    mergekit-env/bin/pip install --no-deps mergekit==0.1.5
    mergekit-env/bin/python scripts/make_method_goldens.py vendor/mergekit

Only methods without randomness; inputs are drawn from a fixed seed. Calls are in float32 but for arcee_fusion.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mergekit.merge_methods import merge_tensors


def inputs() -> dict[str, np.ndarray]:
    """name -> float32 [4, ...]: a base and three models."""
    rng = np.random.default_rng(20261)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    near = np.repeat(normal(1, 9, 21), 4, axis=0)
    near[1:] += 0.3 * normal(3, 9, 21)
    nearer = np.repeat(normal(1, 9, 21), 4, axis=0)
    nearer[1:] += 0.004 * normal(3, 9, 21)
    allied = near + 0.3 * normal(1, 9, 21) * np.array([0, 1, 1, 1], np.float32).reshape(4, 1, 1)
    grid = (rng.integers(-4, 5, (4, 8, 19)) / 8).astype(np.float32)
    zero = normal(4, 6, 11)
    zero[1] = zero[0]
    zero[3] = 0
    return {
        "matrix": normal(4, 12, 33),
        "vector": 2 * normal(4, 45),
        "near": near,  # fine-tunes, 30 % apart from the base
        "allied": allied,  # fine-tunes whose changes agree in part
        "nearer": nearer,  # so close that slerp becomes lerp
        "opposite": np.stack([near[0], -near[0], near[1], -near[1]]),
        "grid": grid,  # many equal magnitudes and zero differences
        "zero": zero,  # a model that equals the base, and one of zeros
        "single": normal(4, 7, 1),
        "cube": normal(4, 3, 4, 10),
    }


def cases() -> Iterator[dict[str, Any]]:
    """method, inputs, models (positions), base (whether position 0 is given as base), parameters."""
    every = ("matrix", "vector", "near", "nearer", "grid", "zero", "single", "cube")

    def case(method: str, data: str, models: list[int], base: bool, **parameters: Any) -> dict[str, Any]:
        return {"method": method, "inputs": data, "models": models, "base": base, "parameters": parameters}

    for data in every:
        yield case("linear", data, [1, 2, 3], False, weight=[0.3, 0.6, -0.2])
        yield case("task_arithmetic", data, [1, 2, 3], True, weight=[0.5, 0.7, -0.3], **{"lambda": 0.8})
        yield case("ties", data, [1, 2, 3], True, weight=[0.5, 0.7, 0.9])
        yield case("slerp", data, [1], True, t=0.3)
    for data in ("matrix", "vector"):
        yield case("linear", data, [0, 1], False, weight=[0.3, 0.6], normalize=False)
        yield case("linear", data, [1, 2], True, weight=[0.3, 0.6, 1.0])
        yield case("linear", data, [1], False, weight=[0.4])
        yield case("passthrough", data, [1], False)
        yield case("passthrough", data, [1], False, scale=[-0.75])
        yield case("task_arithmetic", data, [1, 2], True, weight=[0.5, 0.7], normalize=True)
        yield case("task_arithmetic", data, [1, 2], True, weight=[0.5, -0.5], normalize=True)
    for t in (0.0, 0.5, 1.0, -0.4, 1.3):
        for data in ("matrix", "near", "nearer", "opposite"):
            yield case("slerp", data, [1], True, t=t)
    yield case("slerp", "zero", [3], True, t=0.4)
    for data, density in (("matrix", 0.5), ("matrix", 0.001), ("matrix", 0.0), ("vector", 0.2), ("near", 0.37)):
        for normalize in (True, False):
            for rescale in (True, False):
                options = {"normalize": normalize, "rescale": rescale}
                yield case("ties", data, [1, 2, 3], True, weight=[0.5, 0.7, 0.9], density=density, **options)
        yield case("ties", data, [1, 2, 3], True, weight=[0.5, -0.7, 0.9], density=density, **{"lambda": 1.2})
        yield case("ties", data, [1, 2, 3], True, weight=[0.5, 0.7, 0.9], density=[density, 1.0, 0.6])
    yield case("ties", "matrix", [1, 2], True, weight=[0.5, -0.5])
    yield case("ties", "zero", [1, 2, 3], True, weight=[0.5, -0.5, 1.0], density=0.5)
    for method in ("dare_linear", "dare_ties"):
        yield case(method, "matrix", [1, 2, 3], True, weight=[0.5, 0.7, -0.9], density=1.0)
        yield case(method, "matrix", [1, 2, 3], True, weight=[0.5, 0.7, -0.9], density=0.0)
        yield case(method, "vector", [1, 2, 3], True, weight=[0.5, 0.7, 0.9], density=1.0, normalize=True)
    for data in every:
        yield case("nuslerp", data, [1, 2], False, weight=[0.3, 0.5])
        yield case("nuslerp", data, [1, 2], True, weight=[0.3, 0.5])
        yield case("multislerp", data, [1, 2, 3], False, weight=[0.3, 0.5, 0.4])
        yield case("multislerp", data, [1, 2, 3], True, weight=[0.3, 0.5, -0.1])
        yield case("karcher", data, [1, 2, 3], False)
        yield case("sce", data, [1, 2, 3], True)
        yield case("ram", data, [1, 2, 3], True)
        yield case("ramplus_tl", data, [1, 2, 3], True, epsilon=0.2, alpha=2.0, r=0.3)
        yield case("nearswap", data, [1], True, t=0.1)
        yield case("arcee_fusion", data, [1], True)
    for data in ("matrix", "near", "grid"):
        for row_wise in (False, True):
            options = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
            yield case("nuslerp", data, [1, 2], False, weight=[0.3, 0.5], **options)
            yield case("nuslerp", data, [1, 2], True, weight=[0.3, 0.5], **options)
        yield case("nuslerp", data, [1, 2], False, weight=[0.5, -0.5])
        yield case("multislerp", data, [1, 2], False, weight=[0.3, 0.5], normalize_weights=False, eps=1e-3)
        yield case("karcher", data, [1, 2], True, max_iter=3, tol=1e-3)
        yield case("ram", data, [1, 2, 3], True, epsilon=0.5)
        yield case("ramplus_tl", data, [1, 2], True)
        yield case("nearswap", data, [1], True, t=0.9)
    yield case("nuslerp", "vector", [1, 2], False, weight=[0.3, 0.5], nuslerp_flatten=False)
    yield case("multislerp", "opposite", [0, 1], False, weight=[0.5, 0.5])
    yield case("multislerp", "matrix", [1], False, weight=[0.4])
    for models in ([1, 2], [1, 2, 3]):
        yield case("model_stock", "allied", models, True)
        yield case("model_stock", "cube", models, True)
    yield case("model_stock", "allied", [1, 2, 3], True, filter_wise=True)
    yield case("sce", "matrix", [1, 2, 3], True, select_topk=0.3)
    yield case("sce", "near", [1, 2], True, select_topk=0.7)
    yield case("sce", "vector", [1, 2, 3], True, select_topk=0.0)
    yield case("sce", "matrix", [1], True, select_topk=0.5)
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        for density, gamma in ((0.5, 0.1), (0.9, 0.2), (0.3, 0.0), (1.0, 0.5), (0.0, 0.1), (0.001, 0.001)):
            options = {"density": density, "gamma": gamma, "weight": [0.5, 0.7, -0.9]}
            yield case(method, "matrix", [1, 2, 3], True, **options)
            yield case(method, "vector", [1, 2, 3], True, normalize=True, rescale=True, **options)
    for method in ("della", "della_linear"):
        yield case(method, "matrix", [1, 2, 3], True, weight=[0.5, 0.7, -0.9], density=1.0)
        yield case(method, "vector", [1, 2, 3], True, weight=[0.5, 0.7, 0.9], density=[0.0, 1.0, 1.0])


def merged(case: dict[str, Any], tensors: np.ndarray) -> np.ndarray:
    chosen = ([0] if case["base"] else []) + case["models"]
    method, base = case["method"], 0 if case["base"] else None
    if case["base"] and method in ("linear", "karcher", "passthrough"):  # there the base is one more model, the last
        chosen, base = chosen[1:] + chosen[:1], len(chosen) - 1
    result = merge_tensors(
        [torch.from_numpy(tensors[i].copy()) for i in chosen],
        method,
        parameters=case["parameters"],
        base_index=base,
        # its softmax and logarithm lose the importance of near-equal rows in float32
        dtype=torch.float64 if method == "arcee_fusion" else torch.float32,
        out_dtype=torch.float32,
    )
    return result.numpy()


def main(folder: Path) -> None:
    data, listed = inputs(), list(cases())
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "inputs.npz", **data)
    outputs = {f"{i:03}": merged(case, data[case["inputs"]]) for i, case in enumerate(listed)}
    np.savez_compressed(folder / "outputs.npz", **outputs)
    lines = ",\n".join(json.dumps(case) for case in listed)
    (folder / "cases.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
