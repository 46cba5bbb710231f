"""Write what tests/engine/test_mergekit_recipes.py compares with: the models that mergekit-yaml makes of whole recipes.

Needs an environment of its own (mergekit is LGPL-3.0 and never a dependency of this project):

    python -m venv mergekit-env
    mergekit-env/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    mergekit-env/bin/pip install mergekit==0.1.5 torch==2.13.0 transformers==5.23.0
    mergekit-env/bin/python scripts/make_recipe_goldens.py vendor/recipes

The recipes are the .yaml files of that folder. The models are tiny Llama checkpoints, drawn from fixed seeds, in
folders named like the GGUF files that the tests make of them, so that both programs read a recipe to the letter.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.numpy import save_file

HIDDEN, FF, HEADS, KV_HEADS, VOCAB = 16, 12, 4, 2, 48
MERGES = (
    *("t h", "th e", "Ġ the", "Ġ a", "i n", "e r", "o n", "Ġ o", "Ġo f", "a n", "Ġa n", "Ġan d", "o u", "e d", "e n"),
    *("r e", "in g", "a t"),
)
MODELS: dict[str, dict[str, object]] = {
    "base": {},
    "chat": {"seed": 1, "strength": 0.3},
    "code": {"seed": 2, "strength": 0.1},
    "near": {"seed": 3, "strength": 0.01},
    "deep": {"seed": 4, "strength": 0.2, "layers": 6},
    "tied": {"seed": 5, "strength": 0.2, "tied": True},
    "tools": {"seed": 6, "strength": 0.2, "added": ["<|call|>", "<|result|>", "<|pad|>"]},
    "roles": {"seed": 7, "strength": 0.2, "added": ["<|user|>", "<|pad|>"]},
}
PROMPT = [0, 5, 31, 12, 40, 7, 22, 36]  # tokens that all models have


def write_model(
    folder: Path,
    *,
    seed: int = 0,
    strength: float = 0.0,
    layers: int = 4,
    tied: bool = False,
    added: list[str] | None = None,
) -> None:
    """A Llama checkpoint with its tokenizer. seed, strength: how it differs from the base."""
    vocab = VOCAB + len(added or [])
    weights = {}
    for name, shape in shapes(layers, vocab).items():
        if name == "lm_head.weight" and tied:
            continue
        noise = normal(name, shape, 0)
        if seed:  # half of what fine-tunes change, they change alike
            noise = noise + np.float32(strength / 2) * (normal(name, shape, 100) + normal(name, shape, seed))
        weights[name] = noise / np.sqrt(np.float32(HIDDEN)) if len(shape) > 1 else 1 + np.float32(0.2) * noise
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FF,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(added or [])))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def shapes(layers: int, vocab: int) -> dict[str, tuple[int, ...]]:
    kv = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for i in range(layers):
        layer = {
            "input_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (kv, HIDDEN),
            "self_attn.v_proj": (kv, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate_proj": (FF, HIDDEN),
            "mlp.up_proj": (FF, HIDDEN),
            "mlp.down_proj": (HIDDEN, FF),
        }
        found |= {f"model.layers.{i}.{part}.weight": shape for part, shape in layer.items()}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocab, HIDDEN)}


def normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)


def tokenizer(added: list[str]) -> dict[str, object]:
    """A tokenizer.json: byte-level BPE over lower-case letters."""
    special = ["<s>", "</s>"]
    tokens = [*special, "Ġ", *map(chr, range(ord("a"), ord("z") + 1)), *(m.replace(" ", "") for m in MERGES)]
    tokens.append("!")
    assert len(tokens) == len(set(tokens)) == VOCAB, len(tokens)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags} for i, token in [*enumerate(special), *enumerate(added, VOCAB)]
        ],
        "normalizer": None,
        "pre_tokenizer": bytes_,
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": list(MERGES),
        },
    }


def tokens_of(folder: Path) -> list[str]:
    """The tokens of a checkpoint in the order of their ids."""
    vocab = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def logits(folder: Path) -> np.ndarray:
    """float32 [tokens of the prompt, vocabulary]: what the model computes in transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


def place_of(reference: ModelReference) -> int:
    return list(MODELS).index(Path(reference.model.path).stem)


def main(vendor: Path) -> None:
    # mergekit takes models in the order of their hashes, which differs from run to run, and adds tokens in that order
    unordered = MergeConfiguration.referenced_models
    MergeConfiguration.referenced_models = lambda self: sorted(unordered(self), key=place_of)
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in sorted(vendor.glob("*.yaml"))}
    tokens, computed = {}, {}

    def keep(checkpoint: Path, kept: Path) -> None:
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(checkpoint / "model.safetensors", kept)
        key = kept.relative_to(vendor).with_suffix("").as_posix()
        tokens[key], computed[key] = tokens_of(checkpoint), logits(checkpoint)

    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for name, options in MODELS.items():
            write_model(Path(f"{name}.gguf"), **options)
            keep(Path(f"{name}.gguf"), vendor / "models" / f"{name}.safetensors")
        for name, text in recipes.items():
            Path(f"{name}.yaml").write_text(text, encoding="utf-8")
            mergekit_yaml.main([f"{name}.yaml", name, "--quiet", "--no-write-model-card"], standalone_mode=False)
            keep(Path(name), vendor / "results" / f"{name}.safetensors")
        os.chdir(vendor)
    np.savez_compressed(vendor / "logits.npz", prompt=np.array(PROMPT), **computed)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in tokens.items())
    (vendor / "tokens.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
