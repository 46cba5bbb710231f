"""Rows of embeddings in another vocabulary, while they stream: what mergekit computes on whole matrices."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggufmerge.errors import PlanError
from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source
from ggufmerge.sources.aligned import AlignedTensor, check_widths, is_stored
from ggufmerge.tokenizers import Alignment, Settings, TokenRule, align, read_vocabulary
from ggufmerge.types import TensorType
from tests.tiny import write_tiny_llama, write_tiny_lora
from tests.tokenizers import naive

CONTROL, USER = int(gguf.TokenType.CONTROL), int(gguf.TokenType.USER_DEFINED)
ADDED = {
    "a": {"<x>": CONTROL, "<y>": USER},
    "b": {"<y>": USER, "<z>": CONTROL, "<v>": USER},
    "c": {"<z>": CONTROL, "<y>": USER},
}
WORDS = 292  # tokens of a tiny BPE vocabulary without placeholders
RULES = {
    "<w>": (TokenRule("row", model=1, token="<z>"), {"model": 1, "token": "<z>"}),
    "<y>": (TokenRule("zero", force=True), {"zero": True, "force": True}),
    "<q>": (TokenRule(), {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a, b, c with different added tokens, in Q8_0, as F32 for a.f32, and an adapter for b."""
    place = tmp_path_factory.mktemp("rows")
    for i, (name, added) in enumerate(ADDED.items()):
        weights = write_tiny_llama(
            place / f"{name}.gguf",
            layers=1,
            tokenizer="bpe",
            added=added,
            vocab=WORDS + len(added),
            tune=(i, 0.3),
            type="Q8_0",
        )
        if name == "b":
            write_tiny_lora(place / "lora.gguf", weights, targets=["token_embd.weight"])
    return place


def opened(folder: Path, *references: str) -> list[Source]:
    return [open_source(ModelReference.parse(r), folder) for r in references or ("a.gguf", "b.gguf", "c.gguf")]


def alignment_of(sources: Sequence[Source], base: int | None = None, settings: Settings | None = None) -> Alignment:
    vocabularies = [read_vocabulary(s.file.metadata, s.label) for s in sources]
    return align(vocabularies, base, settings or Settings("union"))


def whole(alignment: Alignment, sources: Sequence[Source], model: int, name: str) -> np.ndarray:
    tensor = AlignedTensor(alignment, sources, model, name)
    out = np.empty((tensor.rows, tensor.n), np.float32)
    tensor.read(0, out)
    return out


def expected(
    alignment: Alignment, sources: Sequence[Source], name: str, base: int | None, rules=None
) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    matrices = []
    for source in sources:
        reader = source.open_tensor(name)
        matrices.append(np.empty((reader.rows, reader.n), np.float32))
        reader.read(0, matrices[-1])
    tokens = [list(s.metadata["tokenizer.ggml.tokens"]) for s in sources]
    padding = int(alignment.vocabulary.padding.sum())
    out = alignment.vocabulary.tokens
    return naive.embeddings(out[: len(out) - padding], tokens, matrices, base, rules, padding)


@pytest.mark.parametrize("base", [None, 1])
@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight"])
def test_every_row_is_what_mergekit_puts_there(folder: Path, base: int | None, name: str) -> None:
    """Rows of the model, of others, means, zeros and copies, bit by bit; rows of padding to float32 precision."""
    sources = opened(folder, "a.gguf", "b.gguf+lora.gguf=0.5", "c.gguf")
    tokens = {t: rule for t, (rule, _) in RULES.items()}
    alignment = alignment_of(sources, base, Settings("union", tokens, 64))
    rules = {t: rule for t, (_, rule) in RULES.items()}
    real = ~alignment.vocabulary.padding
    assert alignment.rows == 320
    assert real.sum() == WORDS + 6
    for model, want in enumerate(expected(alignment, sources, name, base, rules)):
        got = whole(alignment, sources, model, name)
        np.testing.assert_array_equal(got[real], want[: int(real.sum())])
        np.testing.assert_allclose(got[~real], want[int(real.sum()) :], rtol=1e-5, atol=1e-7)


def test_rows_do_not_depend_on_how_they_are_read(folder: Path) -> None:
    """One at a time, in chunks of any size, from several threads: the same bits."""
    sources = opened(folder, "b.gguf+lora.gguf", "a.gguf", "c.gguf")
    alignment = alignment_of(sources, None, Settings("union", {}, 64))
    for model in range(3):
        tensor = AlignedTensor(alignment, sources, model, "token_embd.weight")

        def read(span: tuple[int, int], tensor: AlignedTensor = tensor) -> np.ndarray:
            out = np.empty((span[1] - span[0], tensor.n), np.float32)
            tensor.read(span[0], out)
            return out

        results = []
        for step, threads in ((1, 1), (7, 3), (1000, 1), (50, 4)):
            spans = [(i, min(i + step, tensor.rows)) for i in range(0, tensor.rows, step)]
            with ThreadPoolExecutor(threads) as pool:
                results.append(np.concatenate(list(pool.map(read, spans))))
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


def test_a_base_with_two_adapters_is_dequantized_once(folder: Path) -> None:
    """The halves of reading may be split: what the file holds, then adapters and rows from elsewhere."""
    sources = opened(folder, "b.gguf", "b.gguf+lora.gguf", "a.gguf")
    alignment = alignment_of(sources)
    plain, adapted, other = (AlignedTensor(alignment, sources, i, "token_embd.weight") for i in range(3))
    assert plain.same_data(adapted)
    assert not plain.same_data(other)
    out = np.empty((plain.rows, plain.n), np.float32)
    plain.dequantize(0, out)
    adapted.adapt(0, out)
    np.testing.assert_array_equal(out, whole(alignment, sources, 1, "token_embd.weight"))


def test_stored_rows_are_copied_as_bytes(folder: Path) -> None:
    """Where every row is one that a file holds, its bytes are there to be copied; a mean or an adapter forbids it."""
    sources = opened(folder, "a.gguf", "b.gguf")
    alignment = alignment_of(sources, 0)
    assert is_stored(alignment, sources, 0, "token_embd.weight", TensorType.Q8_0)
    assert not is_stored(alignment, sources, 0, "token_embd.weight", TensorType.Q4_0)
    tensor = AlignedTensor(alignment, sources, 0, "token_embd.weight")
    raw = tensor.raw_rows(0, tensor.rows)
    a, b = (s.tensors["token_embd.weight"] for s in sources)
    tokens = alignment.vocabulary.tokens
    for row, token in ((0, "<|endoftext|>"), (tokens.index("<x>"), "<x>"), (tokens.index("<z>"), "<z>")):
        source, tensor_of = (sources[1], b) if token == "<z>" else (sources[0], a)
        own = source.metadata["tokenizer.ggml.tokens"].index(token)
        np.testing.assert_array_equal(raw[row], tensor_of.raw_rows(own, own + 1)[0])
    adapted = opened(folder, "a.gguf", "b.gguf+lora.gguf")
    assert not is_stored(alignment_of(adapted, 0), adapted, 0, "token_embd.weight", TensorType.Q8_0)
    three = opened(folder)
    assert not is_stored(alignment_of(three), three, 0, "token_embd.weight", TensorType.Q8_0)


def test_a_bias_has_a_value_for_each_token(folder: Path, tmp_path: Path) -> None:
    """output.bias is a vector along the vocabulary: its values move as rows do."""
    biases = {}
    for name in ("a", "b"):
        with_bias(folder / f"{name}.gguf", tmp_path / f"{name}.gguf", biases)
    sources = opened(tmp_path, "a.gguf", "b.gguf")
    alignment = alignment_of(sources, None, Settings("union", {}, 64))
    tensor = AlignedTensor(alignment, sources, 0, "output.bias")
    assert (tensor.rows, tensor.n) == (1, alignment.rows)
    got = whole(alignment, sources, 0, "output.bias")[0]
    tokens = [list(s.metadata["tokenizer.ggml.tokens"]) for s in sources]
    real = ~alignment.vocabulary.padding
    out = [t for t, r in zip(alignment.vocabulary.tokens, real, strict=True) if r]
    columns = [biases[n][:, None] for n in ("a", "b")]
    np.testing.assert_array_equal(got[real], naive.embeddings(out, tokens, columns, None)[0][:, 0])


def with_bias(path: Path, out: Path, biases: dict[str, np.ndarray]) -> None:
    """A copy of the vocabulary of a model with nothing but an output bias."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "llama")
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        value = reader.fields[key].contents()
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key, value)
    count = len(reader.fields["tokenizer.ggml.tokens"].contents())
    biases[path.stem] = np.random.default_rng(count).standard_normal(count, np.float32)
    writer.add_tensor("output.bias", biases[path.stem])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_rows_of_another_width_cannot_be_lent(folder: Path, tmp_path: Path) -> None:
    """Nor those of a model without such a tensor."""
    write_tiny_llama(tmp_path / "wide.gguf", layers=1, embed=128)
    sources = [*opened(folder, "a.gguf"), *opened(tmp_path, "wide.gguf")]
    with pytest.raises(PlanError, match=r"token_embd.weight: rows of a.gguf have 64 values, those of wide.gguf 128"):
        check_widths("token_embd.weight", dict(enumerate(sources)))
    with pytest.raises(PlanError, match=r"output.bias: a.gguf has no such tensor"):
        check_widths("output.bias", dict(enumerate(sources)))
    cube = replace(sources[0].tensors["token_embd.weight"], shape=(2, 2, 64))
    sources[0].tensors = {"token_embd.weight": cube}
    with pytest.raises(PlanError, match=r"token_embd.weight: \[2, 2, 64\] in a.gguf, not a row for each token"):
        check_widths("token_embd.weight", dict(enumerate(sources)))
