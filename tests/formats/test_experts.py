"""Files in which each expert has a tensor of its own are read as if all experts of a layer were in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggufmerge import SplitLimit, split_file
from ggufmerge.errors import PlanError
from ggufmerge.files import open_gguf
from ggufmerge.formats.experts import about_stacks, open_model
from ggufmerge.formats.rearranged import Mixed, Rearranged
from ggufmerge.quants import dequantize
from ggufmerge.types import TensorType
from tests.tiny import split_experts, write_tiny_llama

STACK = "blk.0.ffn_gate_exps.weight"


def write(path: Path, *, experts: int = 3, **options: object) -> dict[str, np.ndarray]:
    return write_tiny_llama(path, layers=1, experts=experts, layout=split_experts, **options)  # type: ignore[arg-type]


def without(*names: str):  # type: ignore[no-untyped-def]
    """The old layout without some of its tensors."""
    return lambda weights: {k: v for k, v in split_experts(weights).items() if k not in names}


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_an_old_file_shows_the_tensors_of_a_new_one(tmp_path: Path, kind: str) -> None:
    """Names, shapes, types, their order, and every byte."""
    write(tmp_path / "old.gguf", type=kind)
    write_tiny_llama(tmp_path / "new.gguf", layers=1, experts=3, type=kind)
    with open_model(tmp_path / "old.gguf") as old, open_gguf(tmp_path / "new.gguf") as new:
        told = [[(t.name, t.shape, t.type, t.nbytes) for t in file.tensors.values()] for file in (old, new)]
        assert told[0] == told[1]
        for name, tensor in new.tensors.items():
            np.testing.assert_array_equal(old.tensors[name].raw, tensor.raw)


def test_rows_are_read_across_the_borders_of_experts(tmp_path: Path) -> None:
    """Any stretch of rows is that of the stack."""
    weights = write(tmp_path / "old.gguf")
    rows = weights[STACK].reshape(-1, 64)
    with open_model(tmp_path / "old.gguf") as file:
        tensor = file.tensors[STACK]
        for start, stop in ((0, 384), (5, 7), (127, 129), (128, 256), (100, 300), (383, 384), (9, 9)):
            np.testing.assert_array_equal(tensor.raw_rows(start, stop).view(np.float32), rows[start:stop])


def test_rows_of_one_expert_are_not_copied(tmp_path: Path) -> None:
    """They are a view of the mapped file, as rows of any other tensor."""
    write(tmp_path / "old.gguf")
    with open_model(tmp_path / "old.gguf") as file:
        assert np.shares_memory(file.tensors[STACK].raw_rows(130, 200), file.mapped[0].bytes)


def test_a_file_of_today_is_left_alone(tmp_path: Path) -> None:
    """There is nothing to tell of it."""
    write_tiny_llama(tmp_path / "new.gguf", layers=1, experts=3)
    with open_model(tmp_path / "new.gguf") as file:
        assert not any(isinstance(tensor, (Rearranged, Mixed)) for tensor in file.tensors.values())
        assert about_stacks(file.tensors) == ""


def test_experts_of_several_types_are_read_as_numbers(tmp_path: Path) -> None:
    """Old files of llama-quantize have them; the values are those of each expert's own blocks."""
    write(tmp_path / "old.gguf", type="Q4_0", types={"blk.0.ffn_down.1.*": "Q8_0"})
    with open_model(tmp_path / "old.gguf") as file, open_gguf(tmp_path / "old.gguf") as stored:
        tensor = file.tensors["blk.0.ffn_down_exps.weight"]
        assert isinstance(tensor, Mixed)
        assert (tensor.type, tensor.widest, tensor.shape) == (TensorType.F32, TensorType.Q8_0, (3, 64, 128))
        singles = [stored.tensors[f"blk.0.ffn_down.{e}.weight"] for e in range(3)]
        wanted = np.concatenate([dequantize(t.raw_rows(0, 64), t.type, 128) for t in singles])
        np.testing.assert_array_equal(tensor.raw_rows(0, 192).view(np.float32), wanted)
        np.testing.assert_array_equal(tensor.raw_rows(60, 70).view(np.float32), wanted[60:70])
        assert "ffn_down_exps.weight has experts of several types (Q4_0, Q8_0)" in about_stacks(file.tensors)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layout": without("blk.0.ffn_up.1.weight")}, r"lacks blk\.0\.ffn_up\.1\.weight, one of 3 experts"),
        ({"layout": without("blk.0.ffn_up.2.weight")}, r"lacks blk\.0\.ffn_up\.2\.weight, one of 3 experts"),
        ({"metadata": {"llama.expert_count": 2}}, r"would have 3 experts, but llama\.expert_count is 2"),
        ({"extra": {STACK: np.zeros((3, 128, 64), np.float32)}}, r"has both blk\.0\.ffn_gate_exps\.weight and"),
        (
            {"layout": without("blk.0.ffn_up.1.weight"), "extra": {"blk.0.ffn_up.1.weight": np.zeros((2, 64))}},
            r"different shapes \(blk\.0\.ffn_up\.1\.weight is \[2, 64\], blk\.0\.ffn_up\.0\.weight \[128, 64\]\)",
        ),
    ],
    ids=["a hole", "the last", "too many", "both layouts", "shapes"],
)
def test_experts_that_make_no_stack_are_refused(tmp_path: Path, options: dict[str, object], told: str) -> None:
    """The message names the tensor and says what to do; the file is closed."""
    write_tiny_llama(tmp_path / "old.gguf", layers=1, experts=3, **{"layout": split_experts, **options})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=rf"old\.gguf: .*{told}.*take another file of the model"):
        open_model(tmp_path / "old.gguf")


def test_a_count_that_nobody_can_have_costs_nothing(tmp_path: Path) -> None:
    """The number of experts in the metadata is a stranger's."""
    write(tmp_path / "old.gguf", metadata={"llama.expert_count": 2**32 - 1})
    with pytest.raises(PlanError, match=r"lacks blk\.0\.ffn_gate\.3\.weight, one of 4294967295 experts"):
        open_model(tmp_path / "old.gguf")


def test_experts_may_lie_in_several_shards(tmp_path: Path) -> None:
    """A stack reads on where the next shard begins."""
    weights = write(tmp_path / "old.gguf")
    split_file(tmp_path / "old.gguf", tmp_path / "cut", SplitLimit(max_tensors=10))
    with open_model(tmp_path / "cut-00001-of-00002.gguf") as file:
        for name in (STACK, "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"):
            got = file.tensors[name].raw_rows(0, file.tensors[name].rows).view(np.float32)
            np.testing.assert_array_equal(got.reshape(weights[name].shape), weights[name])
        paths = {span.tensor.path for span in file.tensors["blk.0.ffn_gate_exps.weight"].spans}
        assert len(paths) == 2
