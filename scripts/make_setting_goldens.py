"""Write the values that tests/recipe/test_mergekit.py compares with: what mergekit makes of parameter settings.

Needs an environment of its own (mergekit is LGPL-3.0 and never a dependency of this project):

    python -m venv mergekit-env
    mergekit-env/bin/pip install mergekit==0.1.5
    mergekit-env/bin/python scripts/make_setting_goldens.py vendor/mergekit
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import ParameterSetting, evaluate_setting
from pydantic import TypeAdapter

NAMES = {  # GGUF -> Hugging Face
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.7.attn_q.weight": "model.layers.7.self_attn.q_proj.weight",
    "blk.7.attn_q.bias": "model.layers.7.self_attn.q_proj.bias",
    "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
    "blk.12.ffn_norm.weight": "model.layers.12.post_attention_layernorm.weight",
    "output.weight": "lm_head.weight",
}
LAYERS = (1, 2, 5, 16, 22, 32)
SETTINGS = {
    "float": [
        "0.5",
        "1",
        "-2.5e-3",
        "1e-5",
        '"0.25"',
        "[0, 0.5, 0.3, 0.7, 1]",
        "[1]",
        "[0, 1]",
        "[1e-3, 5, -1, 2.5]",
        "{filter: mlp, value: 0.3}",
        "[{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.3, 0]}, {value: 0.5}]",
        "[{filter: q_proj, value: 1}, {filter: self_attn, value: 2}, {filter: '*', value: 3}]",
        "[{filter: layers.7., value: 1}, {filter: embed_tokens, value: [4, 5]}, {filter: lm_head, value: [6, 7]}]",
        "[{filter: .bias, value: 1}, {filter: layernorm, value: [0, 10, 0]}]",
        "[{value: 1}, {filter: mlp, value: 2}]",
    ],
    "bool": [
        "true",
        "0",
        "1.0",
        "[true, false]",
        "[true, false, true, false, false]",
        "[{filter: mlp, value: [false, true, false]}, {value: true}]",
    ],
    "int": ["3", "7.0", "[{filter: mlp, value: 2}, {value: 9}]"],
}


def positions() -> Iterator[float]:
    """Where layers stand in gradients: those of models of several depths; tensors outside the layers stand at 0."""
    yield 0.0
    for layers in LAYERS:
        yield from (i / (layers - 1) if layers > 1 else 1.0 for i in range(layers))


def main(folder: Path) -> None:
    at = sorted(set(positions()))
    cases: list[dict[str, Any]] = []
    for kind, texts in SETTINGS.items():
        validate = TypeAdapter({"float": float, "bool": bool, "int": int}[kind]).validate_python
        for text in texts:
            setting = TypeAdapter(ParameterSetting).validate_python(yaml.safe_load(text))
            values = {
                name: [evaluate_setting(hf, setting, t, validate=validate) for t in at] for name, hf in NAMES.items()
            }
            values = {name: v[0] if len(set(v)) == 1 else v for name, v in values.items()}
            cases.append({"kind": kind, "setting": text, "values": values})
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = f'{{"positions": {json.dumps(at)},\n"cases": [\n{lines}\n]}}\n'
    (folder / "settings.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
