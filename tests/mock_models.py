"""Headers of small models whose tensors call every rule by which llama-quantize chooses types.

They have no weights: `scripts/make_quantize_goldens.py` writes zeros in their place and asks the real llama-quantize
what it would choose; the tests ask ggufmerge.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ggufmerge.types import TensorType

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class MockTensor:
    shape: Shape
    type: TensorType


@dataclasses.dataclass(frozen=True)
class MockModel:
    metadata: Mapping[str, Any]
    tensors: Mapping[str, MockTensor]


def mock_models() -> dict[str, MockModel]:
    """The models by name; matrices are F16, vectors F32."""
    return {
        "dense": _model("llama", 24, heads=32, tensors=_top(), block=_dense()),
        "dense-one-layer": _model("llama", 1, heads=2, tensors=_top(), block=_dense()),
        "tied": _model("llama", 9, heads=8, kv=4, tensors=_top(tied=True), block=_dense()),
        "shared-values": _model("llama", 16, heads=8, kv=2, tensors=_top(), block=_dense()),
        "no-values-in-first-layer": _model("llama", 8, heads=8, kv=[0, 2] * 4, tensors=_top(), block=_dense()),
        "576-wide": _model("llama", 10, heads=9, kv=3, tensors=_top(576, tied=True), block=_dense(576, 1536)),
        "80-wide": _model("llama", 4, heads=4, tensors=_top(80), block=_dense(80, 192)),
        "64-and-128-wide": _model("llama", 4, heads=4, tensors=_top(64), block=_dense(64, 128)),
        "llama-70b": _model("llama", 80, heads=64, kv=8, tensors=_top(), block=_few()),
        "llama-65b": _model("llama", 80, heads=64, tensors=_top(), block=_few()),
        "llama-70b-with-mtp": _model("llama", 81, heads=64, kv=8, tensors=_top(), block=_few(), nextn_predict_layers=1),
        "qwen2-72b": _model("qwen2", 80, heads=8, tensors=_top(), block=_few()),
        "deci-70b": _model("deci", 80, heads=8, kv=[2, 8] * 40, tensors=_top(), block=_few()),
        "olmo-70b": _model("olmo", 80, heads=8, tensors=_top(), block=_few()),
        "jais2-70b": _model("jais2", 68, heads=8, tensors=_top(), block=_few()),
        "falcon": _model("falcon", 33, heads=8, kv=1, tensors=_top(), block=_few("attn_qkv")),
        "falcon-7b": _model("falcon", 32, heads=8, tensors=_top(), block=_few("attn_qkv")),
        "mla": _model("llama", 11, heads=8, kv=1, tensors=_top(), block=_few("attn_kv_b")),
        "mixtral": _model("llama", 16, heads=8, kv=2, experts=8, tensors=_top(), block=_experts(8)),
        "mixtral-equal-heads": _model("llama", 17, heads=8, experts=8, tensors=_top(), block=_experts(8)),
        "four-experts": _model("llama", 12, heads=8, kv=4, experts=4, tensors=_top(tied=True), block=_experts(4)),
        "two-experts": _model("llama", 12, heads=8, kv=4, experts=2, tensors=_top(), block=_experts(2)),
        "shared-and-split-experts": _model(
            "llama", 10, heads=8, kv=4, experts=3, tensors=_top(), block={**_experts(3), **_split_experts(3)}
        ),
        "falcon-with-experts": _model("falcon", 16, heads=8, experts=8, tensors=_top(), block=_experts(8)),
        "looped": _model("nanbeige", 8, heads=4, tensors=_top(), block=_dense(), num_loops=3),
        "switch": _model("graniteswitch", 15, heads=4, tensors=_top(), block=_dense(), **_GRANITE_SWITCH),
        "bailingmoe3": _model("bailingmoe3", 8, heads=4, experts=8, tensors=_top(), block=_BAILING, **_BAILING_KEYS),
        "odd-names": _model("llama", 8, heads=4, tensors={**_top(), **_ODD}, block=_ODD_BLOCK),
    }


def synthetic_imatrix(name: str, n: int) -> np.ndarray:
    """float32 [n]: an importance matrix row that depends on nothing but the tensor's name; values in 1/256 … 2."""
    hashes = (np.arange(n, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))) * np.uint64(2654435761)
    return ((hashes % np.uint64(512) + np.uint64(1)).astype(np.float64) / 256).astype(np.float32)


def _model(
    arch: str,
    layers: int,
    *,
    heads: int,
    kv: int | list[int] | None = None,
    experts: int = 0,
    tensors: Mapping[str, Shape],
    block: Mapping[str, Shape],
    **keys: Any,
) -> MockModel:
    shapes = {**tensors, **{f"blk.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}}
    values = {
        "block_count": layers,
        "context_length": 512,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": heads,
        "attention.head_count_kv": heads if kv is None else kv,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        **({"expert_count": experts, "expert_used_count": 2} if experts else {}),
        **keys,
    }
    return MockModel(
        {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in values.items()}},
        {n: MockTensor(s, TensorType.F16 if len(s) > 1 else TensorType.F32) for n, s in shapes.items()},
    )


def _top(n: int = 256, *, tied: bool = False) -> dict[str, Shape]:
    output = {} if tied else {"output.weight": (4, n)}
    return {"token_embd.weight": (4, n), "output_norm.weight": (n,), **output}


def _dense(n: int = 256, ff: int = 512) -> dict[str, Shape]:
    return {
        "attn_norm.weight": (n,),
        **{f"{name}.weight": (2, n) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")},
        "ffn_down.weight": (2, ff),
        "attn_q.bias": (2,),
    }


def _few(value: str = "attn_v") -> dict[str, Shape]:
    return {f"{value}.weight": (2, 256), "attn_output.weight": (2, 256), "ffn_down.weight": (2, 256)}


def _experts(n: int) -> dict[str, Shape]:
    dense = {name: shape for name, shape in _dense().items() if "ffn" not in name}
    shared = {"ffn_up_shexp.weight": (2, 256), "ffn_down_shexp.weight": (2, 256)}
    router = {"ffn_gate_inp.weight": (n, 256)}
    return {**dense, **router, **shared, **{f"ffn_{x}_exps.weight": (n, 2, 256) for x in ("gate", "up", "down")}}


def _split_experts(n: int) -> dict[str, Shape]:
    return {f"ffn_{x}.{i}.weight": (2, 256) for i in range(n) for x in ("gate", "up", "down")}


_GRANITE_SWITCH = {
    "logit_scale": 1.0,
    "adapters.count": 1,
    "adapters.lora_rank": 4,
    "adapters.token_ids_activate": [1],
    "adapters.token_ids_substitute": [2],
}

_BAILING = {**_experts(8), "attn_k_b.weight": (4, 2, 256), "attn_v_b.weight": (4, 2, 256)}
_BAILING_KEYS = {
    "attention.key_length_mla": 64,
    "attention.value_length_mla": 64,
    "attention.kv_lora_rank": 64,
    "ssm.conv_kernel": 4,
    "kda.head_dim": 64,
    "expert_feed_forward_length": 256,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "leading_dense_block_count": 1,
    "kda.gate_lower_bound": -5.0,
}
# Weights that stay as they are, weights that only look like them, and shapes on the edge of "two dimensions".
_ODD = {
    "per_layer_token_embd.weight": (4, 256),
    "per_layer_model_proj.weight": (4, 256),
    "position_embd.weight": (4, 256),
    "token_types.weight": (4, 256),
    "altup_proj.weight": (4, 256),
    "mm.a.code_embd.weight": (4, 256),
    "a.rvq.codebook.weight": (4, 256),
    "sam.pos_embd.weight": (4, 256),
    "sam.neck.0.weight": (4, 256),
    "sam.net_2.weight": (4, 256),
    "v.position_embd.weight": (4, 256),
    "v.patch_embd.weight": (4, 256),
    "v.patch_merger.weight": (4, 256),
    "v.blk.0.rel_pos_h.weight": (4, 256),
    "v.blk.0.attn_v.weight": (4, 256),
    "v.blk.0.ffn_down.weight": (4, 256),
    "cls.weight": (4, 256),
    "cls.output.weight": (4, 256),
    "token_embd_norm.weight": (4, 256),
    "dense_2.bias": (4, 256),
    "one_row.weight": (1, 256),
    "one_row_of_many.weight": (3, 1, 256),
    "one_value_rows.weight": (256, 1),
    "four_dimensions.weight": (2, 3, 2, 256),
}
_ODD_BLOCK = {
    **{name: shape for name, shape in _dense().items() if name != "attn_q.weight"},
    **{
        f"{name}.weight": (2, 256)
        for name in (
            "ffn_gate_inp", "ffn_gate_tid2eid", "laurel_l", "ssm_conv1d", "shortconv.conv", "shortconv.in_proj",
            "indexer.k_proj", "indexer.q_proj", "attn_rel_b", "attn_q_norm", "attn_kv_b", "attn_qkv", "attn_q_a",
            "hc_attn_fn", "ssm_f_a", "ffn_down_shexp", "cross_attn_v", "time_mix_key", "channel_mix_value",
            *(f"time_mix_{x}" for x in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
            "time_mix_decay_w1", "time_mix_decay_w2", "time_mix_lerp_fused", "time_mix_w3",
        )
    },
}  # fmt: skip
