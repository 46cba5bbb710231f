"""A small family of models: a base and three fine-tunes of it, in full precision and quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import BuildReport
from tests.tiny import write_tiny_llama, write_tiny_lora

TUNES = ("a", "b", "c")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, a, b, c as .f32.gguf and .q8.gguf, and kjv.lora.gguf, an adapter of the base."""
    folder = tmp_path_factory.mktemp("family")
    for kind in ("F32", "Q8_0"):
        suffix = {"F32": "f32", "Q8_0": "q8"}[kind]
        weights = write_tiny_llama(folder / f"base.{suffix}.gguf", type=kind)
        for number, name in enumerate(TUNES, 1):
            write_tiny_llama(folder / f"{name}.{suffix}.gguf", type=kind, tune=(number, 0.02))
    write_tiny_lora(folder / "adapter.gguf", weights, targets=("*attn_q.weight", "token_embd.weight"))
    return folder


@pytest.fixture
def build(family: Path, tmp_path: Path) -> Callable[..., Path]:
    """Build a recipe whose models are named relative to the family's folder; gives the path of the result."""

    def run(recipe: str, name: str = "out.gguf", **options: object) -> Path:
        build_report(family, recipe, tmp_path / name, **options)
        return tmp_path / name

    return run


def build_report(family: Path, recipe: str, output: Path, **options: object) -> BuildReport:
    path = family / f"{output.stem}.yaml"
    path.write_text(recipe, encoding="utf-8")
    return ggufmerge.build(path, output, **options)  # type: ignore[arg-type]


def weights(path: Path) -> dict[str, np.ndarray]:
    """Every tensor, dequantized."""
    with ggufmerge.open(path) as file:
        return {name: t.dequantize() for name, t in file.tensors.items()}


def raw(path: Path) -> dict[str, bytes]:
    """Every tensor's stored bytes."""
    with ggufmerge.open(path) as file:
        return {name: bytes(t.raw) for name, t in file.tensors.items()}
