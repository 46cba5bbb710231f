"""Merges of models with different vocabularies: the files that come out, in llama.cpp and byte by byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ggufmerge
from ggufmerge.engine import Plan, make_plan
from ggufmerge.errors import GgufmergeError, PlanError, RecipeError
from ggufmerge.evaluation import LlamaModel
from ggufmerge.recipe import load_recipe
from tests.tiny import WORDS, write_tiny_llama, write_tiny_lora

CONTROL, USER = int(gguf.TokenType.CONTROL), int(gguf.TokenType.USER_DEFINED)
OTHER_WORDS = (*reversed(WORDS), "these", "otter", "theirs")

LINEAR = "{merge_method: linear, models: [{model: A}, {model: B}], parameters: {weight: 1}, MORE}\n"
SLERP = "{merge_method: slerp, base_model: A, models: [{model: A}, {model: B}], parameters: {t: T}, MORE}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bpe.a, bpe.b, spm.a, spm.b: two models of each kind, with other words and other added tokens, in Q8_0.

    bpe.twin has the vocabulary of bpe.a.
    """
    place = tmp_path_factory.mktemp("vocabularies")
    for kind in ("bpe", "spm"):
        a = write_tiny_llama(
            place / f"{kind}.a.gguf", tokenizer=kind, vocab=400, added={"<tool>": CONTROL, "<note>": USER}, type="Q8_0"
        )
        write_tiny_llama(
            place / f"{kind}.b.gguf",
            tokenizer=kind,
            words=OTHER_WORDS,
            vocab=450,
            added={"<note>": USER, "<plan>": CONTROL},
            tune=(1, 0.1),
            type="Q8_0",
            metadata={"tokenizer.chat_template": "{{b}}"},
        )
        if kind == "bpe":
            added = {"<tool>": CONTROL, "<note>": USER}
            write_tiny_llama(
                place / "bpe.twin.gguf", tokenizer=kind, vocab=400, added=added, tune=(2, 0.1), type="Q8_0"
            )
            write_tiny_lora(place / "lora.gguf", a, targets=["token_embd.weight", "*attn_q.weight"])
    return place


def recipe(text: str, kind: str = "bpe", more: str = "tokenizer_source: union", **words: str) -> str:
    words = {"MORE": more, "A": f"{kind}.a.gguf", "B": f"{kind}.b.gguf", **words}
    for word, value in words.items():
        text = text.replace(word, value)
    return text


@pytest.fixture
def build(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(text: str, name: str = "out.gguf", **options: Any) -> Path:
        (folder / "recipe.yaml").write_text(text)
        ggufmerge.build(folder / "recipe.yaml", tmp_path / name, **options)
        return tmp_path / name

    return run


@pytest.fixture
def plan(folder: Path) -> Callable[[str], Plan]:
    def run(text: str) -> Plan:
        (folder / "recipe.yaml").write_text(text)
        return make_plan(load_recipe(folder / "recipe.yaml"))[0]

    return run


def raw(path: Path) -> dict[str, bytes]:
    with ggufmerge.open(path) as file:
        return {name: bytes(t.raw) for name, t in file.tensors.items()}


def tokens_of(path: Path) -> list[str]:
    with ggufmerge.open(path) as file:
        return list(file.metadata["tokenizer.ggml.tokens"])


class Cutter:
    """A model in llama.cpp that cuts texts into the names of its tokens."""

    def __init__(self, path: Path) -> None:
        self.tokens, self.model = tokens_of(path), LlamaModel(path, threads=1)

    def cut(self, text: str, *, special: bool = False) -> list[str]:
        return [self.tokens[i] for i in self.model.tokenize(text, special=special)]


@pytest.fixture
def cutter() -> Iterator[Callable[[Path], Cutter]]:
    """Opens models, and closes them in the end."""
    opened: list[Cutter] = []

    def run(path: Path) -> Cutter:
        opened.append(Cutter(path))
        return opened[-1]

    yield run
    for one in opened:
        one.model.close()


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_a_union_cuts_texts_as_its_parents_do(
    folder: Path, build: Callable[..., Path], cutter: Callable[[Path], Cutter], kind: str
) -> None:
    """llama.cpp loads it, computes finite logits, and where both parents cut a text into the same tokens, so does the
    union; added tokens of either are found, and what the first model alone knows is cut as it does."""
    a, b, union = map(
        cutter, (folder / f"{kind}.a.gguf", folder / f"{kind}.b.gguf", build(recipe(LINEAR, kind), out_type="Q8_0"))
    )
    dice = random.Random(3)
    words = [*WORDS, "zebra", "a-b", "né", "<note>"]
    texts = [" ".join(dice.choices(words, k=6)) for _ in range(150)]
    texts += ["".join(dice.choices("thewasoni ", k=20)) for _ in range(300)]
    agreed = [text for text in texts if a.cut(text) == b.cut(text)]
    assert len(agreed) > 100
    for text in agreed:
        assert union.cut(text) == a.cut(text), text
    assert union.cut("that<tool>was", special=True) == a.cut("that<tool>was", special=True)
    assert union.cut("that<plan>was", special=True) == b.cut("that<plan>was", special=True)
    ids = union.model.tokenize("the <note> otter <tool> <plan>", special=True)
    assert np.isfinite(union.model.logits(ids)).all()


def test_pieces_of_the_second_model_are_used_after_those_of_the_first(
    build: Callable[..., Path], cutter: Callable[[Path], Cutter]
) -> None:
    """A SentencePiece union knows the words of both; BPE has no merges for the second model's (as in mergekit)."""
    union = cutter(build(recipe(LINEAR, "spm")))
    assert union.cut("that otter") == ["▁that", "▁otter"]
    assert cutter(build(recipe(LINEAR, "bpe"), "bpe.gguf")).cut(" otter") == ["Ġo", "t", "t", "e", "r"]


def test_the_union_has_the_tokens_of_both_and_describes_itself(folder: Path, build: Callable[..., Path]) -> None:
    """Ids of the first stay, sizes agree everywhere, and what cannot hold for another vocabulary is gone."""
    out = build(recipe(LINEAR))
    first, second = (tokens_of(folder / f"bpe.{n}.gguf") for n in "ab")
    with ggufmerge.open(out) as file, ggufmerge.open(folder / "bpe.a.gguf") as a:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        own = [t for t in first if not t.startswith("[PAD")]
        assert tokens[: len(own)] == own
        assert {t for t in second if not t.startswith("[PAD")} <= set(tokens)
        assert len(tokens) == 400  # they fit into the placeholders
        assert file.metadata["llama.vocab_size"] == len(tokens) == len(file.metadata["tokenizer.ggml.token_type"])
        assert {t.shape for n, t in file.tensors.items() if n in ("token_embd.weight", "output.weight")} == {(400, 64)}
        for key in ("merges", "bos_token_id", "eos_token_id", "padding_token_id", "pre"):
            assert file.metadata.raw(f"tokenizer.ggml.{key}") == a.metadata.raw(f"tokenizer.ggml.{key}")


def test_rows_that_both_have_are_merged_and_others_are_lent(folder: Path, build: Callable[..., Path]) -> None:
    """By hand, for a token of both, of the first only and of the second only."""
    out = build(recipe(LINEAR), out_type="F32")
    with (
        ggufmerge.open(folder / "bpe.a.gguf") as a,
        ggufmerge.open(folder / "bpe.b.gguf") as b,
        ggufmerge.open(out) as file,
    ):
        tokens = {f: list(f.metadata["tokenizer.ggml.tokens"]) for f in (a, b, file)}
        for name in ("token_embd.weight", "output.weight"):
            x = {f: f.tensors[name].dequantize() for f in (a, b, file)}
            rows = {
                token: [x[f][tokens[f].index(token)] if token in tokens[f] else None for f in (a, b, file)]
                for token in ("Ġthe", "<note>", "<tool>", "<plan>", "Ġotter")
            }
            for token, (left, right, merged) in rows.items():
                left, right = right if left is None else left, left if right is None else right
                np.testing.assert_array_equal(merged, (left + right) / 2, err_msg=token)


@pytest.mark.parametrize("source", ["union", "base", "A"])
def test_one_vocabulary_needs_no_alignment(
    folder: Path, build: Callable[..., Path], plan: Callable[[str], Plan], source: str
) -> None:
    """Asked for or not: the same actions, the same bytes, the same metadata but for the recipe."""
    same = {"B": "bpe.twin.gguf"}
    text = recipe(SLERP, more=f"tokenizer_source: {source}", T="[0, 0.5]", **same)
    without = recipe(SLERP, more="name: x", T="[0, 0.5]", **same)
    assert [(t.name, t.action) for t in plan(text).tensors] == [(t.name, t.action) for t in plan(without).tensors]
    assert plan(text).count("copy") > 0
    out, expected = build(text.replace("}\n", ", name: x}\n")), build(without, "without.gguf")
    assert raw(out) == raw(expected)
    with ggufmerge.open(out) as file, ggufmerge.open(expected) as other:
        assert {k for k in file.metadata if file.metadata.raw(k) != other.metadata.raw(k)} == {
            "ggufmerge.recipe",
            "ggufmerge.recipe.sha256",
        }


def test_the_base_is_copied_where_nothing_of_others_is_left(
    folder: Path, build: Callable[..., Path], plan: Callable[[str], Plan]
) -> None:
    """slerp at t = 0 with the base's vocabulary: its bytes, although the other model has another vocabulary."""
    text = recipe(SLERP, more="tokenizer_source: base", T="0")
    assert plan(text).count("copy") == len(plan(text).tensors)
    out = build(text)
    assert raw(out) == raw(folder / "bpe.a.gguf")
    assert tokens_of(out) == tokens_of(folder / "bpe.a.gguf")


def test_moved_rows_of_a_single_model_keep_their_bytes(
    folder: Path, build: Callable[..., Path], plan: Callable[[str], Plan]
) -> None:
    """slerp at t = 1 with the base's vocabulary: rows of the other model at the base's ids, never requantized."""
    text = recipe(SLERP, more="tokenizer_source: base", T="1")
    assert {t.action for t in plan(text).tensors} == {"copy"}
    out = build(text, chunk=1024)
    with (
        ggufmerge.open(folder / "bpe.a.gguf") as a,
        ggufmerge.open(folder / "bpe.b.gguf") as b,
        ggufmerge.open(out) as file,
    ):
        index = {t: i for i, t in enumerate(b.metadata["tokenizer.ggml.tokens"])}
        for name in ("token_embd.weight", "output.weight"):
            got, own, other = (f.tensors[name].raw_rows(0, f.tensors[name].rows) for f in (file, a, b))
            for i, token in enumerate(a.metadata["tokenizer.ggml.tokens"]):
                expected = other[index[token]] if token in index else own[i]
                assert bytes(got[i]) == bytes(expected), token


def test_what_moved_rows_agree_in_keeps_its_bytes(tmp_path: Path) -> None:
    """A model merged with itself in another order of tokens is itself, block by block."""
    order = np.random.default_rng(5).permutation(300)
    own = write_tiny_llama(tmp_path / "a.gguf", tokenizer="bpe", vocab=300, type="Q6_K", embed=256, ff=256)
    names = tokens_of(tmp_path / "a.gguf")
    with ggufmerge.open(tmp_path / "a.gguf") as file:
        types = file.metadata["tokenizer.ggml.token_type"]
    tokens = {
        "tokenizer.ggml.tokens": [names[i] for i in order],
        "tokenizer.ggml.token_type": [int(types[i]) for i in order],
    }
    shuffled = {name: own[name][order] for name in ("token_embd.weight", "output.weight")}
    write_tiny_llama(
        tmp_path / "b.gguf",
        tokenizer="bpe",
        vocab=300,
        type="Q6_K",
        embed=256,
        ff=256,
        replace=shuffled,
        metadata=tokens,
    )
    text = recipe(LINEAR, more="tokenizer_source: base, base_model: A", A="a.gguf", B="b.gguf")
    (tmp_path / "r.yaml").write_text(text)
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    assert raw(tmp_path / "out.gguf") == raw(tmp_path / "a.gguf")


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_another_vocabulary_brings_its_whole_tokenizer(
    folder: Path, build: Callable[..., Path], cutter: Callable[[Path], Cutter], kind: str
) -> None:
    """Merges, special ids, flags and chat template of the named model, not of the one the rest comes from."""
    out = build(recipe(LINEAR, kind, more="tokenizer_source: B"))
    with ggufmerge.open(folder / f"{kind}.b.gguf") as b, ggufmerge.open(out) as file:
        keys = {k for k in b.metadata if k.startswith("tokenizer.")}
        assert keys == {k for k in file.metadata if k.startswith("tokenizer.")}
        assert all(file.metadata.raw(k) == b.metadata.raw(k) for k in keys)
        assert file.metadata["llama.vocab_size"] == 450
    second, merged = cutter(folder / f"{kind}.b.gguf"), cutter(out)
    for text in ("the otter was theirs", "zebra <note>"):
        assert merged.cut(text) == second.cut(text)


def test_a_vocabulary_may_come_from_a_file_without_weights(folder: Path, build: Callable[..., Path]) -> None:
    """Such as the ggml-vocab files of llama.cpp; rows of tokens that no model has are zero."""
    writer = gguf.GGUFWriter(folder / "vocab.gguf", "llama")
    tokens = [*reversed(tokens_of(folder / "bpe.a.gguf")[:280]), "<fresh>"]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = build(recipe(LINEAR, more="tokenizer_source: vocab.gguf"))
    assert tokens_of(out) == tokens
    with (
        ggufmerge.open(out) as file,
        ggufmerge.open(folder / "bpe.a.gguf") as a,
        ggufmerge.open(folder / "bpe.b.gguf") as b,
    ):
        x, y, z = (f.tensors["token_embd.weight"].dequantize() for f in (file, a, b))
        assert (x[-1] == 0).all()
        np.testing.assert_allclose(x[21:280], (y[258::-1] + z[258::-1]) / 2, atol=0.01)  # what both have alike


TOKENS = """tokenizer: {source: union, pad_to_multiple_of: 64, tokens: {
  "<new>": {source: {kind: model_token, model: B, token: "<plan>"}},
  "<plan>": {source: {kind: zero}, force: true},
  "<tool>": {source: {kind: model_token, model: A, token_id: 5}},
  "Ġthe": {source: B, force: true}}}"""


def test_single_tokens_may_have_other_rows(folder: Path, build: Callable[..., Path]) -> None:
    """mergekit's `tokens`, on files: copies, zeros, forced rows; and the size is a multiple of 64."""
    out = build(recipe(LINEAR, more=recipe(TOKENS)), out_type="F32")
    with (
        ggufmerge.open(folder / "bpe.a.gguf") as a,
        ggufmerge.open(folder / "bpe.b.gguf") as b,
        ggufmerge.open(out) as file,
    ):
        at = {f: {t: i for i, t in enumerate(f.metadata["tokenizer.ggml.tokens"])} for f in (a, b, file)}
        x, y, merged = (f.tensors["token_embd.weight"].dequantize() for f in (a, b, file))
        assert len(merged) == len(at[file]) == 448
        row = {t: merged[at[file][t]] for t in ("<new>", "<plan>", "<tool>", "Ġthe", "[PAD447]")}
        np.testing.assert_array_equal(row["<new>"], y[at[b]["<plan>"]])
        assert (row["<plan>"] == 0).all()
        np.testing.assert_array_equal(row["<tool>"], (x[at[a]["<tool>"]] + x[5]) / 2)
        np.testing.assert_array_equal(row["Ġthe"], y[at[b]["Ġthe"]])
        real = [i for t, i in at[file].items() if not t.startswith("[PAD")]
        np.testing.assert_allclose(row["[PAD447]"], merged[real].mean(axis=0), rtol=1e-4, atol=1e-6)
    with LlamaModel(out, threads=1) as model:
        assert model.tokenize("<new>", special=True) == [at[file]["<new>"]]


def test_threads_and_chunk_size_do_not_change_a_byte(folder: Path, tmp_path: Path) -> None:
    """With moved, averaged and padding rows, and an adapter."""
    text = """merge_method: linear
models: [{model: B}, {model: A+lora.gguf}, {model: A}]
parameters: {weight: [0.2, 0.7]}
name: same
tokenizer: {pad_to_multiple_of: 64}
"""
    (folder / "same.yaml").write_text(recipe(text))
    results = []
    for i, (threads, chunk) in enumerate([(1, 1 << 18), (2, 1 << 18), (2, 1), (3, 700)]):
        ggufmerge.build(folder / "same.yaml", tmp_path / f"{i}.gguf", threads=threads, chunk=chunk)
        results.append((tmp_path / f"{i}.gguf").read_bytes())
    assert len(set(results)) == 1


def test_a_tied_embedding_stands_in_for_the_output(tmp_path: Path) -> None:
    """Also for rows that it lends to a model with an output of its own."""
    tied = write_tiny_llama(
        tmp_path / "tied.gguf", tokenizer="bpe", vocab=294, added={"<t>": CONTROL, "<u>": USER}, tied=True
    )
    own = write_tiny_llama(tmp_path / "own.gguf", tokenizer="bpe", vocab=292, tune=(1, 0.1))
    (tmp_path / "r.yaml").write_text(
        "{merge_method: linear, models: [{model: own.gguf}, {model: tied.gguf}], parameters: {weight: 1}, "
        "tokenizer_source: union}\n"
    )
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    with ggufmerge.open(tmp_path / "out.gguf") as file:
        head = file.tensors["output.weight"].dequantize()
    np.testing.assert_array_equal(head[293], tied["token_embd.weight"][293])
    np.testing.assert_array_equal(head[7], (own["output.weight"][7] + tied["token_embd.weight"][7]) / 2)


def test_grafted_embeddings_get_the_rows_of_the_result(folder: Path, build: Callable[..., Path]) -> None:
    """A graft is one model's tensor, in the vocabulary of the result."""
    out = build(
        recipe(LINEAR, more="tokenizer_source: base, base_model: A, graft: [{model: B, tensors: [token_embd]}]")
    )
    moved = build(recipe(SLERP, more="tokenizer_source: base", T="1"), "moved.gguf")
    assert raw(out)["token_embd.weight"] == raw(moved)["token_embd.weight"]
    assert raw(out)["output.weight"] != raw(moved)["output.weight"]


def test_a_stage_may_have_a_vocabulary_of_its_own(folder: Path, build: Callable[..., Path]) -> None:
    """Later documents of a recipe see the tokens that an earlier one brings together, as models and as tokenizers."""
    stage = recipe(LINEAR.replace("\n", ""), more="tokenizer: {pad_to_multiple_of: 64}, name: both")
    last = "merge_method: slerp\nbase_model: A\nmodels: [{model: A}, {model: both}]\nparameters: {t: 1}\n"
    both = build(stage + "\n", "both.gguf")
    out = build(f"{stage}\n---\n{recipe(last)}tokenizer_source: both\n")
    assert raw(out) == raw(both)
    assert tokens_of(out) == tokens_of(both)


def test_embedding_rows_beyond_the_tokens_are_left_out(tmp_path: Path) -> None:
    """Some files have more rows than tokens, which llama.cpp refuses; the result has a row for each token."""
    for i, name in enumerate("ab"):
        tokens = {"tokenizer.ggml.tokens": [f"t{j}" for j in range(300)], "tokenizer.ggml.token_type": [1] * 300}
        write_tiny_llama(tmp_path / f"{name}.gguf", tokenizer="bpe", vocab=320, metadata=tokens, tune=(i, 0.1))
    (tmp_path / "r.yaml").write_text(recipe(LINEAR, more="tokenizer_source: base", A="a.gguf", B="b.gguf"))
    ggufmerge.build(tmp_path / "r.yaml", tmp_path / "out.gguf")
    with ggufmerge.open(tmp_path / "out.gguf") as file:
        assert file.tensors["token_embd.weight"].shape == (300, 64)
        assert file.metadata["llama.vocab_size"] == 300


def test_the_plan_says_what_happens_to_tokens(plan: Callable[[str], Plan]) -> None:
    """How many rows come from elsewhere, by model and rule; in JSON, too. Another vocabulary is another plan."""
    planned = plan(recipe(LINEAR, more="tokenizer_source: union"))
    assert Plan.from_json(json.loads(json.dumps(planned.to_json()))) == planned
    vocabulary = planned.vocabulary
    assert vocabulary is not None
    assert (vocabulary.source, vocabulary.tokens) == ("union", 400)
    assert vocabulary.filled["bpe.a.gguf"] == {"copied": vocabulary.added, "averaged": 0, "zero": 0, "padding": 0}
    embedding = next(t for t in planned.tensors if t.name == "token_embd.weight")
    added = vocabulary.added
    assert embedding.decisions[0] == (
        f"{added} of the 400 rows of bpe.a.gguf are not its own: {added} copied from other models or tokens"
    )
    base = plan(recipe(LINEAR, more="tokenizer_source: base"))
    assert base.vocabulary is not None
    assert base.vocabulary.digest != vocabulary.digest
    assert base.vocabulary.dropped["bpe.b.gguf"] == vocabulary.added
    embedding = next(t for t in base.tensors if t.name == "token_embd.weight")
    assert embedding.decisions[-1] == f"tokens of bpe.b.gguf that the result lacks: {vocabulary.added}"
    assert any("no base_model: the vocabulary is that of bpe.a.gguf" in w for w in base.warnings)


def test_models_that_cut_texts_otherwise_are_named(folder: Path, plan: Callable[[str], Plan]) -> None:
    """Tokens can be matched, but one of the models will see other ones than it was trained on."""
    write_tiny_llama(folder / "pre.gguf", tokenizer="bpe", metadata={"tokenizer.ggml.pre": "qwen2"})
    warnings = plan(recipe(LINEAR, B="pre.gguf")).warnings
    [line] = [line for line in warnings if line.startswith("pre.gguf differs from bpe.a.gguf in")]
    assert "tokenizer.ggml.pre ('qwen2', taken 'gpt-2': texts are cut otherwise)" in line


def test_without_alignment_different_vocabularies_are_refused(plan: Callable[[str], Plan]) -> None:
    """One line: both sizes, the first token that differs, and the three ways out."""
    with pytest.raises(PlanError) as error:
        plan(recipe(LINEAR, more="name: x"))
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(
        "recipe.yaml:1:24: "
        "different vocabularies: bpe.a.gguf has 400 tokens, bpe.b.gguf has 450, and token 259 is 'Ġt' in one and 'Ġn'"
    )
    for way in ('"tokenizer_source: base"', '"tokenizer_source: union"', "merge models of one tokenizer"):
        assert way in line


@pytest.mark.parametrize(
    ("more", "error", "complaint"),
    [
        ("tokenizer: {tokens: {x: {source: c.gguf}}}", RecipeError, "c.gguf does not take part in the merge"),
        ("tokenizer: {tokens: {<x>: {source: B}}}", PlanError, "bpe.b.gguf has no row for the token '<x>'"),
        ("tokenizer_source: spm.a.gguf", PlanError, "different kinds of tokenizers"),
        ("tokenizer_source: none.gguf", GgufmergeError, "none.gguf"),
    ],
)
def test_impossible_wishes_are_refused_before_work_starts(
    plan: Callable[[str], Plan], more: str, error: type[Exception], complaint: str
) -> None:
    """With one line that says which token or model."""
    with pytest.raises(error, match=complaint) as raised:
        plan(recipe(LINEAR, more=recipe(more)))
    assert "\n" not in str(raised.value)


def test_models_without_a_vocabulary_need_none(tmp_path: Path) -> None:
    """A recipe that asks for the base's tokenizer still merges models that have no tokenizer at all."""
    keys: Sequence[str] = ("model", "tokens", "scores", "token_type")
    for i, name in enumerate("ab"):
        write_tiny_llama(tmp_path / f"{name}.gguf", layers=1, tune=(i, 0.1))
        strip(tmp_path / f"{name}.gguf", [f"tokenizer.ggml.{k}" for k in keys])
    (tmp_path / "r.yaml").write_text(recipe(LINEAR, more="tokenizer_source: base", A="a.gguf", B="b.gguf"))
    assert make_plan(load_recipe(tmp_path / "r.yaml"))[0].vocabulary is None


def strip(path: Path, keys: Sequence[str]) -> None:
    """Write a file anew without some keys."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for key in ("llama.block_count", "llama.embedding_length"):
        writer.add_uint32(key, reader.fields[key].contents())
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)
