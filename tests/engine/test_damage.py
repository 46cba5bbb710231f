"""Weights that are no finite numbers are refused, wherever they come from or would come to stand, with a line that says
which source, which tensor and where. Only `split` and `join`, which look at no weights, pass them on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ggufmerge
from ggufmerge.engine.bake import plan_bake
from ggufmerge.engine.compare import compare
from ggufmerge.engine.extract import extract, plan_extract
from ggufmerge.engine.quantize import plan_quantize
from ggufmerge.errors import DamageError, GgufmergeError
from ggufmerge.files import MetadataEditor, TensorInfo
from ggufmerge.files.sharded import SplitLimit
from ggufmerge.files.split import join_gguf, split_gguf
from ggufmerge.files.writer import GGUFWriter
from ggufmerge.methods import NAMES, method
from ggufmerge.methods.parameters import REQUIRED
from ggufmerge.methods.spec import Base
from ggufmerge.running.run import BuildReport, run
from ggufmerge.types import TensorType
from tests.tiny import write_tiny_llama, write_tiny_lora

UP = "blk.0.ffn_up.weight"
SIZES = {"layers": 1, "embed": 64, "ff": 64}
NEGATIVE_NAN = np.uint32(0xFFC00000).view(np.float32)  # what inf - inf gives on x86-64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a and b, alike; nan, minus-nan, inf and minus-inf are like a but for row 3, column 5 of a matrix."""
    folder = tmp_path_factory.mktemp("damage")
    for name, tune in (("base", None), ("a", (1, 0.1)), ("b", (2, 0.1))):
        weights = write_tiny_llama(folder / f"{name}.gguf", tune=tune, **SIZES)  # type: ignore[arg-type]
        if name == "base":
            write_tiny_lora(folder / "lora.gguf", weights, targets=("*ffn_up.weight",))
        if name == "a":
            for bad, value in (("nan", np.nan), ("minus-nan", NEGATIVE_NAN), ("inf", np.inf), ("minus-inf", -np.inf)):
                spoilt = weights[UP].copy()
                spoilt[3, 5] = value
                write_tiny_llama(folder / f"{bad}.gguf", tune=tune, replace={UP: spoilt}, **SIZES)  # type: ignore[arg-type]
    return folder


def overwrite(path: Path, tensor: str, offset: int, data: bytes) -> None:
    """Bytes of a tensor, from `offset` on."""
    with ggufmerge.open(path) as file:
        start = file.tensors[tensor].offset
    with path.open("r+b") as f:
        f.seek(start + offset)
        f.write(data)


def merge(folder: Path, output: Path, name: str, *models: str, base: str = "base.gguf", **keys: Any) -> BuildReport:
    """Merge models with a method, all of its parameters that have no default at 0.5."""
    chosen = method(name)
    needed = [q for q in chosen.parameters if q.default is REQUIRED]
    own = {q.name: 0.5 for q in needed if q.scope == "model"}
    recipe = {
        "merge_method": name,
        "models": [{"model": m, **({"parameters": own} if own else {})} for m in models],
        "parameters": {q.name: 0.5 for q in needed if q.scope == "shared"},
        **({"base_model": base} if chosen.base is Base.REQUIRED or name == "slerp" else {}),
        **keys,
    }
    path = folder / f"{output.stem}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return ggufmerge.build(path, output)


def models_for(name: str, bad: str) -> list[str]:
    """A damaged model among as many as a method takes, at most three."""
    return [f"{bad}.gguf", "a.gguf", "b.gguf"][: 1 if name == "slerp" else method(name).max_models]


@pytest.mark.parametrize("bad", ["nan", "minus-nan", "inf", "minus-inf"])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_refuses_damaged_models(folder: Path, tmp_path: Path, name: str, bad: str) -> None:
    """One line with the model, the tensor and the place, and no file."""
    what = "NaN" if "nan" in bad else "infinite"
    with pytest.raises(DamageError, match=rf"^{bad}\.gguf: {UP}: the weight at row 3, column 5 is {what}; .*again"):
        merge(folder, tmp_path / "out.gguf", name, *models_for(name, bad))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in NAMES if method(n).base is Base.REQUIRED])
def test_every_method_refuses_a_damaged_base(folder: Path, tmp_path: Path, name: str) -> None:
    """The base is the one that is named."""
    with pytest.raises(DamageError, match=rf"^nan\.gguf: {UP}: .*row 3, column 5"):
        merge(folder, tmp_path / "out.gguf", name, *models_for(name, "a"), base="nan.gguf")


BLOCKS = [  # type, where a scale is in block 1 of row 2, what makes it no number
    ("F16", 2, b"\x00\x7e"),
    ("BF16", 2, b"\x80\xff"),
    ("Q8_0", 0, b"\x00\xfc"),
    ("Q4_1", 2, b"\x00\x7e"),
    ("Q4_K", 2, b"\x01\x7c"),
    ("Q6_K", 208, b"\x00\x7c"),
    ("MXFP4", 0, b"\xff"),
    ("NVFP4", 3, b"\x7f"),
]


@pytest.mark.parametrize(("kind", "offset", "data"), BLOCKS)
def test_damaged_blocks_are_found(tmp_path: Path, kind: str, offset: int, data: bytes) -> None:
    """In a merge by a method that drops NaN, in another type, and in a copy."""
    sizes = {"layers": 1, "embed": 512, "ff": 256}
    for name, tune in (("base", None), ("tune", (1, 0.1))):
        write_tiny_llama(tmp_path / f"{name}.gguf", type=kind, tune=tune, **sizes)  # type: ignore[arg-type]
    t = TensorType[kind]
    overwrite(tmp_path / "tune.gguf", UP, 2 * t.row_bytes(512) + t.block_bytes + offset, data)
    place = rf"tune\.gguf: {UP}: .* at row 2, column {t.block_size + (offset // 2 if t.is_float else 0)} is (NaN|infin)"
    with pytest.raises(DamageError, match=place):
        merge(tmp_path, tmp_path / "out.gguf", "ties", "tune.gguf", "base.gguf")
    for wanted in ("F32", "COPY"):
        plan, opened = plan_quantize(tmp_path / "tune.gguf", wanted)
        with pytest.raises(DamageError, match=place):
            run(plan, opened, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_the_place_in_a_stack_names_the_matrix(tmp_path: Path) -> None:
    """Experts are counted like rows and columns, from 0."""
    weights = write_tiny_llama(tmp_path / "a.gguf", experts=4, **SIZES)  # type: ignore[arg-type]
    overwrite(tmp_path / "a.gguf", "blk.0.ffn_up_exps.weight", 4 * (2 * 64 * 64 + 5 * 64 + 9), b"\x00\x00\xc0\x7f")
    assert weights["blk.0.ffn_up_exps.weight"].shape == (4, 64, 64)
    with pytest.raises(DamageError, match="at matrix 2, row 5, column 9 is NaN"):
        merge(tmp_path, tmp_path / "out.gguf", "passthrough", "a.gguf")


def test_copied_tensors_are_looked_at_and_otherwise_left_alone(folder: Path, tmp_path: Path) -> None:
    """A merge, baking and quantizing refuse; shards of the same file and the file joined from them keep its bytes."""
    with pytest.raises(DamageError, match=f"inf.gguf: {UP}: "):
        merge(folder, tmp_path / "out.gguf", "passthrough", "inf.gguf")
    write_tiny_lora(tmp_path / "lora.gguf", {"blk.0.attn_q.weight": np.ones((64, 64), np.float32)}, factor=0.1)
    plan, opened = plan_bake(folder / "inf.gguf", [tmp_path / "lora.gguf"])
    with pytest.raises(DamageError, match=f"inf.gguf.*: {UP}: "):
        run(plan, opened, tmp_path / "out.gguf")
    shards = split_gguf(folder / "inf.gguf", tmp_path / "shard", SplitLimit(max_tensors=5))
    join_gguf(shards[0], tmp_path / "joined.gguf")
    with ggufmerge.open(folder / "inf.gguf") as old, ggufmerge.open(tmp_path / "joined.gguf") as new:
        assert [bytes(t.raw) for t in new.tensors.values()] == [bytes(t.raw) for t in old.tensors.values()]


def test_a_damaged_adapter_is_named(folder: Path, tmp_path: Path) -> None:
    """Its own file and tensor, not those of the base."""
    lora = tmp_path / "lora.gguf"
    lora.write_bytes((folder / "lora.gguf").read_bytes())
    overwrite(lora, f"{UP}.lora_b", 4 * (7 * 4 + 2), b"\x00\x00\x80\xff")
    wanted = rf"^{re.escape(str(lora))}: {UP}\.lora_b: the weight at row 7, column 2 is infinite"
    plan, opened = plan_bake(folder / "base.gguf", [lora])
    with pytest.raises(DamageError, match=wanted):
        run(plan, opened, tmp_path / "out.gguf")
    with pytest.raises(DamageError, match=wanted):
        merge(folder, tmp_path / "out.gguf", "ties", f"base.gguf+{lora}", "a.gguf")
    with pytest.raises(DamageError, match=wanted):
        compare(folder / "a.gguf", f"{folder / 'base.gguf'}+{lora}")


def test_an_adapter_that_is_far_too_strong_is_named(folder: Path, tmp_path: Path) -> None:
    """Halves and strength are finite, their product is not."""
    with pytest.raises(DamageError, match=rf"{UP}: the adapter .*lora\.gguf makes the weight at row .* its strength"):
        merge(folder, tmp_path / "out.gguf", "linear", "base.gguf+lora.gguf=1e39", "a.gguf")


@pytest.mark.parametrize(
    ("value", "kind", "holding"),
    [
        (1e5, "F16", "F32, BF16, Q8_0, Q6_K, Q5_K and Q4_K"),
        (1e9, "Q8_0", "F32 and BF16"),
        (1e9, "Q4_0", "F32 and BF16"),
        (1e9, "Q4_K", "F32 and BF16"),
        (2e8, "Q4_K", "F32, BF16 and Q6_K"),
        (1e30, "Q6_K", "F32 and BF16"),  # ggml's search overflows and gives zeros
        (1e30, "IQ4_XS", "F32 and BF16"),
        (1e9, "NVFP4", "F32 and BF16"),
        (3.4e38, "BF16", "F32"),
    ],
)
def test_what_a_type_cannot_hold_is_not_written(tmp_path: Path, value: float, kind: str, holding: str) -> None:
    """The tensor, the place, its largest value, and the types that hold it."""
    weights = write_tiny_llama(tmp_path / "a.gguf", layers=1, embed=256, ff=256)
    weights[UP][1] *= np.float32(2)
    weights[UP][4, 7] = -value
    write_tiny_llama(tmp_path / "a.gguf", layers=1, embed=256, ff=256, replace={UP: weights[UP]})
    plan, opened = plan_quantize(tmp_path / "a.gguf", "Q8_0", tensor_types=[("ffn_up", kind)])
    shown = f"{value:.4g}".replace("+", r"\+")
    with pytest.raises(
        GgufmergeError,
        match=rf"^{UP}: {kind} cannot hold .*row 4, columns? .*largest .* {shown}, which {holding} can hold",
    ):
        run(plan, opened, tmp_path / "out.gguf", chunk=512)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_merge_too_large_for_its_type_is_not_written(folder: Path, tmp_path: Path) -> None:
    """The models are fine, the weights of the recipe are not; and so if float32 itself cannot hold the result."""
    for weight, complaint in (
        (1e6, r"F16 cannot hold the weights at (row|places?) "),
        (1e39, "not all finite numbers, first"),
    ):
        recipe = {
            "merge_method": "linear",
            "parameters": {"normalize": False, "weight": weight},
            "models": [{"model": "a.gguf"}, {"model": "b.gguf"}],
            "out_type": "F16",
        }
        (folder / "large.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        with pytest.raises(GgufmergeError, match=complaint):
            ggufmerge.build(folder / "large.yaml", tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("factor", "refused"), [(1.0, False), (1.5, False), (100.0, True)])
def test_values_beyond_the_range_of_a_scale_are_noted_or_refused(tmp_path: Path, factor: float, refused: bool) -> None:
    """NVFP4 clips what its scales cannot reach: a little of it is a note, much of it an error."""
    weights = write_tiny_llama(tmp_path / "a.gguf", **SIZES)  # type: ignore[arg-type]
    weights[UP][0, 0] = 2688 * factor
    write_tiny_llama(tmp_path / "a.gguf", replace={UP: weights[UP]}, **SIZES)  # type: ignore[arg-type]
    plan, opened = plan_quantize(tmp_path / "a.gguf", "Q8_0", tensor_types=[("ffn_up", "NVFP4")])
    if refused:
        with pytest.raises(GgufmergeError, match="NVFP4 cannot hold"):
            run(plan, opened, tmp_path / "out.gguf")
    else:
        notes = run(plan, opened, tmp_path / "out.gguf").notes
        assert [name for name, _ in notes] == [UP] * (factor > 1.2)


def test_extracting_and_comparing_refuse_damaged_models(folder: Path, tmp_path: Path) -> None:
    """The same line as in a merge."""
    plan, sources = plan_extract(folder / "nan.gguf", folder / "base.gguf")
    with pytest.raises(DamageError, match=rf"nan\.gguf: {UP}: the weight at row 3, column 5 is NaN"):
        extract(plan, sources, tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DamageError, match=rf"nan\.gguf: {UP}: the weight at row 3, column 5 is NaN"):
        compare(folder / "a.gguf", folder / "nan.gguf")


@pytest.mark.parametrize(
    ("value", "kind", "complaint"), [(1e37, "F32", "row 3, column 5 is 1e.37"), (1e11, "F16", "--type F32")]
)
def test_adapters_that_are_no_numbers_are_not_written(
    folder: Path, tmp_path: Path, value: float, kind: str, complaint: str
) -> None:
    """Differences so large that their squares, or the halves in their type, are infinite."""
    large = np.zeros((64, 64), np.float32)
    large[3, 5] = value
    write_tiny_llama(tmp_path / "large.gguf", replace={UP: large}, **SIZES)  # type: ignore[arg-type]
    plan, sources = plan_extract(tmp_path / "large.gguf", folder / "base.gguf", out_type=kind)
    with pytest.raises(GgufmergeError, match=f"{UP}.*{complaint}"):
        extract(plan, sources, tmp_path / "out.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["large.gguf"]


@pytest.mark.parametrize(
    "shape", [(0,), (0, 64), (4, 0), (0, 4, 64), (4, 0, 64), (2, 4, 0), (2, 0, 4, 64), (0, 0, 0, 0)]
)
@pytest.mark.parametrize("name", ["blk.0.extra.weight", "blk.0.extra_exps.weight"])
def test_tensors_without_values_are_merged_into_such(
    folder: Path, tmp_path: Path, shape: tuple[int, ...], name: str
) -> None:
    """Whatever their types and dimensions; nothing of them differs, so nothing of them is extracted."""
    for model, kind in (("base", "F32"), ("a", "Q8_0"), ("b", "F16")):
        with ggufmerge.open(folder / f"{model}.gguf") as file:
            fits = shape[-1] % TensorType[kind].block_size == 0
            extra = TensorInfo(name, shape, TensorType[kind] if fits else TensorType.F32)
            infos = [*(TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values()), extra]
            with GGUFWriter(tmp_path / f"{model}.gguf", MetadataEditor(file.metadata), infos) as writer:
                for t in file.tensors.values():
                    writer.write(t.name, 0, t.raw)
                writer.commit()
    for chosen in ("ties", "linear", "della", "model_stock"):
        merge(tmp_path, tmp_path / f"{chosen}.gguf", chosen, "a.gguf", "b.gguf")
        with ggufmerge.open(tmp_path / f"{chosen}.gguf") as out:
            assert out.tensors[name].shape == shape
    plan, sources = plan_extract(tmp_path / "a.gguf", tmp_path / "base.gguf")
    assert name not in {p.name for p in plan.pairs}
    for source in sources:
        source.close()
    assert compare(tmp_path / "a.gguf", tmp_path / "b.gguf").tensors[-1].relative == 0


def test_a_vocabulary_of_its_own_keeps_the_place(tmp_path: Path) -> None:
    """Rows that are gathered are counted as in the file that they come from."""
    for name, vocab in (("a", 330), ("b", 320)):
        weights = write_tiny_llama(tmp_path / f"{name}.gguf", vocab=vocab, **SIZES)  # type: ignore[arg-type]
    weights["token_embd.weight"][317, 4] = np.nan
    write_tiny_llama(
        tmp_path / "b.gguf", vocab=320, replace={"token_embd.weight": weights["token_embd.weight"]}, **SIZES
    )  # type: ignore[arg-type]
    with pytest.raises(DamageError, match=r"b\.gguf: token_embd\.weight: the weight at row 317, column 4 is NaN"):
        merge(tmp_path, tmp_path / "out.gguf", "linear", "a.gguf", "b.gguf", tokenizer_source="union")
