"""Models whose output head is their embedding, and adapters that change one of the two or both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import ggufmerge
from ggufmerge.engine.bake import plan_bake
from ggufmerge.errors import PlanError
from ggufmerge.evaluation import LlamaModel
from ggufmerge.files import open_gguf
from ggufmerge.places.opening import open_source
from ggufmerge.planning.planner import make_plan
from ggufmerge.recipe import ModelReference, load_recipe
from ggufmerge.running.run import run
from tests.formats.test_peft import Q, halves, write_peft
from tests.tiny import write_tiny_llama, write_tiny_lora

EMBED, HEAD = "token_embd.weight", "output.weight"
TOKENS = np.random.default_rng(0).integers(3, 300, 24)
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied base, the same with a head of its own, and adapters in GGUF form for either matrix and for both."""
    folder = tmp_path_factory.mktemp("tied")
    weights = write_tiny_llama(folder / "tied.gguf", layers=1, tied=True)
    write_tiny_llama(folder / "tied-Q8_0.gguf", layers=1, tied=True, type="Q8_0")
    untied = weights | {HEAD: weights[EMBED]}
    write_tiny_llama(folder / "untied.gguf", layers=1, replace={HEAD: weights[EMBED]})
    write_tiny_lora(folder / "embed.gguf", untied, targets=(EMBED,), strength=1)
    write_tiny_lora(folder / "head.gguf", untied, targets=(HEAD,), strength=1)
    write_tiny_lora(folder / "both.gguf", untied, targets=(EMBED, HEAD), strength=1)
    write_tiny_lora(folder / "layers.gguf", untied, targets=("*attn_q.weight",), strength=1)
    return folder


def values(path: Path, name: str) -> Floats:
    with open_gguf(path) as file:
        return file.tensors[name].dequantize()


def names(path: Path) -> set[str]:
    with open_gguf(path) as file:
        return set(file.tensors)


def baked(folder: Path, base: str, *adapters: Path | str, out: str = "out.gguf", **options: Any) -> Path:
    plan, opened = plan_bake(folder / base, [folder / a for a in adapters], **options)
    with opened:
        run(plan, opened, folder / out, overwrite=True)
    return folder / out


def logits(path: Path) -> Floats:
    with LlamaModel(path, context=64, threads=1) as model:
        return model.logits(TOKENS)


@pytest.mark.parametrize("adapter", ["embed.gguf", "head.gguf", "both.gguf"])
def test_the_two_part_as_if_the_base_had_a_head_of_its_own(folder: Path, adapter: str) -> None:
    """All tensors are those of the untied twin with the adapter, and llama.cpp computes the same with both."""
    ours = baked(folder, "tied.gguf", adapter)
    theirs = baked(folder, "untied.gguf", adapter, out="theirs.gguf")
    assert names(ours) == names(theirs)
    for name in names(ours):
        np.testing.assert_array_equal(values(ours, name), values(theirs, name))
    np.testing.assert_array_equal(logits(ours), logits(theirs))
    assert np.abs(logits(ours) - logits(folder / "tied.gguf")).max() > 1


def test_the_matrix_that_no_adapter_changes_keeps_its_bytes(folder: Path) -> None:
    """The head of a quantized base is a copy of the embedding's blocks."""
    ours = baked(folder, "tied-Q8_0.gguf", "embed.gguf")
    with open_gguf(ours) as file, open_gguf(folder / "tied-Q8_0.gguf") as base:
        assert file.tensors[HEAD].raw.tobytes() == base.tensors[EMBED].raw.tobytes()
        assert file.tensors[EMBED].raw.tobytes() != base.tensors[EMBED].raw.tobytes()


def test_the_plan_says_how_much_the_file_grows(folder: Path) -> None:
    """The head's bytes in the type it is written in."""
    for out_type, number in ((None, "81.9 kB"), ("Q8_0", "21.8 kB")):
        plan, opened = plan_bake(folder / "tied.gguf", [folder / "embed.gguf"], out_type=out_type)
        opened.close()
        [head] = [t for t in plan.tensors if t.name == HEAD]
        assert f"the file grows by {number}" in " ".join(head.decisions)


@pytest.mark.parametrize("adapter", ["layers.gguf", "embed.gguf=0", "zero.gguf"])
def test_a_tied_model_stays_tied_when_neither_is_changed(folder: Path, adapter: str) -> None:
    """Also with an adapter of the embedding that changes nothing of it."""
    weights = {EMBED: values(folder / "tied.gguf", EMBED)}
    write_tiny_lora(folder / "zero.gguf", weights, targets=(EMBED,), rows=-320)
    source = open_source(ModelReference.parse(f"tied.gguf+layers.gguf+{adapter}"), folder)
    assert HEAD not in source.tensors
    assert not source.changed_by_adapter(EMBED)


def test_a_merge_of_tied_models_has_a_head_where_an_adapter_parts_one(folder: Path) -> None:
    """The others give their embedding in its place: the mean of a model and the same with an adapter has half of it."""
    models = (f"{folder}/tied.gguf", f"{folder}/tied.gguf+{folder}/embed.gguf")
    text = "merge_method: linear\nmodels:\n"
    text += "".join(f'- {{model: "{model}", parameters: {{weight: 1}}}}\n' for model in models)
    ggufmerge.build(load_recipe(text), folder / "merged.gguf", overwrite=True)
    base, alone = values(folder / "tied.gguf", EMBED), values(baked(folder, "tied.gguf", "embed.gguf"), EMBED)
    np.testing.assert_allclose(values(folder / "merged.gguf", EMBED), (base + alone) / 2, atol=1e-6)
    np.testing.assert_array_equal(values(folder / "merged.gguf", HEAD), base)


def peft(folder: Path, *, embed: bool = True, head: bool = False, **config: Any) -> Path:
    """A PEFT folder with changes of the embedding, the head, or both."""
    random = np.random.default_rng(5)
    tensors: dict[str, Floats] = {}
    if embed:
        module = "base_model.model.model.embed_tokens"
        tensors[f"{module}.lora_embedding_A"] = random.standard_normal((4, 320), np.float32)
        tensors[f"{module}.lora_embedding_B"] = random.standard_normal((64, 4), np.float32)
    if head:
        tensors |= halves("base_model.model.lm_head", 320, 64)
    return write_peft(folder, tensors, **config)


@pytest.mark.parametrize(("embed", "head"), [(True, False), (False, True), (True, True)])
def test_peft_adapters_part_them_as_well(folder: Path, tmp_path: Path, embed: bool, head: bool) -> None:
    """As PEFT does in training: the other one goes on with the frozen matrix."""
    adapter = peft(tmp_path / "peft", embed=embed, head=head)
    ours = baked(folder, "tied.gguf", adapter)
    theirs = baked(folder, "untied.gguf", adapter, out="theirs.gguf")
    base = values(folder / "tied.gguf", EMBED)
    for name, changed in ((EMBED, embed), (HEAD, head)):
        np.testing.assert_array_equal(values(ours, name), values(theirs, name))
        assert (values(ours, name) == base).all() == (not changed)


def test_ensure_weight_tying_keeps_them_one(folder: Path, tmp_path: Path) -> None:
    """PEFT saves the halves under both names, transposed: they are one change of one matrix."""
    alone = peft(tmp_path / "alone", ensure_weight_tying=True)
    one = baked(folder, "tied.gguf", alone)
    assert HEAD not in names(one)
    parted = baked(folder, "tied.gguf", peft(tmp_path / "parted"), out="theirs.gguf")
    np.testing.assert_array_equal(values(one, EMBED), values(parted, EMBED))
    twice = peft(tmp_path / "twice", head=True, ensure_weight_tying=True)
    np.testing.assert_array_equal(values(baked(folder, "tied.gguf", twice), EMBED), values(parted, EMBED))
    assert HEAD not in names(folder / "out.gguf")


def test_a_change_of_both_beside_one_that_parts_them_is_in_both(folder: Path, tmp_path: Path) -> None:
    """Two adapters: one of the tied matrix, one of the head."""
    tied = peft(tmp_path / "tied", ensure_weight_tying=True)
    ours = baked(folder, "tied.gguf", tied, "head.gguf")
    shared = values(baked(folder, "tied.gguf", tied, out="theirs.gguf"), EMBED)
    head = values(baked(folder, "tied.gguf", "head.gguf", out="theirs.gguf"), HEAD)
    np.testing.assert_array_equal(values(ours, EMBED), shared)
    base = values(folder / "tied.gguf", EMBED)
    np.testing.assert_allclose(values(ours, HEAD) - base, (shared - base) + (head - base), rtol=0, atol=1e-4)


def test_what_was_extracted_from_a_tied_model_is_a_change_of_both(folder: Path) -> None:
    """So baking it into the base gives the tune back, tied."""
    base = values(folder / "tied.gguf", EMBED)
    change = np.outer(np.linspace(-1, 1, 320), np.linspace(0, 1, 64)).astype(np.float32)
    write_tiny_llama(folder / "tune.gguf", layers=1, tied=True, replace={EMBED: base + change})
    ggufmerge.extract_lora(
        folder / "tune.gguf", folder / "tied.gguf", folder / "extracted.gguf", rank=2, embeddings=True, overwrite=True
    )
    ours = baked(folder, "tied.gguf", "extracted.gguf")
    assert names(ours) == names(folder / "tune.gguf")
    np.testing.assert_allclose(values(ours, EMBED), base + change, atol=1e-4)


def test_a_head_that_a_tune_has_of_its_own_is_extracted(folder: Path) -> None:
    """Its difference is that to the matrix that the base uses in its place; baking gives the tune back."""
    base = values(folder / "tied.gguf", EMBED)
    change = np.outer(np.linspace(-1, 1, 320), np.linspace(0, 1, 64)).astype(np.float32)
    write_tiny_llama(folder / "tune.gguf", layers=1, replace={EMBED: base, HEAD: base + change})
    ggufmerge.extract_lora(
        folder / "tune.gguf", folder / "tied.gguf", folder / "extracted.gguf", rank=2, overwrite=True
    )
    assert names(folder / "extracted.gguf") == {f"{HEAD}.lora_a", f"{HEAD}.lora_b"}
    ours = baked(folder, "tied.gguf", "extracted.gguf")
    np.testing.assert_array_equal(values(ours, EMBED), base)
    np.testing.assert_allclose(values(ours, HEAD), base + change, atol=1e-4)


def write_model(path: Path, architecture: str, **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32(f"{architecture}.block_count", 1)
    for key, value in metadata.items():
        writer.add_bool(f"{architecture}.{key.replace('_', '.')}", value)
    for name, shape in ((EMBED, (320, 64)), ("blk.0.attn_q.weight", (64, 64)), ("output_norm.weight", (64,))):
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "command-r", "cohere2"])
@pytest.mark.parametrize("head", [False, True])
def test_where_llama_cpp_reads_no_head_they_cannot_part(tmp_path: Path, architecture: str, head: bool) -> None:
    """The line says so, and how to change both; with that done it is baked."""
    base = write_model(tmp_path / "base.gguf", architecture)
    adapter = peft(tmp_path / "peft", embed=not head, head=head)
    with pytest.raises(PlanError, match=f"no other head from files of architecture '{architecture}'.*tying") as caught:
        open_source(ModelReference.parse({"model": str(base), "lora": [str(adapter)]}))
    assert "\n" not in str(caught.value)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"ensure_weight_tying": True}))
    source = open_source(ModelReference.parse({"model": str(base), "lora": [str(adapter)]}))
    assert source.changed_by_adapter(EMBED)
    assert HEAD not in source.tensors


def test_models_that_only_encode_get_no_head(tmp_path: Path) -> None:
    """They have no output, so there is nothing to part from."""
    base = write_model(tmp_path / "base.gguf", "qwen3", attention_causal=False)
    source = open_source(ModelReference.parse({"model": str(base), "lora": [str(peft(tmp_path / "peft"))]}))
    assert source.changed_by_adapter(EMBED)
    assert HEAD not in source.tensors


def test_an_untied_base_has_nothing_to_part(folder: Path, tmp_path: Path) -> None:
    """The adapter is for the matrix that it names, also if it was trained on a tied model."""
    adapter = peft(tmp_path / "peft", ensure_weight_tying=True)
    source = open_source(ModelReference.parse({"model": str(folder / "untied.gguf"), "lora": [str(adapter)]}))
    assert source.changed_by_adapter(EMBED)
    assert not source.changed_by_adapter(HEAD)
    assert not source.parted


def test_in_another_vocabulary_the_two_part_as_well(tmp_path: Path) -> None:
    """Rows of the embedding come with the change, those of the head without, and trained rows go with their tokens."""
    words = ("the", "and", "of", "to")
    write_tiny_llama(tmp_path / "a.gguf", layers=1, tied=True, words=words)
    write_tiny_llama(tmp_path / "b.gguf", layers=1, tied=True, words=words[::-1], seed=1)
    tensors = halves(Q, 64, 64)
    random = np.random.default_rng(5)
    module = "base_model.model.model.embed_tokens"
    tensors[f"{module}.lora_embedding_A"] = random.standard_normal((4, 320), np.float32)
    tensors[f"{module}.lora_embedding_B"] = random.standard_normal((64, 4), np.float32)
    tensors["base_model.model.lm_head.token_adapter.trainable_tokens_delta"] = np.ones((2, 64), np.float32)
    numbers = {"lm_head": [4, 262]}
    adapter = write_peft(tmp_path / "peft", tensors, trainable_token_indices=numbers)
    text = f"merge_method: passthrough\nmodels: [{{model: {{model: {tmp_path}/b.gguf, lora: {adapter}}}}}]\n"
    text += f"tokenizer_source: {tmp_path}/a.gguf\n"
    plan, opened = make_plan(load_recipe(text))
    with opened:
        run(plan, opened, tmp_path / "out.gguf")
    alone = open_source(ModelReference.parse({"model": str(tmp_path / "b.gguf"), "lora": [str(adapter)]}))
    with open_gguf(tmp_path / "a.gguf") as a, open_gguf(tmp_path / "b.gguf") as b:
        theirs = b.metadata["tokenizer.ggml.tokens"]
        order = [theirs.index(token) for token in a.metadata["tokenizer.ggml.tokens"]]
    assert order != sorted(order)
    for name in (EMBED, HEAD):
        rows = np.empty((320, 64), np.float32)
        alone.open_tensor(name).read(0, rows)
        np.testing.assert_array_equal(values(tmp_path / "out.gguf", name), rows[order])
    assert (values(tmp_path / "out.gguf", HEAD) == 1).all(axis=1).sum() == 2
