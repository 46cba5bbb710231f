"""Tensor names in both vocabularies, against the tables of llama.cpp's converter."""

from __future__ import annotations

import gguf
import pytest
from gguf.tensor_mapping import TensorNameMap

from ggufmerge.recipe.names import known_words, layer_of, spellings, with_layer


def _map_of(arch: gguf.MODEL_ARCH) -> TensorNameMap:
    """gguf-py's names of an architecture. Its constructor writes into a table of the class, which is put back here."""
    shared = dict(TensorNameMap.block_mappings_cfg)
    try:
        return TensorNameMap(arch, 4)
    finally:
        TensorNameMap.block_mappings_cfg.clear()
        TensorNameMap.block_mappings_cfg.update(shared)


MAPS = {arch: _map_of(arch) for arch in gguf.MODEL_ARCH}
HUGGING_FACE = sorted(name for word in known_words() for name in spellings(word)[1:] if word.endswith(".weight"))
ARCH = gguf.MODEL_ARCH


@pytest.mark.parametrize("word", sorted(w for w in known_words() if w.startswith("blk.") and w.endswith(".weight")))
def test_spellings_are_what_the_converter_reads(word):
    """For every Hugging Face name that we give a tensor, some architecture's converter writes that tensor from it."""
    for name in spellings(word)[1:]:
        written = {tensor_map.get_name(name, try_suffixes=(".weight",)) for tensor_map in MAPS.values()}
        assert word in written, name


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (ARCH.LLAMA, ["input_layernorm", "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]),
        (ARCH.LLAMA, ["post_attention_layernorm", "block_sparse_moe.gate", "block_sparse_moe.experts.w1"]),
        (ARCH.QWEN2, ["self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "post_attention_layernorm"]),
        (ARCH.QWEN3, ["self_attn.q_norm", "self_attn.k_norm"]),
        (ARCH.QWEN2MOE, ["mlp.gate", "mlp.shared_expert_gate", "mlp.shared_expert.up_proj", "mlp.experts.down_proj"]),
        (ARCH.QWEN3MOE, ["mlp.gate", "mlp.experts.gate_proj", "mlp.experts.up_proj"]),
        (ARCH.GEMMA2, ["pre_feedforward_layernorm", "post_feedforward_layernorm", "input_layernorm"]),
        (ARCH.GEMMA3, ["self_attn.q_norm", "post_feedforward_layernorm"]),
        (ARCH.PHI3, ["self_attn.qkv_proj", "mlp.gate_up_proj"]),
        (ARCH.DEEPSEEK2, ["self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "mlp.shared_experts.down_proj"]),
    ],
)
def test_families_that_people_merge_are_covered(arch, names):
    """The tensor that the converter of this architecture makes of a name is found by that name."""
    for name in names:
        source = f"model.layers.3.{name}.weight"
        written = MAPS[arch].get_name(source, try_suffixes=(".weight",))
        assert written is not None
        assert source in spellings(written), written


@pytest.mark.parametrize(
    ("gguf_name", "hugging_face"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.11.attn_q.bias", "model.layers.11.self_attn.q_proj.bias"),
    ],
)
def test_layer_and_suffix_are_kept(gguf_name, hugging_face):
    """Whatever the name: layer number, weight or bias."""
    assert spellings(gguf_name) == (gguf_name, hugging_face)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ssm_a", "weird", "", "blk.x.attn_q.weight"])
def test_other_names_have_one_spelling(name):
    """Tensors that the table does not list, and what is no tensor name."""
    assert spellings(name) == (name,)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blk.0.attn_q.weight", 0),
        ("blk.107.ffn_down_exps.weight", 107),
        ("blk.3.ssm_a", 3),
        ("token_embd.weight", None),
        ("enc.blk.3.attn_q.weight", None),
        ("blk.x.attn_q.weight", None),
    ],
)
def test_layers(name, layer):
    """A tensor changes its layer and nothing else; one outside the blocks stays what it is."""
    assert layer_of(name) == layer
    moved = with_layer(name, 42)
    if layer is None:
        assert moved == name
    else:
        assert layer_of(moved) == 42
        assert with_layer(moved, layer) == name


@pytest.mark.parametrize(
    "part", ["mlp.experts", "model.layers.0.self_attn.q_proj", "lm_head", "ffn_gate_exps", ".bias"]
)
def test_known_words_hold_what_other_models_have(part):
    """A filter for experts may stand in a recipe for a dense model, too."""
    assert any(part in word for word in known_words())


@pytest.mark.parametrize("part", ["layers.31.", "blk.31.", "self_atn", "q_porj", "expert.0"])
def test_known_words_hold_no_typos_and_no_layers(part):
    """A filter for a layer that is not there is a mistake."""
    assert not any(part in word for word in known_words())
