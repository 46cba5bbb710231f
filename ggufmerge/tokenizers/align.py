"""Bring models with different vocabularies to one: which row of which model each row of the result is made from.

The rules are mergekit's (`mergekit/tokenizer`), on plain vocabularies and without weights:

- The result has the base's tokens, those of a named vocabulary, or the union: the base's, then what the others have
  besides, model by model in the order of their ids.
- A model keeps its own rows, moved to the new ids. A row it lacks is the base's if the base has the token, else that of
  the only model that has it, else the mean over the models that have it, else zeros.
- `tokens` says otherwise for single tokens; `force` replaces the row even in models that have one.
- `pad_to_multiple_of` adds placeholders; their rows are the mean of the model's other rows.

Where this differs from mergekit, and why, stands in `docs/tokenizers.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufmerge import keys
from ggufmerge.errors import PlanError
from ggufmerge.text import quoted
from ggufmerge.tokenizers.vocabulary import TokenType, Vocabulary, padding_token

Rows = NDArray[np.int32]

ZERO, MEAN, PAD = -1, -2, -3  # in `Alignment.donors`: no model's row, but one that is computed
_BY_SCORE = "llama"
_UNION_KINDS = ("llama", "gpt2", "gemma4", "bert")
ADDED_SCORE = -1000.0  # of added tokens in SentencePiece vocabularies, as llama.cpp's converter has it
PADDING_SCORE = -10000.0


@dataclass(frozen=True)
class TokenRule:
    """Where the row of one token comes from.

    kind: "default" for the general rule, "zero", or "row" for one row of one model.
    model, token, id: of kind "row": the model's number and its token by name or by id. Without either it is the token
        the rule is for.
    force: also in models that have a row of their own.
    """

    kind: Literal["default", "zero", "row"] = "default"
    model: int = -1
    token: str | None = None
    id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Settings:
    """What vocabulary the result gets. `source`: the base's, the union, or another one."""

    source: Literal["base", "union"] | Vocabulary = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True, eq=False)
class Alignment:
    """The vocabulary of the result, and where each of its rows comes from in each model. `rows` = tokens of the result.

    vocabulary: of the result.  donor: the vocabulary that its other metadata (merges, special ids, ...) come from.
    maps: for each model int32 [rows], the row of the model that holds the token, -1 where it has none.
    forced: bool [rows], rows that no model takes from its own.
    donors: int32 [rows], what fills the row of a model that has none (or is forced): the number of a model, ZERO, MEAN
        (over the models that have the token) or PAD (the mean over all tokens of the model itself).
    donor_rows: int32 [rows], the row of that model; -1 where `donors` names none.
    added: tokens that the donor's vocabulary does not have.  dropped: for each model the tokens that the result lacks.
    """

    vocabulary: Vocabulary
    donor: Vocabulary
    maps: tuple[Rows, ...]
    forced: NDArray[np.bool_]
    donors: Rows
    donor_rows: Rows
    added: int
    dropped: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.vocabulary)

    def own(self, model: int, start: int = 0, stop: int | None = None) -> Rows:
        """int32 [stop - start]: the rows of the model's tensor that rows [start, stop) are, -1 for those to fill."""
        return np.where(self.forced[start:stop], np.int32(-1), self.maps[model][start:stop])

    def is_identity(self, model: int, rows: int) -> bool:
        """Whether a tensor of this many rows is the same before and after."""
        return rows == self.rows and bool((self.own(model) == np.arange(rows, dtype=np.int32)).all())

    def lenders(self, model: int) -> set[int]:
        """The models that rows of this one come from where it has none of its own."""
        missing = self.own(model) < 0
        donors = {int(d) for d in np.unique(self.donors[missing])}
        averaged = missing & (self.donors == MEAN)
        return {d for d in donors if d >= 0} | {m for m, rows in enumerate(self.maps) if (rows[averaged] >= 0).any()}

    def filled(self, model: int) -> dict[str, int]:
        """How many of the model's rows are filled by which rule: "copied", "averaged", "zero" and "padding"."""
        donors = self.donors[self.own(model) < 0]
        counts = {ZERO: "zero", MEAN: "averaged", PAD: "padding"}
        return {"copied": int((donors >= 0).sum()), **{name: int((donors == k).sum()) for k, name in counts.items()}}

    def digest(self) -> str:
        """A hash of everything that the result's bytes depend on."""
        digest = hashlib.blake2b(digest_size=16)
        for key in self.donor.metadata:
            digest.update(key.encode("utf-8", "surrogateescape") + self.donor.metadata.raw(key))
        for token in self.vocabulary.tokens:
            data = token.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
        scores = () if self.vocabulary.scores is None else (self.vocabulary.scores,)
        for array in (self.vocabulary.types, *scores, *self.maps, self.forced, self.donors, self.donor_rows):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def align(vocabularies: Sequence[Vocabulary], base: int | None, settings: Settings) -> Alignment:
    """The alignment of the models that have these vocabularies.

    base: number of the base model, None for merges without one; the first model's vocabulary then stands for the
    base's, and rows are averaged.
    PlanError when the vocabularies have different kinds, or a rule names a token that a model does not have.
    """
    source = settings.source
    donor = vocabularies[base or 0] if isinstance(source, str) else source
    _check_kinds(vocabularies, donor, union=source == "union")
    result = _Growing(donor)
    if source == "union":
        for vocabulary in vocabularies:
            result.add_missing_of(vocabulary)
    for token, rule in settings.tokens.items():
        result.add(token, *_origin(token, rule, vocabularies))
    added = len(result.added)
    vocabulary = result.finish(settings.pad_to_multiple_of)
    maps = tuple(_row_map(vocabulary, v) for v in vocabularies)
    donors, donor_rows = _donors(maps, base)
    new_padding = np.arange(len(vocabulary)) >= result.unpadded
    donors[new_padding], donor_rows[new_padding] = PAD, -1
    forced = new_padding.copy()
    for token, rule in settings.tokens.items():
        at = vocabulary.index[token]
        forced[at] = rule.force
        if rule.kind != "default":
            donors[at], donor_rows[at] = (ZERO, -1) if rule.kind == "zero" else _row_of(token, rule, vocabularies)
    return Alignment(
        vocabulary=vocabulary,
        donor=donor,
        maps=maps,
        forced=forced,
        donors=donors,
        donor_rows=donor_rows,
        added=added,
        dropped=tuple(_dropped(v, vocabulary) for v in vocabularies),
    )


def different_kinds(label: str, kind: str, other: str, other_kind: str) -> PlanError:
    """The error for two models, by their labels, whose tokenizers are of two kinds (`tokenizer.ggml.model`)."""
    return PlanError(
        f"different kinds of tokenizers: {label} has {quoted(kind)}, {other} has {quoted(other_kind)}; their tokens "
        f"cannot be matched, merge models of one family ({keys.TOKENIZER_MODEL})"
    )


def _check_kinds(vocabularies: Sequence[Vocabulary], donor: Vocabulary, *, union: bool) -> None:
    for other in vocabularies:
        if other.kind != donor.kind:
            raise different_kinds(donor.label, donor.kind, other.label, other.kind)
    if union and donor.kind not in _UNION_KINDS:
        raise PlanError(
            f"{donor.label}: vocabularies of kind {quoted(donor.kind)} have no union that tokenizes as their parts do; "
            "write tokenizer_source: base"
        )


class _Growing:
    """A vocabulary to which tokens are added.

    New tokens take the places of the donor's placeholders first, so that a padded vocabulary keeps its size as long
    as it can; the ids of the donor's own tokens never change.

    In a SentencePiece vocabulary a text is cut by joining the neighbours whose token has the highest score. Added
    normal tokens get scores below all that stand before them, in their own order: so everything the donor can join is
    joined first, and a text that all parents cut into the same tokens is cut so by the result, too.
    """

    def __init__(self, donor: Vocabulary) -> None:
        self.donor = donor
        self.added: dict[str, tuple[int, float]] = {}  # token -> (type, score)
        self.unpadded = len(donor)
        normal = (donor.types == TokenType.NORMAL) & ~donor.padding
        self._floor = float(donor.scores[normal].min()) if donor.scores is not None and normal.any() else 0.0

    def add_missing_of(self, vocabulary: Vocabulary) -> None:
        """Add what the vocabulary has besides: tokens with a row that are no placeholders."""
        known, padding = self.donor.index, vocabulary.padding
        tokens = [
            i
            for i, token in enumerate(vocabulary.tokens[: vocabulary.rows])
            if token not in known and token not in self.added and not padding[i]
        ]
        scores = np.zeros(len(vocabulary), np.float32) if vocabulary.scores is None else vocabulary.scores
        normal = [i for i in tokens if vocabulary.types[i] == TokenType.NORMAL]
        shift = self._below() - max((float(scores[i]) for i in normal), default=0.0)
        for i in tokens:
            is_normal = vocabulary.types[i] == TokenType.NORMAL
            score = float(scores[i]) + shift if is_normal else float(scores[i])
            self.added[vocabulary.tokens[i]] = (_added_type(int(vocabulary.types[i])), score)
        self._floor = min([self._floor, *(float(scores[i]) + shift for i in normal)])

    def add(self, token: str, kind: int, score: float) -> None:
        """Add one token unless it is there."""
        if token not in self.donor.index and token not in self.added:
            if kind == TokenType.NORMAL:
                self._floor = score = self._below()
            self.added[token] = (_added_type(kind), score)

    def _below(self) -> float:
        """A score that float32 tells from the lowest so far."""
        return self._floor - max(1.0, abs(self._floor) * 1e-6)

    def finish(self, multiple: int | None) -> Vocabulary:
        """The vocabulary with all that was added, and placeholders up to a multiple."""
        donor = self.donor
        tokens = list(donor.tokens)
        free = np.flatnonzero(donor.padding)[: len(self.added)].tolist()
        places = [*free, *range(len(tokens), len(tokens) + len(self.added) - len(free))]
        self.unpadded = len(tokens) + len(self.added) - len(free)
        total = -(-self.unpadded // multiple) * multiple if multiple else self.unpadded
        if total == len(tokens) and not self.added:
            return donor
        names = dict(zip(places, self.added.items(), strict=True))
        types = np.full(total, TokenType.UNUSED, np.int32)
        scores = np.full(total, PADDING_SCORE, np.float32)
        types[: len(tokens)] = donor.types
        scores[: len(tokens)] = 0 if donor.scores is None else donor.scores
        tokens += map(padding_token, range(len(tokens), total))
        for place, (token, (kind, score)) in names.items():
            tokens[place], types[place], scores[place] = token, kind, score
        if len(set(tokens)) < len(tokens):
            raise PlanError(f"{donor.label}: a token is called like a placeholder; drop pad_to_multiple_of")
        has_scores = donor.scores is not None or donor.kind == _BY_SCORE
        return replace(donor, tokens=tokens, types=types, scores=scores if has_scores else None, rows=total)


def _added_type(kind: int) -> int:
    """The type of a token in its new vocabulary, which has a token for the unknown already."""
    return TokenType.CONTROL if kind == TokenType.UNKNOWN else kind


def _origin(token: str, rule: TokenRule, vocabularies: Sequence[Vocabulary]) -> tuple[int, float]:
    """(type, score) of a token that a rule adds: as in a model that has it, else as those of the token it copies."""
    for vocabulary in vocabularies:
        at = vocabulary.index.get(token)
        if at is not None:
            return int(vocabulary.types[at]), ADDED_SCORE
    if rule.kind == "row":
        model, row = _row_of(token, rule, vocabularies)
        if row < len(vocabularies[model]) and vocabularies[model].types[row] == TokenType.CONTROL:
            return TokenType.CONTROL, ADDED_SCORE
    return TokenType.USER_DEFINED, ADDED_SCORE


def _row_of(token: str, rule: TokenRule, vocabularies: Sequence[Vocabulary]) -> tuple[int, int]:
    """(model, row) that a rule of kind "row" names."""
    vocabulary = vocabularies[rule.model]
    name = token if rule.token is None else rule.token
    row = vocabulary.index.get(name, -1) if rule.id is None else rule.id
    if not 0 <= row < vocabulary.rows:
        what = f"the token {name!r}" if rule.id is None else f"a token with the id {rule.id}"
        raise PlanError(f"tokenizer: {vocabulary.label} has no row for {what}, from which {token!r} is to come")
    return rule.model, row


def _row_map(result: Vocabulary, vocabulary: Vocabulary) -> Rows:
    """int32 [tokens of the result]: the row of each in the model, -1 for none."""
    if result.tokens == vocabulary.tokens:
        rows = np.arange(len(result), dtype=np.int32)
    else:
        find = vocabulary.index.get
        rows = np.fromiter((find(token, -1) for token in result.tokens), np.int32, len(result))
    rows[rows >= vocabulary.rows] = -1
    return rows


def _donors(maps: Sequence[Rows], base: int | None) -> tuple[Rows, Rows]:
    """What fills rows that a model lacks, by the general rule: (donors, donor_rows) of `Alignment`."""
    stack = np.stack(maps)
    owners = stack >= 0
    count = owners.sum(axis=0)
    donors = np.where(count == 0, ZERO, MEAN).astype(np.int32)
    single = count == 1
    donors[single] = owners.argmax(axis=0)[single]
    if base is not None:
        donors[owners[base]] = base
    rows = np.where(donors >= 0, np.take_along_axis(stack, np.maximum(donors, 0)[None], 0)[0], -1)
    return donors, rows.astype(np.int32)


def _dropped(vocabulary: Vocabulary, result: Vocabulary) -> int:
    """Tokens of a model, placeholders aside, that the result does not have."""
    known = result.index
    return sum(token not in known and not pad for token, pad in zip(vocabulary.tokens, vocabulary.padding, strict=True))
