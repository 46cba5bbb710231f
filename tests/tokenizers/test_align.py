"""Which row of which model each row of the result is made from: mergekit's rules, and where they are bettered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufmerge.errors import PlanError
from ggufmerge.tokenizers import Alignment, Settings, TokenRule, TokenType, Vocabulary, align
from ggufmerge.tokenizers.align import MEAN, PAD, ZERO
from tests.tokenizers import naive


def vocabulary(tokens: str | list[str], label: str = "v", kind: str = "gpt2", **types: int) -> Vocabulary:
    """A vocabulary of these tokens, normal ones unless `types` says otherwise."""
    return Vocabulary(label, kind, list(tokens), np.array([types.get(t, TokenType.NORMAL) for t in tokens], np.int32))


def gathered(alignment: Alignment, matrices: list[np.ndarray]) -> list[np.ndarray]:
    """Each model's matrix in the rows of the result, by the alignment's arrays alone."""
    results = []
    for model, matrix in enumerate(matrices):
        out = np.zeros((alignment.rows, matrix.shape[1]), np.float32)
        for row, own in enumerate(alignment.own(model)):
            donor = alignment.donors[row]
            if own >= 0:
                out[row] = matrix[own]
            elif donor >= 0:
                out[row] = matrices[donor][alignment.donor_rows[row]]
            elif donor == MEAN:
                owners = [m[r[row]] for m, r in zip(matrices, alignment.maps, strict=True) if r[row] >= 0]
                total = np.zeros_like(out[row])
                for values in owners:
                    total = total + values
                out[row] = total / np.float32(len(owners))
            else:
                assert donor in (ZERO, PAD)
        results.append(out)
    return results


def matrices_for(vocabularies: list[Vocabulary]) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal((len(v), 3), np.float32) for i, v in enumerate(vocabularies)]


some_vocabularies = st.lists(
    st.permutations("abcdefgh").flatmap(lambda p: st.integers(1, 8).map(lambda n: p[:n])), min_size=1, max_size=4
)


@settings(deadline=None)
@given(some_vocabularies, st.booleans(), st.integers(0, 3))
def test_a_union_is_mergekits(tokens: list[list[str]], with_base: bool, which: int) -> None:
    """Tokens, their order and every row, bit by bit, with a base and without."""
    base = which % len(tokens) if with_base else None
    vocabularies = [vocabulary(t) for t in tokens]
    alignment = align(vocabularies, base, Settings("union"))
    expected = naive.union(tokens, base or 0)
    assert alignment.vocabulary.tokens == expected
    matrices = matrices_for(vocabularies)
    for got, rows in zip(
        gathered(alignment, matrices), naive.embeddings(expected, tokens, matrices, base), strict=True
    ):
        np.testing.assert_array_equal(got, rows)


@settings(deadline=None)
@given(some_vocabularies, st.integers(0, 3), st.permutations("abcdxy"))
def test_another_vocabulary_is_taken_as_it_is(tokens: list[list[str]], base: int, wanted: list[str]) -> None:
    """A named one, of a model or not: its tokens at its ids; zeros for tokens that no model has."""
    vocabularies = [vocabulary(t) for t in tokens]
    alignment = align(vocabularies, base % len(tokens), Settings(vocabulary(wanted)))
    assert alignment.vocabulary.tokens == wanted
    matrices = matrices_for(vocabularies)
    expected = naive.embeddings(wanted, tokens, matrices, base % len(tokens))
    for got, rows in zip(gathered(alignment, matrices), expected, strict=True):
        np.testing.assert_array_equal(got, rows)


RULES = {
    "x": (TokenRule("row", model=1, token="d"), {"model": 1, "token": "d"}),
    "y": (TokenRule("row", model=0, id=2, force=True), {"model": 0, "token": 2, "force": True}),
    "z": (TokenRule("zero"), {"zero": True}),
    "a": (TokenRule("zero", force=True), {"zero": True, "force": True}),
    "b": (TokenRule("row", model=2, force=True), {"model": 2, "force": True}),
    "c": (TokenRule("row", model=1, token="d"), {"model": 1, "token": "d"}),
    "d": (TokenRule(force=True), {"force": True}),
    "e": (TokenRule(), {}),
}


@pytest.mark.parametrize("base", [None, 0, 1])
def test_single_tokens_have_rules_of_their_own(base: int | None) -> None:
    """zero, model_token and models as sources; forced ones replace rows that models have."""
    tokens = [list("abc"), list("cbd"), list("bdea")]
    vocabularies = [vocabulary(t) for t in tokens]
    alignment = align(vocabularies, base, Settings("union", {t: rule for t, (rule, _) in RULES.items()}))
    expected = naive.union(tokens, base or 0, list(RULES))
    assert alignment.vocabulary.tokens == expected
    matrices = matrices_for(vocabularies)
    rows = naive.embeddings(expected, tokens, matrices, base, {t: rule for t, (_, rule) in RULES.items()})
    for got, want in zip(gathered(alignment, matrices), rows, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_token_without_a_row_is_a_token_the_model_lacks() -> None:
    """mergekit fails on it (KeyError): the name stands in the tokenizer, the embedding is shorter."""
    short = Vocabulary("short", "gpt2", list("abc"), np.ones(3, np.int32), rows=2)
    alignment = align([short, vocabulary("cab")], None, Settings("union"))
    assert alignment.vocabulary.tokens == ["a", "b", "c"]
    assert alignment.maps[0].tolist() == [0, 1, -1]
    assert (alignment.donors[2], alignment.donor_rows[2]) == (1, 0)


def test_new_tokens_take_the_places_of_placeholders() -> None:
    """A padded vocabulary keeps its size, its own tokens their ids; placeholders of other models are no tokens."""
    unused = {f"[PAD{i}]": TokenType.UNUSED for i in range(9)}
    padded = vocabulary(["a", "[PAD1]", "b", "[PAD3]"], **{**unused, "[PAD3]": TokenType.USER_DEFINED})
    other = vocabulary(["b", "x", "a", "y", "z", "[PAD5]"], **unused)
    alignment = align([padded, other], 0, Settings("union"))
    assert alignment.vocabulary.tokens == ["a", "x", "b", "y", "z"]
    assert alignment.maps[1].tolist() == [2, 1, 0, 3, 4]
    assert alignment.own(0).tolist() == [0, -1, 2, -1, -1]
    assert alignment.added == 3
    assert alignment.dropped == (0, 0)


def test_padding_fills_up_to_a_multiple() -> None:
    """With placeholders as llama.cpp's converter names them; each model's rows there are its mean."""
    alignment = align([vocabulary("abc"), vocabulary("bd")], 0, Settings("union", {}, 8))
    assert alignment.vocabulary.tokens == [*"abcd", "[PAD4]", "[PAD5]", "[PAD6]", "[PAD7]"]
    assert alignment.vocabulary.types.tolist() == [TokenType.NORMAL] * 4 + [TokenType.UNUSED] * 4
    assert alignment.donors[4:].tolist() == [PAD] * 4
    assert alignment.filled(1) == {"copied": 2, "averaged": 0, "zero": 0, "padding": 4}


def test_a_vocabulary_that_fits_is_left_alone() -> None:
    """Same tokens, or a union that adds nothing: the very same vocabulary, and every row its own."""
    base = vocabulary("abcd")
    for others in (["abcd"], ["dc", "b"]):
        alignment = align([base, *map(vocabulary, others)], 0, Settings("union", {}, 4))
        assert alignment.vocabulary is base
        assert alignment.is_identity(0, 4)
    assert align([base, vocabulary("abcd")], 0, Settings("base")).is_identity(1, 4)


def test_types_come_from_the_model_that_has_the_token() -> None:
    """A second token for the unknown becomes a control token; tokens that rules invent are user-defined, or what they
    are a copy of."""
    b = vocabulary(["a", "<c>", "<u>", "n"], **{"<c>": TokenType.CONTROL, "<u>": TokenType.UNKNOWN})
    rules = {"new": TokenRule(), "turn": TokenRule("row", model=1, token="<c>")}
    alignment = align([vocabulary("a"), b], 0, Settings("union", rules))
    types = dict(zip(alignment.vocabulary.tokens, alignment.vocabulary.types, strict=True))
    assert types == {
        "a": TokenType.NORMAL,
        "<c>": TokenType.CONTROL,
        "<u>": TokenType.CONTROL,
        "n": TokenType.NORMAL,
        "new": TokenType.USER_DEFINED,
        "turn": TokenType.CONTROL,
    }


def test_added_pieces_rank_below_all_that_stand_before_them() -> None:
    """In a SentencePiece vocabulary, and in the order that their model gives them; user-defined ones keep theirs."""

    def scored(pieces: dict[str, float], **types: int) -> Vocabulary:
        plain = vocabulary(list(pieces), kind="llama", **types)
        return Vocabulary("v", "llama", plain.tokens, plain.types, np.array(list(pieces.values()), np.float32))

    models = [
        scored({"a": -1, "b": -70000.5}),
        scored({"a": -5, "x": -2, "y": -1, "<t>": -1000}, **{"<t>": TokenType.USER_DEFINED}),
        scored({"z": 3, "x": 9}),
    ]
    union = align(models, 0, Settings("union")).vocabulary
    assert union.scores is not None
    score = dict(zip(union.tokens, union.scores.tolist(), strict=True))
    assert score["a"] > score["b"] > score["y"] > score["x"] > score["z"]
    assert (score["a"], score["b"], score["<t>"]) == (-1, -70000.5, -1000)


def test_dropped_tokens_are_counted() -> None:
    """Those of a model that the result has no place for."""
    assert align([vocabulary("ab"), vocabulary("bcd")], 0, Settings("base")).dropped == (0, 2)


@pytest.mark.parametrize(
    ("second", "settings", "complaint"),
    [
        (
            vocabulary("ab", kind="llama"),
            Settings("base"),
            'different kinds of tokenizers: one has "gpt2", v has "llama"',
        ),
        (vocabulary("ab"), Settings("union", {"x": TokenRule("row", model=1)}), "v has no row for the token 'x'"),
        (
            vocabulary("ab"),
            Settings("union", {"x": TokenRule("row", model=1, id=2)}),
            "no row for a token with the id 2",
        ),
        (vocabulary(["[PAD3]"]), Settings("union", {}, 4), "called like a placeholder"),
    ],
)
def test_what_cannot_be_aligned_is_refused(second: Vocabulary, settings: Settings, complaint: str) -> None:
    """In one line that names the model."""
    with pytest.raises(PlanError, match=complaint):
        align([vocabulary("ab", "one"), second], 0, settings)


def test_only_known_kinds_have_a_union() -> None:
    """A Unigram vocabulary cuts texts by the scores of all pieces together; there the base's is taken or nothing."""
    models = [vocabulary("ab", kind="t5"), vocabulary("bc", kind="t5")]
    with pytest.raises(PlanError, match="write tokenizer_source: base"):
        align(models, 0, Settings("union"))
    assert align(models, 0, Settings("base")).maps[1].tolist() == [-1, 0]
