"""`ggufmerge quantize` writes what llama-quantize writes; its options mean what they mean there."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.running.run import run
from tests import ggml, models
from tests.engine.conftest import raw, weights
from tests.mock_models import synthetic_imatrix
from tests.tiny import write_tiny_llama

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vendor/llama.cpp/smollm2/digests.json").read_text(encoding="utf-8")
)


def write_imatrix(path: Path, entries: dict[str, np.ndarray]) -> Path:
    """A legacy .dat file: one call, so that the values are the sums."""
    with path.open("wb") as f:
        f.write(struct.pack("<i", len(entries)))
        for name, values in entries.items():
            data = values.astype("<f4")
            f.write(struct.pack(f"<i{len(name)}sii", len(name), name.encode(), 1, data.size) + data.tobytes())
    return path


def quantized(source: Path, output: Path, ftype: str | None, **options: Any) -> Path:
    plan, opened = plan_quantize(source, ftype, **options)
    run(plan, opened, output, overwrite=True)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["digests"])
def test_a_real_model_gets_the_bytes_of_llama_quantize(case: str, tmp_path: Path) -> None:
    """SmolLM2 in every type for which the real library was run, type and bytes of all 272 tensors."""
    ftype, _, with_imatrix = case.partition("+")
    source, matrices = models.smollm2(), []
    with ggufmerge.open(source) as model:
        names = list(model.tensors)
        if with_imatrix:
            rows = {n: synthetic_imatrix(n, t.shape[-1]) for n, t in model.tensors.items() if len(t.shape) > 1}
            matrices = [write_imatrix(tmp_path / "imatrix.dat", rows)]
    out = raw(quantized(source, tmp_path / "out.gguf", ftype, imatrix=matrices))
    digests = GOLDEN["digests"][case].split()
    wrong = [n for n, d in zip(names, digests, strict=True) if not hashlib.sha256(out[n]).hexdigest().startswith(d)]
    assert not wrong


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "model.gguf", embed=256, ff=512, heads=4)
    return tmp_path / "model.gguf"


@pytest.mark.oracle
def test_every_tensor_is_what_ggml_makes_of_it(model: Path, tmp_path: Path) -> None:
    """With and without an importance matrix."""
    rng = np.random.default_rng(0)
    source = weights(model)
    matrix = {n: rng.gamma(1.0, size=w.shape[-1]).astype(np.float32) for n, w in source.items() if n.startswith("blk.")}
    file = write_imatrix(tmp_path / "imatrix.dat", matrix)
    for given in ((), (file,)):
        out = ggufmerge.open(quantized(model, tmp_path / "out.gguf", "Q4_K_M", imatrix=given))
        for name, t in out.tensors.items():
            if t.type.is_quantized:
                expected = ggml.quantize(source[name], t.type, matrix.get(name) if given else None)
                assert bytes(t.raw) == expected.tobytes(), name


def test_tensors_that_keep_their_type_are_copied(model: Path, tmp_path: Path) -> None:
    """Quantizing twice to one type changes nothing the second time, although Q3_K is not idempotent."""
    once = quantized(model, tmp_path / "once.gguf", "Q3_K_M")
    assert raw(quantized(once, tmp_path / "twice.gguf", "Q3_K_M")) == raw(once)
    assert raw(quantized(once, tmp_path / "copy.gguf", "COPY")) == raw(once)


def test_metadata_is_kept_but_for_what_changes(model: Path, tmp_path: Path) -> None:
    """As llama-quantize: all keys, the file type and version, and where the importance matrix came from."""
    file = write_imatrix(tmp_path / "im.dat", {"blk.0.ffn_up.weight": np.ones(256, np.float32)})
    out = ggufmerge.open(quantized(model, tmp_path / "out.gguf", "Q5_K_S", imatrix=[file])).metadata
    before = ggufmerge.open(model).metadata
    assert out["general.file_type"] == 16
    assert out["quantize.imatrix.file"] == "im.dat"
    assert out["quantize.imatrix.entries_count"] == 1
    changed = {"general.file_type", "general.quantization_version"}
    assert all(out.raw(k) == before.raw(k) for k in before if k not in changed)


def test_like_takes_over_the_types_of_another_file(model: Path, tmp_path: Path) -> None:
    """Tensor by tensor: how a file keeps the layout of its parent."""
    mixed = tmp_path / "mixed.gguf"
    write_tiny_llama(mixed, embed=256, ff=512, type="Q4_K", types={"*ffn_down*": "Q6_K", "output.weight": "Q8_0"})
    out = ggufmerge.open(quantized(model, tmp_path / "out.gguf", None, like=mixed))
    like = ggufmerge.open(mixed)
    assert {n: t.type for n, t in out.tensors.items()} == {n: t.type for n, t in like.tensors.items()}


@pytest.mark.oracle
def test_an_expert_has_an_importance_of_its_own(tmp_path: Path) -> None:
    """One row of the matrix for each expert of a stack, whatever the chunks."""
    source = write_tiny_llama(tmp_path / "moe.gguf", embed=256, ff=256, experts=4, layers=1)
    name = "blk.0.ffn_up_exps.weight"
    values = np.random.default_rng(1).gamma(1.0, size=(4, 256)).astype(np.float32)
    file = write_imatrix(tmp_path / "im.dat", {name: values.reshape(-1)})
    plan, opened = plan_quantize(tmp_path / "moe.gguf", "Q4_K_S", imatrix=[file])
    for chunk in (1 << 20, 1000):
        run(plan, opened, tmp_path / "out.gguf", overwrite=True, chunk=chunk)
        tensor = ggufmerge.open(tmp_path / "out.gguf").tensors[name]
        expected = [ggml.quantize(source[name][e], tensor.type, values[e]) for e in range(4)]
        assert bytes(tensor.raw) == b"".join(e.tobytes() for e in expected)


def test_errors_are_measured(model: Path, tmp_path: Path) -> None:
    """The relative RMS error of each tensor, against the values that were quantized."""
    plan, opened = plan_quantize(model, "Q4_0")
    report = run(plan, opened, tmp_path / "out.gguf", measure=True)
    before, after = weights(model), weights(tmp_path / "out.gguf")
    for name, error in report.errors.items():
        expected = np.linalg.norm(after[name] - before[name]) / np.linalg.norm(before[name])
        assert error == pytest.approx(float(expected), rel=1e-3, abs=1e-9), name


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"ftype": "Q4_L"}, 'unknown type "Q4_L"'),
        ({"ftype": None}, "either a type"),
        ({"ftype": "IQ2_XXS"}, "importance matrix"),
        ({"ftype": "Q4_K_M", "tensor_types": [("nothing_like_this", "Q8_0")]}, "nothing_like_this"),
    ],
)
def test_what_cannot_be_done_is_said_before(model: Path, arguments: dict[str, Any], complaint: str) -> None:
    """In the plan, in one line."""
    with pytest.raises(GgufmergeError, match=complaint):
        plan_quantize(model, **arguments)


def test_a_matrix_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    """With the tensor and both lengths."""
    file = write_imatrix(tmp_path / "im.dat", {"blk.0.ffn_up.weight": np.ones(100, np.float32)})
    with pytest.raises(PlanError, match=r"blk\.0\.ffn_up\.weight has 100 importance values"):
        plan_quantize(model, "Q4_K_M", imatrix=[file])
