"""What llama.cpp needs in memory is told before it runs, and llama.cpp then needs that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufmerge.architectures.caches import DRAFTS
from ggufmerge.architectures.memory import MemoryNeed, memory_need
from ggufmerge.files import open_gguf
from ggufmerge.types import TensorType
from tests.architecture_models import each, tiny_models
from tests.llama_memory import MIB, LlamaMemory

pytestmark = pytest.mark.oracle
ROUNDING = 0.006 * MIB  # of a buffer's size in llama.cpp's log
DIES = {"chameleon", "plm"}  # llama.cpp ends with an assertion
SAMPLE = ("bert", "deepseek2", "deepseek4", "gemma2", "jamba", "lfm2", "llama", "llama4", "qwen3next-mtp", "rwkv7")
SPARSE = {"glm5-next", "glm5-next-mtp"}  # the bound of what sparse attention computes in is a wide one


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaMemory]:
    """llama.cpp, started once."""
    with LlamaMemory() as worker:
        yield worker


def need_of(path: Path, context: int | None, kv_type: TensorType = TensorType.F16) -> MemoryNeed | None:
    """What the file at the path is said to need."""
    with open_gguf(path) as file:
        return memory_need(file.metadata, file.tensors, context, kv_type)


def window(name: str) -> dict[str, int]:
    """A window that is not that of the tiny model, nor as large as a context."""
    key = f"{tiny_models()[name].architecture}.attention.sliding_window"
    return {key: 700} if key in tiny_models()[name].metadata else {}


@pytest.mark.parametrize("name", each(sample=SAMPLE))
@pytest.mark.parametrize("context", [512, 4096])
def test_llama_cpp_needs_what_was_said(name: str, context: int, llama: LlamaMemory, tmp_path: Path) -> None:
    """Keys, values and states are exact, and computing takes no more than 5 % above what is said."""
    path = tiny_models()[name].write(tmp_path / "model.gguf", metadata=window(name))
    measured, need = llama.ask(path, context=context), need_of(path, context)
    if name in DRAFTS | DIES:
        assert measured is None
        return
    assert measured is not None
    assert need is not None
    assert need.is_known
    assert abs(need.cache - measured["KV"]) < 4 * ROUNDING
    assert abs(need.state - measured["RS"]) < 3 * ROUNDING
    assert need.compute > 0.95 * measured["compute"]
    assert need.compute < 2.0 * measured["compute"] or name in SPARSE
    assert need.output < measured["output"] + ROUNDING


@pytest.mark.parametrize(("kv_type", "number"), [(TensorType.Q8_0, 8), (TensorType.F32, 0), (TensorType.Q4_0, 2)])
def test_keys_and_values_have_the_size_of_their_type(
    kv_type: TensorType, number: int, llama: LlamaMemory, tmp_path: Path
) -> None:
    """A smaller type of the cache takes as much less as llama.cpp saves by it."""
    path = tiny_models()["llama"].write(tmp_path / "model.gguf")
    measured, need = llama.ask(path, context=4096, kv_type=number), need_of(path, 4096, kv_type)
    assert measured is not None
    assert need is not None
    assert abs(need.cache - measured["KV"]) < ROUNDING


def test_the_context_is_that_of_training_but_at_most_4096(tmp_path: Path) -> None:
    """Without a context, a model is thought to be run with 4096 tokens, or with all it was trained on."""
    model = tiny_models()["llama"]
    for trained, expected in ((256, 256), (1000, 1024), (131072, 4096)):
        path = model.write(tmp_path / f"{trained}.gguf", metadata={"llama.context_length": trained})
        need = need_of(path, None)
        assert need is not None
        assert need.context == expected


def test_weights_are_all_tensors(tmp_path: Path) -> None:
    """The weights take what the tensors of the file take, and none of float32 ones is repacked."""
    path = tiny_models()["llama"].write(tmp_path / "model.gguf")
    need = need_of(path, 512)
    with open_gguf(path) as file:
        assert need is not None
        assert need.weights == sum(tensor.nbytes for tensor in file.tensors.values())
    assert need.repacked == 0


def test_an_unknown_architecture_gets_the_most_that_its_layers_can_have(tmp_path: Path) -> None:
    """Every layer is thought to keep the keys and values of the whole context, and that is said."""
    model = tiny_models()["llama"]
    with open_gguf(model.write(tmp_path / "model.gguf")) as file:
        known = memory_need(file.metadata, file.tensors, 4096)
        renamed = {key.replace("llama.", "newest."): value for key, value in file.metadata.items()}
        unknown = memory_need(renamed | {"general.architecture": "newest"}, file.tensors, 4096)
    assert known is not None
    assert unknown is not None
    assert not unknown.is_known
    assert unknown.cache == known.cache
