"""Facts as commands give them with `--json`, of models of any size: figures that follow from the place of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]

KINDS = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm", "ffn_norm",
    "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp",
    "ffn_down_shexp", "ssm_a", "ssm_b", "post_attention_norm", "post_ffw_norm", "layer_output_scale",
)  # fmt: skip
TYPES = ("Q4_K", "Q6_K", "F32")
EVAL = "eval"
COMMANDS = ("build", "diff", EVAL, "quantize")


def names(layers: int, kinds: int, outside: Sequence[str] = ("token_embd.weight", "output_norm.weight")) -> list[str]:
    """The tensors of a model of so many layers, with so many kinds of tensors in each."""
    return [*outside, *(f"blk.{layer}.{kind}.weight" for layer in range(layers) for kind in KINDS[:kinds])]


def facts(command: str, tensors: Sequence[str]) -> Facts:
    """Those of one of COMMANDS, of a model with these tensors."""
    made = {"build": _build, "diff": diff, EVAL: lambda _: evaluation(), "quantize": _quantize}
    return {"schema": 1, "command": command, "version": "0.1.0", **made[command](tensors)}


def _build(tensors: Sequence[str]) -> Facts:
    kept = {"type": "Q4_K", "tensors": 3, "stochastic": 0, "share": 0.5, "noise": 0.3, "uncertainty": 0.0, "wider": {}}
    parent = {"name": "Tune", "adapters": [], "type": "F16", "nbytes": 10**9, "settings": {"weight": [0.3, 0.7]}}
    return {
        **_written(tensors),
        "merged": len(tensors), "converted": 0, "copied": 0, "resumed": 0, "resumption": "",
        "method": "ties", "files": ["merged.gguf"], "notes": [{"name": tensors[0], "note": "a share of 0.50 is left"}],
        "parents": [{"label": f"{x}.gguf", "path": f"/models/{x}.gguf", **parent} for x in ("one", "two")],
        "settings": {"normalize": [True]}, "sources": [{"path": "/models/one.gguf", "sha256": "0" * 64}],
        "survival": 0.5, "kept": [{**kept, "sentence": "Q4_K: 50 % of the change survived (3 tensors)"}],
        "recipe": "merge_method: ties\n", "warnings": ["Q4_K: 50 % of the change is lost: --type Q8_0 keeps 99 %"],
    }  # fmt: skip


def _quantize(tensors: Sequence[str]) -> Facts:
    parent = {"label": "one.gguf", "name": "One", "path": "/models/one.gguf", "adapters": [], "type": "F16"}
    more = {"bits_per_weight": 4.85, "imatrix": ["text.imatrix"], "warnings": []}
    return {**_written(tensors), **more, "parents": [{**parent, "nbytes": 10**9, "settings": {}}]}


def _written(tensors: Sequence[str]) -> Facts:
    """What is told of a file that was written."""
    told = [
        {
            "name": name, "shape": [256, 256], "type": TYPES[i % 3], "why": f"rule {i % 3}", "nbytes": 36864,
            "action": "copy" if i % 3 == 2 else "convert", "decisions": [f"decided {i % 2}"] if i < 6 else [],
            "survival": None if i % 3 == 2 else i / len(tensors), "share": i / len(tensors), "noise": 0.01 * i,
            "uncertainty": 0.0, "relative_error": 0.0 if i % 3 == 2 else 0.01 + 1e-4 * i, "bits_per_weight": 4.5,
        }
        for i, name in enumerate(tensors)
    ]  # fmt: skip
    return {
        "output": "merged.gguf", "file_type": "Q4_K_M", "parameters": 65536 * len(tensors), "architecture": "llama",
        "nbytes": 36864 * len(tensors), "seconds": 12.3, "tensors": told,
    }  # fmt: skip


def diff(tensors: Sequence[str], tunes: int = 2, *, base: bool = True) -> Facts:
    """Those of `diff` of so many models, beside their base or without one."""

    def beside(i: int) -> Facts:
        seen = {"seen": 0.05, "noise": 0.01, "error": 0.001, "identical_blocks": 0.1}
        if i % 5 == 4:
            return {**seen, "change": None, "limit": 0.02, "signal_to_noise": None}
        return {**seen, "change": 0.01 + 1e-5 * i, "limit": None, "signal_to_noise": 1.0 + 1e-3 * i}

    def signal(i: int) -> Facts:
        related = [[1.0 if a == b else 0.3 - 0.01 * (i % 60) for a in range(tunes)] for b in range(tunes)]
        changes = [beside(i + k) for k in range(tunes)]
        if not base:
            return {"difference": beside(i), "changes": [], "cosines": [], "same_signs": []}
        return {"difference": beside(i), "changes": changes, "cosines": related, "same_signs": related}

    layers = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    return {
        "identical": False, "first": "one.gguf", "second": "two.gguf", "others": ["more.gguf"] * (tunes - 2),
        "base": "base.gguf" if base else None, "rounded": True, "only_first": [], "only_second": ["extra.weight"],
        "left_out": [], "metadata": [],
        "summary": ["in sum: B differs from A by 5 % of A's size", "the two changes are unrelated"],
        "total": {"values": 10**9, "difference": {"relative": 0.1, "changed": 0.5}, "signal": signal(0)},
        "layers": {layer: {"signal": signal(int(layer))} for layer in layers},
        "tensors": [{"name": name, "signal": signal(i)} for i, name in enumerate(tensors)],
    }  # fmt: skip


def evaluation() -> Facts:
    """Those of `eval` of a merge, its base and a parent, on three texts and a question."""
    models, texts = ["base.gguf", "tune.gguf", "merged.gguf"], ["english", "/texts/mine.txt", "python"]
    told = {"gain": 0.1, "gain_error": 0.04, "against_base": "better", "among_parents": "best", "kept": 0.8}
    more = {"best_parent": "tune.gguf", "best_parent_gain": 0.12, "kept_error": 0.1}
    return {
        "context": 256, "reference": None, "missing": {"merged.gguf": ["other.gguf: it is not here"]},
        "models": [{"model": m, "role": r} for m, r in zip(models, ("base", "parent", "model"), strict=True)],
        "scores": [
            {"model": m, "text": t, "tokens": 1000, "nll": 3 - 0.1 * i + 0.2 * k, "perplexity": 20.0 - i,
             "perplexity_error": 1.5}
            for i, m in enumerate(models)
            for k, t in enumerate(texts)
        ],
        "verdicts": [
            {"model": "merged.gguf", "sentence": "better than its base on all 3 texts; keeps 80 % of the gain",
             "nonsense": False, "base": "base.gguf", "parents": ["tune.gguf"],
             "texts": [{"text": t, **told, **more} for t in texts]}
        ],
        "answers": [{"model": m, "prompt": "Why is the sky blue?", "answer": "Light.\nScattered."} for m in models],
    }  # fmt: skip
