"""Every method without randomness gives the numbers of mergekit that lie in vendor/mergekit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ggufmerge

FOLDER = Path(__file__).parents[2] / "vendor" / "mergekit"
CASES = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def goldens():
    with np.load(FOLDER / "inputs.npz") as inputs, np.load(FOLDER / "outputs.npz") as outputs:
        return dict(inputs), dict(outputs)


def title(case):
    return f"{case['method']}-{case['inputs']}-{json.dumps(case['parameters'])}"


@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)), ids=[title(c) for c in CASES])
def test_equals_mergekit(goldens, number, case):
    """Within 1e-6 of the largest value of the tensor, which is a few roundings of mergekit's float32."""
    inputs, outputs = goldens
    x, expected = inputs[case["inputs"]], outputs[f"{number:03}"]
    base = x[0] if case["base"] else None
    merged = ggufmerge.merge([x[i] for i in case["models"]], case["method"], case["parameters"], base=base)
    assert merged.dtype == np.float32
    assert merged.shape == expected.shape
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_every_method_without_randomness_has_goldens():
    """A method that is added must be compared with mergekit, too."""
    from ggufmerge.methods import NAMES

    assert {case["method"] for case in CASES} == set(NAMES)
