"""Models in the vocabulary of the result: to whoever plans and merges they look like any other source."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source
from ggufmerge.sources.aligned import aligned
from ggufmerge.tokenizers import Settings, align, read_vocabulary
from ggufmerge.types import TensorType
from tests.tiny import write_tiny_llama

EMBEDDING, HEAD, OTHER = "token_embd.weight", "output.weight", "blk.0.attn_q.weight"
TOKENS = 294  # of the union: 292 of both, and one of each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a and b with a token each that the other lacks, tied.gguf like b with its head tied to its embedding."""
    place = tmp_path_factory.mktemp("aligned")
    kind = int(gguf.TokenType.USER_DEFINED)
    for name, token, tied in (("a", "<a>", False), ("b", "<b>", False), ("tied", "<b>", True)):
        tune = None if name == "a" else (1, 0.3)
        options = {"tokenizer": "bpe", "vocab": 293, "added": {token: kind}, "tune": tune, "type": "Q8_0"}
        write_tiny_llama(place / f"{name}.gguf", layers=1, tied=tied, **options)
    return place


def models(folder: Path, *names: str) -> tuple[list[Source], list[Source]]:
    """Sources as their files are, and the same in the union of their vocabularies, rows lent by the first."""
    sources = [open_source(ModelReference(f"{name}.gguf"), folder) for name in names]
    vocabularies = [read_vocabulary(s.file.metadata, s.label) for s in sources]
    return sources, aligned(sources, align(vocabularies, 0, Settings("union")))


def values(source: Source, name: str, role: str = "") -> np.ndarray:
    reader = source.open_tensor(name, role)
    out = np.empty((reader.rows, reader.n), np.float32)
    reader.read(0, out)
    return out


def test_tensors_have_the_shapes_of_the_result(folder: Path) -> None:
    """Those with a row per token; all others are what they are in the file."""
    sources, same = models(folder, "a", "b")
    for source, now in zip(sources, same, strict=True):
        assert list(now.tensors) == list(source.tensors)
        assert now.tensors[EMBEDDING].shape == now.tensors[HEAD].shape == (TOKENS, 64)
        assert (now.tensors[HEAD].rows, now.tensors[HEAD].n) == (TOKENS, 64)
        assert now.tensors[OTHER] == source.tensors[OTHER]
        assert (now.moves(EMBEDDING), now.moves(OTHER)) == (True, False)


def test_a_model_whose_rows_stay_is_read_from_its_file(folder: Path) -> None:
    """No row is gathered where all are in their places already, whatever happens to the other models."""
    sources, same = models(folder, "a", "a", "b")
    union = models(folder, "a", "b")[1][0]
    assert union.open_tensor(EMBEDDING).gathered
    assert not union.open_tensor(OTHER).gathered
    short = aligned(sources, align([read_vocabulary(s.file.metadata, s.label) for s in sources], 0, Settings("base")))
    assert [source.moves(EMBEDDING) for source in short] == [False, False, True]
    assert [source.open_tensor(EMBEDDING).gathered for source in short] == [False, False, True]
    assert short[0].notes(EMBEDDING) == []
    assert short[2].notes(EMBEDDING) != []
    assert same[2].fingerprint() == sources[2].fingerprint()


def test_an_embedding_is_lent_rows_by_its_role(folder: Path) -> None:
    """As the embedding it takes rows of embeddings, as a tied head those of heads."""
    (a, _), (_, tied) = models(folder, "a", "tied")
    token = TOKENS - 2
    np.testing.assert_array_equal(values(tied, EMBEDDING)[token], values(a, EMBEDDING)[token])
    np.testing.assert_array_equal(values(tied, EMBEDDING, HEAD)[token], values(a, HEAD)[token])
    assert not np.array_equal(values(a, EMBEDDING)[token], values(a, HEAD)[token])


def test_bytes_are_stored_where_every_row_is_a_row_of_a_file(folder: Path) -> None:
    """Then they can be copied, and say what reading gives."""
    sources, (_, now) = models(folder, "a", "b")
    assert now.stores(EMBEDDING, TensorType.Q8_0)
    assert not now.stores(EMBEDDING, TensorType.Q4_0)
    reader = now.open_tensor(EMBEDDING)
    assert reader.stores(TensorType.Q8_0)
    own = sources[1].metadata["tokenizer.ggml.tokens"].index("<b>")
    raw = sources[1].file.tensors[EMBEDDING].raw_rows(own, own + 1)
    np.testing.assert_array_equal(reader.intact_rows(TOKENS - 1, TOKENS), raw)


def test_the_metadata_taken_over_have_the_vocabulary_of_the_result(folder: Path) -> None:
    """Of an aligned source; of any other its own."""
    sources, same = models(folder, "a", "b")
    tokens = same[0].editor()["tokenizer.ggml.tokens"]
    assert tokens[-2:] == ["<a>", "<b>"]
    assert sources[0].editor() == sources[0].file.metadata
