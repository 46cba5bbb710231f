"""Tensor names by architecture, against the tables of llama.cpp's converter."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import gguf
import pytest
from gguf.tensor_mapping import TensorNameMap

from ggufmerge.architectures.names import architectures, known_words, listed, names_of, spellings
from ggufmerge.architectures.renamed import RENAMED
from ggufmerge.recipe.settings import matches

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "vendor" / "llama.cpp" / "names.json").read_text("utf-8"))
INSTALLED = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name in architectures()}
LAYERS = 2


def map_of(arch: gguf.MODEL_ARCH) -> dict[str, str]:
    """gguf-py's names of an architecture. Its constructor writes into a table of the class, which is put back here."""
    shared = dict(TensorNameMap.block_mappings_cfg)
    try:
        found = TensorNameMap(arch, LAYERS).mapping
    finally:
        TensorNameMap.block_mappings_cfg.clear()
        TensorNameMap.block_mappings_cfg.update(shared)
    return {spelling: name for spelling, (_, name) in found.items()}


def reached(architecture: str, names: set[str]) -> dict[str, set[str]]:
    """The tensors among `names` that each spelling reaches, those that converters split another name into left out."""
    found: dict[str, set[str]] = {}
    for name in names:
        layer = next((part for part in name.split(".") if part.isdigit()), "0")
        template = name.replace(f".{layer}.", ".{bid}.")
        split = set(RENAMED.get(architecture, {}).get(template, ())) - set(listed(architecture).get(template, ()))
        split = {spelling.replace("{bid}", layer) for spelling in split}
        for spelling in spellings(f"{name}.weight", architecture):
            stem = spelling.removesuffix(".weight")
            if stem not in split:
                found.setdefault(stem, set()).add(name)
    return found


@pytest.mark.parametrize("architecture", sorted(GOLDEN))
def test_the_table_says_what_gguf_says(architecture):
    """Of every architecture of llama.cpp v0.5.0: the same names for the same tensors."""
    digest = runpy.run_path(str(ROOT / "scripts" / "make_architecture_names.py"))["digest"]
    ours = {
        spelling.replace("{bid}", "0"): name.replace("{bid}", "0")
        for name, spelled in listed(architecture).items()
        for spelling in spelled
        if spelling != name
    }
    assert [len(ours), digest(ours)] == GOLDEN[architecture]


@pytest.mark.parametrize("architecture", sorted(GOLDEN))
def test_every_listed_name_reaches_its_tensor_and_no_other(architecture):
    """In each of two layers."""
    for layer in map(str, range(LAYERS)):
        tensors = {
            n.replace("{bid}", layer): s for n, s in listed(architecture).items() if "{bid}" in n or layer == "0"
        }
        found = reached(architecture, set(tensors))
        for spelling, name in {s.replace("{bid}", layer): n for n, spelled in tensors.items() for s in spelled}.items():
            assert found[spelling] == {name}, spelling


@pytest.mark.parametrize("architecture", sorted(INSTALLED))
def test_names_reach_the_tensor_that_the_installed_converter_makes(architecture):
    """For each Hugging Face name of gguf-py's own map, in each of two layers, that the table has, too: almost all."""
    mapping = map_of(INSTALLED[architecture])
    found = reached(architecture, set(mapping.values()))
    known = {spelling: name for spelling, name in mapping.items() if spelling in found}
    assert len(known) > 0.98 * len(mapping)
    for spelling, name in known.items():
        assert found[spelling] == {name}, spelling


def hit(pattern: str, architecture: str, names: str) -> list[str]:
    return [name for name in names.split() if matches(pattern, name, architecture)]


LLAMA = "token_embd.weight blk.3.attn_norm.weight blk.3.attn_q.weight blk.3.ffn_norm.weight blk.3.ffn_up.weight"


def test_the_words_of_other_families_do_not_mislead():
    """Others call norms `ln_mlp` or `pre_mlp_layernorm`, which a filter `mlp` does not mean in a Llama."""
    assert hit("mlp", "llama", LLAMA) == ["blk.3.ffn_up.weight"]
    assert hit("*mlp*", "llama", LLAMA) == ["blk.3.ffn_up.weight"]
    assert hit("*layers.[0-9].mlp*", "llama", LLAMA) == ["blk.3.ffn_up.weight"]
    assert hit("self_attn", "llama", LLAMA) == ["blk.3.attn_q.weight"]
    falcon = "blk.3.attn_norm.weight blk.3.attn_norm_2.weight blk.3.ffn_up.weight"
    assert hit("mlp", "falcon", falcon) == ["blk.3.attn_norm.weight", "blk.3.ffn_up.weight"]
    assert hit("self_attn", "falcon", falcon) == []


def test_the_words_of_other_families_reach_what_has_no_such_word_itself():
    """As gguf's map reads them."""
    assert hit("encoder.layer.3.attention.self.query", "llama", LLAMA) == ["blk.3.attn_q.weight"]


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("gemma3", ["blk.3.post_attention_norm.weight"]),
        ("gemma2", ["blk.3.post_attention_norm.weight"]),
        ("llama", ["blk.3.ffn_norm.weight"]),
        ("qwen3", ["blk.3.ffn_norm.weight"]),
        ("olmo2", ["blk.3.post_attention_norm.weight"]),
        ("no-such-architecture", ["blk.3.post_attention_norm.weight", "blk.3.ffn_norm.weight"]),
    ],
)
def test_post_attention_layernorm_is_the_architectures_own(architecture, names):
    """Gemma's stands after attention, Llama's before the feed-forward part; both where nobody knows."""
    tensors = "blk.3.attn_norm.weight blk.3.post_attention_norm.weight blk.3.ffn_norm.weight blk.3.ffn_up.weight"
    assert hit("post_attention_layernorm", architecture, tensors) == names


@pytest.mark.parametrize(
    ("architecture", "pattern", "names"),
    [
        ("mamba", "backbone.layers.3.mixer.A_log", "blk.3.ssm_a"),
        ("mamba", "mixer.D", "blk.3.ssm_d"),
        ("mamba", "mixer.dt_proj", "blk.3.ssm_dt.weight blk.3.ssm_dt.bias"),
        ("mamba2", "model.backbone.layers.3.mixer.A_log", "blk.3.ssm_a"),
        ("mamba2", "dt_bias", "blk.3.ssm_dt.bias"),
        ("jamba", "mamba.A_log", "blk.3.ssm_a"),
        ("qwen3next", "linear_attn.A_log", "blk.3.ssm_a"),
        ("qwen3next", "linear_attn.dt_bias", "blk.3.ssm_dt.bias"),
        ("qwen35", "self_attn", "blk.3.attn_q.weight"),
        ("qwen3next", "in_proj_qkvz", "blk.3.attn_qkv.weight blk.3.attn_gate.weight"),
        ("qwen35moe", "mlp.experts.gate_up_proj", "blk.3.ffn_gate_exps.weight blk.3.ffn_up_exps.weight"),
        ("deepseek2", "self_attn.kv_b_proj", "blk.3.attn_k_b.weight blk.3.attn_v_b.weight"),
        ("deepseek2", "mlp.gate.e_score_correction_bias", "blk.3.exp_probs_b.bias"),
        ("llama", "block_sparse_moe.experts.w1", "blk.3.ffn_gate_exps.weight"),
        ("qwen3next", "self_attn", "blk.3.attn_q.weight"),
        (
            "qwen3next",
            "linear_attn",
            "blk.3.attn_qkv.weight blk.3.attn_gate.weight blk.3.ssm_a blk.3.ssm_dt.weight blk.3.ssm_dt.bias",
        ),
        ("jamba", "feed_forward", "blk.3.ffn_gate_exps.weight blk.3.ffn_up_exps.weight blk.3.ffn_up.weight"),
        (
            "nemotron_h_moe",
            "mixer",
            "blk.3.attn_q.weight blk.3.ssm_a blk.3.ssm_d blk.3.ssm_dt.weight blk.3.ssm_dt.bias "
            "blk.3.ffn_up_exps.weight blk.3.ffn_up.weight blk.3.exp_probs_b.bias",
        ),
        ("internlm2", "attention.wqkv", "blk.3.attn_q.weight"),
        ("bert", "bert.encoder.layer.3.attention.self.query", "blk.3.attn_q.weight"),
        ("gpt2", "transformer.h.3.attn.c_attn", "blk.3.attn_qkv.weight"),
        ("t5", "encoder.block.3.layer.0.SelfAttention.q", "enc.blk.3.attn_q.weight"),
        ("t5", "decoder.block.3.layer.1.EncDecAttention.q", "dec.blk.3.cross_attn_q.weight"),
        ("gemma2", "lm_head", "output.weight"),
        ("gemma3", "model.language_model.layers.3.self_attn.q_proj", "blk.3.attn_q.weight"),
        ("qwen2vl", "language_model.model.layers.3.mlp.up_proj", "blk.3.ffn_up.weight"),
        ("llama", "model.text_model.layers.3.mlp.up_proj", "blk.3.ffn_up.weight"),
    ],
)
def test_names_that_converters_rename(architecture, pattern, names):
    """What they split, join or call otherwise before they look it up is reached by the name in the checkpoint."""
    tensors = (
        "token_embd.weight output.weight output_norm.weight blk.3.attn_norm.weight blk.3.attn_q.weight "
        "blk.3.attn_qkv.weight blk.3.attn_gate.weight blk.3.attn_k_b.weight blk.3.attn_v_b.weight blk.3.ssm_a "
        "blk.3.ssm_d blk.3.ssm_dt.weight blk.3.ssm_dt.bias blk.3.ffn_gate_exps.weight blk.3.ffn_up_exps.weight "
        "blk.3.ffn_up.weight blk.3.exp_probs_b.bias enc.blk.3.attn_q.weight dec.blk.3.attn_q.weight "
        "dec.blk.3.cross_attn_q.weight"
    )
    own = (
        {name.replace("{bid}", "3") for name in listed(architecture)} | set(RENAMED.get(architecture, {})) | {"output"}
    )
    tensors = " ".join(
        n for n in tensors.split() if n.removesuffix(".weight").removesuffix(".bias") in own or n in names
    )
    assert hit(pattern, architecture, tensors) == names.split()


@pytest.mark.parametrize(
    ("gguf_name", "hugging_face"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.11.attn_q.bias", "model.layers.11.self_attn.q_proj.bias"),
        ("blk.11.ffn_norm.weight", "model.layers.11.post_attention_layernorm.weight"),
    ],
)
def test_the_first_names_are_those_that_people_know(gguf_name, hugging_face):
    """GGUF's, then the one of the checkpoint, with layer and suffix."""
    assert spellings(gguf_name, "llama")[:2] == (gguf_name, hugging_face)


@pytest.mark.parametrize("name", ["weird", "", "blk.x.attn_q.weight", "blk.0.weird.weight"])
def test_other_names_have_one_spelling(name):
    """Tensors that the table does not list, and what is no tensor name."""
    assert spellings(name, "llama") == (name,)


def test_unknown_architectures_have_the_names_of_all():
    """And say that they are not known."""
    assert not names_of("no-such-architecture").is_known
    both = {"model.layers.0.mlp.down_proj.weight", "transformer.h.0.mlp.c_proj.weight"}
    assert both <= set(spellings("blk.0.ffn_down.weight", "no-such-architecture"))


@pytest.mark.parametrize(
    "part", ["mlp.experts", "model.layers.0.self_attn.q_proj", "lm_head", "ffn_gate_exps", ".bias", "W_pack"]
)
def test_known_words_hold_what_other_models_have(part):
    """A filter for experts may stand in a recipe for a dense model, too."""
    assert any(part in word for word in known_words())


@pytest.mark.parametrize(
    "part", ["layers.31.", "blk.31.", "self_atn", "q_porj", "expert.0", "modelnorm", "mpl", "atn", "mlpp"]
)
def test_known_words_hold_no_typos_and_no_layers(part):
    """A filter for a layer that is not there is a mistake."""
    assert not any(part in word for word in known_words())


def test_the_name_of_few_architectures_is_not_everybodys() -> None:
    """LFM2's self_attn.out_proj: in Qwen 3 Next out_proj is in linear_attn, and o_proj in self_attn."""
    tensors = ("blk.0.attn_output.weight", "blk.0.ssm_out.weight")
    assert [matches("out_proj", name, "qwen3next") for name in tensors] == [False, True]
    assert matches("self_attn.out_proj", "blk.0.attn_output.weight", "lfm2")
