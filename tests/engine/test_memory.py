"""Memory is a setting: what a build allocates is bounded by threads and chunk size, not by tensors."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from numba import config

import ggufmerge
from tests.tiny import write_tiny_llama

RECIPE = (
    "{merge_method: ties, base_model: base.gguf, models: [{model: a.gguf}, {model: b.gguf}],"
    " parameters: {weight: 0.5, density: 0.3}, out_type: Q8_0}\n"
)


def peak(folder: Path, rows: int) -> int:
    """Peak of what NumPy and Python allocate while models with matrices of so many rows are merged."""
    for name, tune in (("base", None), ("a", (1, 0.02)), ("b", (2, 0.02))):
        write_tiny_llama(folder / f"{name}.gguf", layers=1, embed=256, ff=rows, tune=tune)
    (folder / "r.yaml").write_text(RECIPE)
    tracemalloc.start()
    try:
        ggufmerge.build(folder / "r.yaml", folder / "out.gguf", overwrite=True, threads=2, chunk=16384)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="interpreted kernels allocate by themselves")
def test_a_larger_tensor_takes_no_more_memory(tmp_path: Path) -> None:
    """Matrices of 33 MB as float32 are merged in the memory that those of 2 MB need, and a few rows."""
    peak(tmp_path, 512)  # kernels and modules are loaded
    small, large = peak(tmp_path, 2048), peak(tmp_path, 32768)
    assert large - small < 3_000_000
