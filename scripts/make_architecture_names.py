"""Write ggufmerge/architectures/names.json: what gguf-py of a llama.cpp tree calls the tensors of each architecture.

    python scripts/make_architecture_names.py FOLDER_OF_LLAMA_CPP VERSION

The table holds what the class TensorNameMap reads (gguf-py/gguf/constants.py and tensor_mapping.py), in its order, for
the last of several entries for a name is the one that holds. Beside each Hugging Face name stand the architectures that
the comments in tensor_mapping.py name for it: those whose checkpoints really have it.

vendor/llama.cpp/names.json is made at the same time, but through the class itself: for each architecture how many names
it knows, and a digest of what it makes of each. tests/architectures/test_names.py compares the two.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "ggufmerge" / "architectures" / "names.json"
GOLDEN = ROOT / "vendor" / "llama.cpp" / "names.json"

# what the comments call families, where they do not use the name of the architecture
FAMILIES = {
    "cohere": "command-r cohere2 cohere2moe",
    "deepseek-v3": "deepseek2",
    "distillbert": "bert",
    "embeddinggemma": "gemma-embedding",
    "ernie4.5-moe": "ernie4_5-moe",
    "falcon40b": "falcon",
    "falcon7b": "falcon",
    "flan-t5": "t5 t5encoder",
    "glm-4-0414": "glm4",
    "glm4-0414": "glm4",
    "gpt-j": "gptj",
    "gpt2": "gpt2 starcoder",
    "granite-hybrid": "granitehybrid",
    "granitemoe": "granitemoe granitehybrid granite_swa",
    "grok-2": "grok",
    "hy-v4": "hy_v4",
    "jina": "jina-bert-v3",
    "jina-v2-code": "jina-bert-v2",
    "kimi": "kimi-linear",
    "lfm2": "lfm2 lfm2moe",
    "llama": "llama",
    "mamba": "mamba mamba2",
    "mamba-hf": "mamba mamba2",
    "mimov2": "mimo2",
    "mini-jamba": "jamba",
    "mixtral": "llama",
    "nemotron-h": "nemotron_h nemotron_h_moe",
    "nemotron-h-moe": "nemotron_h_moe",
    "neobert": "neo-bert",
    "nomic-bert": "nomic-bert nomic-bert-moe",
    "openai-moe": "gpt-oss",
    "qwen3-embedding": "qwen3",
    "qwen3.5": "qwen35 qwen35moe",
    "qwen3next": "qwen3next qwen35 qwen35moe",
    "roberta": "bert",
    "rwkv": "rwkv6",
    "rwkv7": "rwkv7 arwkv7",
    "sea-lion": "mpt",
    "step3.5": "step35",
    "t5": "t5 t5encoder",
    "wavtokenizer": "wavtokenizer-dec",
}


def main(tree: Path, version: str) -> None:
    """Write both files."""
    sys.path.insert(0, str(tree / "gguf-py"))
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES
    from gguf.tensor_mapping import TensorNameMap

    assert Path(sys.modules["gguf"].__file__ or "").is_relative_to(tree)
    shared = dict(TensorNameMap.block_mappings_cfg)  # its constructor writes into this
    outside, inside, special = _commented((tree / "gguf-py/gguf/tensor_mapping.py").read_text("utf-8"))
    assert {k.name: set(v) for k, v in TensorNameMap.mappings_cfg.items()} == {k: set(v) for k, v in outside.items()}
    assert {k.name: set(v) for k, v in shared.items()} == {k: set(v) for k, v in inside.items()}
    architectures = set(MODEL_ARCH_NAMES.values())
    names = {tensor.name: TENSOR_NAMES[tensor] for tensor in TENSOR_NAMES}

    def entry(tensor: str, spelled: dict[str, set[str]]) -> dict[str, Any]:
        own = {s: " ".join(sorted(_architectures(said, architectures))) for s, said in spelled.items()}
        return {"name": names[tensor], "spellings": own}

    used = {tensor.name for tensors in MODEL_TENSORS.values() for tensor in tensors}
    table = {
        "origin": f"constants.py and tensor_mapping.py in gguf-py of llama.cpp {version}",
        "licence": "MIT, Copyright (c) 2023-2026 The ggml authors",
        "tensors": {t: entry(t, outside.get(t, {}) | inside.get(t, {})) for t in {**outside, **inside} if t in used},
        "special": {
            MODEL_ARCH_NAMES[MODEL_ARCH[arch]]: {t: entry(t, s)["spellings"] for t, s in tensors.items()}
            for arch, tensors in special.items()
        },
        "without": {t: names[t] for t in sorted(used - set(outside) - set(inside)) if t in names},
        "architectures": {
            MODEL_ARCH_NAMES[arch]: " ".join(tensor.name for tensor in dict.fromkeys(MODEL_TENSORS[arch]))
            for arch in sorted(MODEL_TENSORS, key=MODEL_ARCH_NAMES.__getitem__)
        },
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    golden = {}
    for arch in sorted(MODEL_TENSORS, key=MODEL_ARCH_NAMES.__getitem__):
        TensorNameMap.block_mappings_cfg = dict(shared)
        mapping = {s: name for s, (_, name) in TensorNameMap(arch, 1).mapping.items() if s != name}
        golden[MODEL_ARCH_NAMES[arch]] = [len(mapping), digest(mapping)]
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(said)}" for name, said in golden.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def digest(mapping: dict[str, str]) -> str:
    """The first 16 digits of the SHA-256 of lines "Hugging Face name, tab, GGUF name", sorted."""
    lines = "".join(f"{spelling}\t{name}\n" for spelling, name in sorted(mapping.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _commented(source: str) -> tuple[dict[str, dict[str, set[str]]], ...]:
    """The three tables of TensorNameMap: tensor to Hugging Face names, each with the words of its comments."""
    lines = source.splitlines()
    [tables] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    found = {node.target.id: node.value for node in tables.body if isinstance(node, ast.AnnAssign) and node.value}

    def spelled(table: ast.expr) -> dict[str, dict[str, set[str]]]:
        read: dict[str, dict[str, set[str]]] = {}
        for key, value in zip(table.keys, table.values, strict=True):
            own = read[key.attr] = {}
            for constant in value.elts:
                comment = lines[constant.lineno - 1][constant.end_col_offset :].partition("#")[2]
                own.setdefault(constant.value, set()).update(re.findall(r"[\w.-]+", comment.lower()))
        return read

    special = found["arch_block_mappings_cfg"]
    own = {key.attr: spelled(value) for key, value in zip(special.keys, special.values, strict=True)}
    return spelled(found["mappings_cfg"]), spelled(found["block_mappings_cfg"]), own


def _architectures(said: set[str], known: set[str]) -> set[str]:
    """The architectures that the words of comments mean."""
    return {arch for word in said for arch in FAMILIES.get(word, word).split() if arch in known}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
