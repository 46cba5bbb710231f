#!/usr/bin/env python3
"""Make ggufmerge/architectures/tensors.json: which tensors llama.cpp reads of each architecture, and which it needs.

    python scripts/make_architecture_tensors.py LLAMA_CPP     # a checkout of llama.cpp

`read` comes from the names that `load_arch_tensors` of each model asks for (src/models/*.cpp, src/llama-arch.cpp,
src/llama-model.cpp); whoever asks for one of several layouts asks for all of them. `needed` is what every layer, or
every model, of the architecture has in vendor/architectures/models.json.gz, whose models have no tensor that llama.cpp
would do without.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "ggufmerge" / "architectures" / "tensors.json"
MODELS = ROOT / "vendor" / "architectures" / "models.json.gz"
_ASKED = re.compile(r"tn\(\s*LLM_TENSOR_(\w+)\s*(?:,\s*\"([\w.]+)\")?")
# what functions that several models call ask for (src/llama-model.cpp)
_TOGETHER = {
    "create_tensor_qkv": ("ATTN_QKV", "ATTN_Q", "ATTN_K", "ATTN_V"),
    "create_tensor_gate_up_exps": ("FFN_GATE_UP_EXPS", "FFN_GATE_EXPS", "FFN_UP_EXPS"),
}
# Of what all layers of the tiny models have, only this is so in all models: other sizes have other tensors.
_NEEDED = re.compile(r"(token_embd|output_norm|attn_norm|attn_output|ffn_norm|ffn_down)\.weight")
_OFTEN_EMPTY = ("deci",)  # layers of these may lack attention, or the feed-forward part, or both


def main(tree: Path) -> None:
    names = tensor_names(tree)
    read = {arch: asked(tree, model, names) for arch, model in models(tree).items()}
    needed = needed_tensors()
    table = {
        arch: {"read": sorted(read[arch]), "needed": sorted(needed.get(arch, set()) & read[arch])}
        for arch in sorted(read)
        if read[arch]
    }
    unread = {arch: sorted(own - read.get(arch, set())) for arch, own in needed_tensors(every=False).items()}
    if any(unread.values()):
        raise SystemExit(f"models have tensors that nothing asks for: { {a: t for a, t in unread.items() if t} }")
    origin = "src/models/*.cpp, src/llama-arch.cpp and src/llama-model.cpp of llama.cpp v0.5.0"
    head = {"origin": origin, "licence": "MIT, Copyright (c) 2023-2026 The ggml authors"}
    lines = ",\n".join(f"  {json.dumps(arch)}: {json.dumps(entry)}" for arch, entry in table.items())
    OUTPUT.write_text(json.dumps(head)[:-1] + ',\n "architectures": {\n' + lines + "\n }\n}\n", encoding="utf-8")
    print(f"{OUTPUT}: {len(table)} architectures")


def tensor_names(tree: Path) -> dict[str, str]:
    """LLM_TENSOR_ATTN_Q -> attn_q: without the layer, whose number stands for all in `enc.blk.N.` too."""
    text = (tree / "src/llama-arch.cpp").read_text("utf-8")
    found = re.findall(r"\{\s*LLM_TENSOR_(\w+),\s*\"([^\"]+)\"\s*\}", text)
    return {name: re.sub(r"blk\.%d\.", "", value).replace("%d", "N") for name, value in found}


def models(tree: Path) -> dict[str, str]:
    """The class that loads each architecture, by the architecture's name."""
    arch_names = dict(
        re.findall(r"\{\s*LLM_ARCH_(\w+),\s*\"([^\"]+)\"", (tree / "src/llama-arch.cpp").read_text("utf-8"))
    )
    text = (tree / "src/llama-model.cpp").read_text("utf-8")
    found: dict[str, str] = {}
    waiting: list[str] = []
    for case, model in re.findall(r"case LLM_ARCH_(\w+):|return new (llama_model_\w+)\(", text):
        if case:
            waiting.append(case)
        else:
            found |= {arch_names[name]: model for name in waiting if name in arch_names}
            waiting = []
    return found


def asked(tree: Path, model: str, names: dict[str, str]) -> set[str]:
    """The tensors that a class asks for, or the one that it is derived from, as "attn_q.weight"."""
    header = (tree / "src/models/models.h").read_text("utf-8")
    parents = dict(re.findall(r"struct (llama_model_\w+)\s*:\s*public (llama_model_\w+)", header))
    while True:
        loaders = [
            p for p in (tree / "src/models").glob("*.cpp") if f"{model}::load_arch_tensors" in p.read_text("utf-8")
        ]
        if loaders or model not in parents:
            break
        model = parents[model]
    found: set[str] = set()
    for path in loaders:
        text = path.read_text("utf-8")
        found |= {f"{names[name]}.{suffix}" if suffix else names[name] for name, suffix in _ASKED.findall(text)}
        elsewhere = set(re.findall(r"LLM_TENSOR_(\w+)", text)) - {name for name, _ in _ASKED.findall(text)}
        found |= {f"{names[name]}.{suffix}" for name in elsewhere for suffix in ("weight", "bias")}  # by way of lambdas
        for call, together in _TOGETHER.items():
            if call in text:
                found |= {f"{names[name]}.{suffix}" for name in together for suffix in ("weight", "bias")}
    return found


def needed_tensors(*, every: bool = True) -> dict[str, set[str]]:
    """What all layers, and all models, of an architecture have; or, unless every, what any has."""
    kept: dict[str, list[set[str]]] = defaultdict(list)
    for model in json.loads(gzip.decompress(MODELS.read_bytes())).values():
        architecture = model["architecture"]
        further = model["metadata"].get(f"{architecture}.nextn_predict_layers", 0)
        last = model["metadata"][f"{architecture}.block_count"] - further
        layers: dict[str, set[str]] = defaultdict(set)
        for name in model["tensors"]:
            match = re.match(r"(enc\.|dec\.|)blk\.(\d+)\.(.*)", name)
            if match is None:
                layers[""].add(re.sub(r"\.\d+\.", ".N.", name))
            elif int(match[2]) < last or not every:
                layers[match[1] + match[2]].add(match[1] + match[3])
        outside = layers.pop("", set())
        stacks = defaultdict(list)
        for layer, own in layers.items():
            stacks[layer.rstrip("0123456789")].append(own)
        common = [set.intersection(*own) if every else set.union(*own) for own in stacks.values()]
        kept[architecture].append(outside.union(*common) if common else outside)
    joined = {arch: set.intersection(*own) if every else set.union(*own) for arch, own in kept.items()}
    if not every:
        return joined
    return {a: {n for n in own if _NEEDED.fullmatch(n) and a not in _OFTEN_EMPTY} for a, own in joined.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
