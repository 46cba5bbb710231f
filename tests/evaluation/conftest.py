"""A tiny model, made once, for the tests of evaluation."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from ggufmerge.evaluation import LlamaModel
from tests.tiny import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("evaluate") / "tiny.gguf"
    write_tiny_llama(path, tokenizer="bpe")
    return path


@pytest.fixture
def tiny(tiny_path: pathlib.Path) -> Iterator[LlamaModel]:
    with LlamaModel(tiny_path, context=64, threads=1) as model:
        yield model
