"""A real model, quantized by our codecs to the types of our plan, has the bytes that llama-quantize writes."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from ggufmerge.files import open_gguf
from ggufmerge.quants import quantize
from ggufmerge.quants.imatrix import Imatrix, ImatrixEntry
from ggufmerge.quants.mixture import plan_types
from tests import models
from tests.mock_models import synthetic_imatrix

GOLDEN: dict[str, Any] = json.loads(
    (pathlib.Path(__file__).parents[2] / "vendor/llama.cpp/smollm2/digests.json").read_text(encoding="utf-8")
)


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["digests"])
def test_every_tensor_has_the_bytes_of_llama_quantize(case: str) -> None:
    ftype, _, with_imatrix = case.partition("+")
    with open_gguf(models.smollm2()) as model:
        imatrix = None
        if with_imatrix:
            rows = {n: synthetic_imatrix(n, t.shape[-1]) for n, t in model.tensors.items() if len(t.shape) > 1}
            imatrix = Imatrix({n: ImatrixEntry(row, np.ones(1, np.int64)) for n, row in rows.items()})
        types = plan_types(model, ftype, imatrix)
        wrong = []
        for (name, tensor), digest in zip(model.tensors.items(), GOLDEN["digests"][case].split(), strict=True):
            if types[name] is tensor.type:
                raw = np.asarray(tensor.raw)
            else:
                importance = imatrix.get(name, tensor.shape[-1]) if imatrix else None
                raw = quantize(tensor.dequantize(), types[name], None if importance is None else importance[0])
            if not hashlib.sha256(raw.tobytes()).hexdigest().startswith(digest):
                wrong.append(f"{name} ({tensor.type} to {types[name]})")
    assert not wrong
