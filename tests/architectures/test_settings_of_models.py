"""Settings of a tiny model of each architecture that only one of two models has, or has otherwise, are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import differing
from tests.architecture_models import each, tiny_models

# changes of which nothing is said, and why
SILENT = {
    "hrm_text.block_count changed": "llama.cpp computes it from other keys, and refuses a file with another",
    "gemma4.attention.key_length_swa removed": "without it llama.cpp takes that of the other layers, which is the same",
    "gemma4.attention.value_length_swa removed": "as with keys",
    "gemma4-assistant.attention.key_length_swa removed": "as in Gemma 4",
    "gemma4-assistant.attention.value_length_swa removed": "as in Gemma 4",
}


def small(name: str, values: np.ndarray) -> np.ndarray | None:
    """Of the tensors of a layer the small ones, and one that all have, since planning needs no more of them."""
    return values if values.size <= 128 or name.endswith(("token_embd.weight", "attn_output.weight")) else None


@pytest.mark.parametrize("name", each(sample=("bert", "gemma2", "jamba", "llama", "qwen3next-mtp")))
def test_every_setting_that_differs_is_named(name: str, folder: Path):
    """Removed or changed on either side."""
    model = tiny_models()[name]
    a = model.write(folder / "a.gguf", change=small)
    b = model.write(folder / "b.gguf", change=small, tune=0.1)
    unnamed = {line.removesuffix(" in a").removesuffix(" in b") for line in differing.unnamed(a, b, folder)}
    assert unnamed == {change for change in SILENT if change.startswith(f"{model.architecture}.")}
