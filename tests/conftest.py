"""What holds for all tests."""

from __future__ import annotations

import functools
import http.client
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.no_ollama import refusing


@pytest.fixture(autouse=True, scope="session")
def no_real_ollama() -> Iterator[None]:
    """See `tests/no_ollama.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "connect", refusing)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the program learns of this machine in tests, it forgets with them; compiled kernels are kept."""
    folder: Path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGUFMERGE_CACHE", str(folder))
        yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Windows the wheel of xllamacpp gives no llama.cpp to others, so modules that ask it need a build of it."""
    from ggufmerge.evaluation.libllama import VARIABLE

    if sys.platform != "win32" or VARIABLE in os.environ:
        return
    lacking = pytest.mark.skip(reason=f"needs a build of llama.cpp: name its llama.dll in {VARIABLE}")
    for item in items:
        if _asks_llama_cpp(item.path):
            item.add_marker(lacking)


@functools.cache
def _asks_llama_cpp(module: Path) -> bool:
    text = module.read_text(encoding="utf-8")
    return any(word in text for word in ("LlamaModel", "LlamaWorker", "xllamacpp", '"eval"', "--try", '"calibrate"'))
