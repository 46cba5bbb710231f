"""The settings of the models beside each other: the result has those of one model, and nothing is lost in silence.

A setting is a key of the tokenizer or of the architecture, or one of few others that llama.cpp reads. The result has
those of its first source, or with a `tokenizer_source` the tokenizer of that; each setting that another model has
otherwise, or lacks, or has alone, is named in a warning. No difference is

- a value that llama.cpp takes anyway when the key is missing (`effective`), a number that is equal in another type, a
  list of one value for each layer that are all the same, and that value;
- what the tensors decide: the number of layers, how many of them predict further tokens (MTP), and a number of tokens
  that agrees with the rows;
- lists of one value for each layer where the result takes each from the layer's own model (`layers`);
- the tokens, which must be the same, and what belongs to tokens that only one model has, where the recipe asks for a
  vocabulary (`tokenizer_source`); ids then are compared by the tokens that they mean;
- what the recipe itself sets;
- `general.*`: names, authors, licences (`header`).

Some settings that the first source lacks are taken from the models that have them, if these agree:

- the pre-tokenizer and the other keys of the tokenizer, if the tokens are the same: then it is one tokenizer, and the
  older file says less of it;
- the chat template, if the first source has none, and the tokens that end a turn in it;
- the rotation (`rope.*`, with its tables, see `tables`) and the sliding window, if the first source states nothing
  else of it: they belong to weights that were trained so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufmerge import keys
from ggufmerge.architectures.layer_rules import layer_rules
from ggufmerge.architectures.layers import Layers
from ggufmerge.chat.templates import TEMPLATE, most_common
from ggufmerge.formats.layers import layer_count, main_layer_count
from ggufmerge.planning.effective import MISSING, Effective, equal
from ggufmerge.planning.setting_words import NONE, Difference, described, in_words, literal
from ggufmerge.planning.tables import TABLES, same_table
from ggufmerge.recipe import ModelReference, Recipe
from ggufmerge.sources import Source
from ggufmerge.text import series
from ggufmerge.tokenizers import Alignment

_BY_TOKEN = (keys.TOKEN_TYPES, keys.TOKEN_SCORES)
_MERGES = "tokenizer.ggml.merges"
_ENDS_OF_TURNS = (keys.token_id("eot"), keys.token_id("eom"))
# what files of one tokenizer say or leave out; what is not named here may be a tune's own
_OF_TOKENIZER = frozenset(
    {
        keys.TOKENIZER_MODEL,
        keys.TOKENIZER_PRE,
        keys.TOKEN_TYPES,
        keys.TOKEN_SCORES,
        keys.ADD_BOS_TOKEN,
        keys.ADD_SPACE_PREFIX,
        _MERGES,
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_sep_token",
        "tokenizer.ggml.normalizer.lowercase",
        "tokenizer.ggml.normalizer.strip_accents",
        "tokenizer.ggml.precompiled_charsmap",
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.token_type_count",
    }
)
_ELSEWHERE = ("xielu.",)  # outside of the architecture, and read by llama.cpp all the same
_LINE = 1400  # letters of a warning, of which messages would cut the middle out if it were much longer


@dataclass(frozen=True)
class Settled:
    """What becomes of the settings of the models.

    taken: key -> number of the source whose value the result has, of keys that it would lack.
    changes: to the metadata, of such keys whose values are others in the vocabulary of the result.
    """

    taken: dict[str, int]
    changes: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What is known of a merge that its settings depend on.

    alignment: of the vocabularies, None when they are the same.
    structure: the changes to the metadata that the layers of the result bring about.  stacked: whether each layer of
        the result is of one model.
    tables: those of the rotation that the result has, with the number of the source.
    template: the chat template that the recipe asks for; None when it asks for none.
    """

    alignment: Alignment | None
    structure: Mapping[str, Any]
    stacked: bool
    tables: Mapping[str, int]
    template: str | None = None


def settled(recipe: Recipe, references: Sequence[ModelReference], sources: Sequence[Source], facts: Facts) -> Settled:
    """The settings of the result, with a warning for all that is not the same in all models."""
    return _Comparison(recipe, references, sources, facts).settled()


class _Comparison:
    """All models beside the owner of the tokenizer and the one of the architecture."""

    def __init__(
        self, recipe: Recipe, references: Sequence[ModelReference], sources: Sequence[Source], facts: Facts
    ) -> None:
        self._recipe, self._facts, self._sources = recipe, facts, sources
        self._names = [reference.path for reference in references]
        self._arch = sources[0].file.architecture + "."
        self._sides = [
            Effective(source.label, source.metadata, source, i, layer_count(source.file))
            for i, source in enumerate(sources)
        ]
        self._first, self._others = self._sides[0], self._sides[1:]
        self._owner, self._tokenizers = self._first, self._others
        if facts.alignment is not None:
            donor = facts.alignment.donor
            self._owner, self._tokenizers = Effective(donor.label, donor.metadata), self._sides
        self._tokenizers = [side for side in self._tokenizers if not sources[side.number or 0].is_checkpoint]
        alignment = facts.alignment
        self._moved = alignment is not None and bool(alignment.vocabulary.changes(alignment.donor))
        self._asked = recipe.chat_template is not None
        self._taken: dict[str, list[Effective]] = {}  # key -> the models that have it
        self._changes: dict[str, Any] = {}
        self._found: dict[tuple[str, int], list[Difference]] = {}  # (owner, model) -> differences

    def settled(self) -> Settled:
        self._compare(self._owner, self._tokenizers, self._is_of_tokenizer, self._same_in_tokenizer)
        self._compare(self._first, self._others, self._is_of_model, self._same_in_model)
        self._compare_tables()
        taken = {key: having[0].number or 0 for key, having in self._taken.items() if key not in self._changes}
        warnings = [*self._unread(), *self._takings(), *self._differences()]
        return Settled({k: n for k, n in taken.items() if k not in TABLES}, self._changes, tuple(warnings))

    def _is_of_tokenizer(self, key: str) -> bool:
        if key.startswith(TEMPLATE) and self._asked:
            return False
        if self._facts.alignment is not None and (key == keys.TOKENS or (key == keys.HUGGINGFACE_JSON and self._moved)):
            return False
        return key.startswith(keys.TOKENIZER) and key not in self._recipe.metadata

    def _is_of_model(self, key: str) -> bool:
        if key == keys.block_count(self._arch[:-1]) or key in self._recipe.metadata:
            return False
        return key.startswith((self._arch, *_ELSEWHERE))

    def _compare(
        self,
        owner: Effective,
        others: Sequence[Effective],
        wanted: Callable[[str], bool],
        alike: Callable[[Effective, str], bool],
    ) -> None:
        """Find the keys that are not the same, and decide which of those that the owner lacks are taken."""
        everywhere = dict.fromkeys(key for side in (owner, *others) for key in side.metadata if wanted(key))
        differing = {key: [side for side in others if not alike(side, key)] for key in everywhere}
        differing = {key: sides for key, sides in differing.items() if sides}
        lacking = {key: [side for side in others if key in side] for key in differing if key not in owner}
        possible = [key for key, having in lacking.items() if self._agree(key, having) and self._fits(key, having)]
        unlike = {_group(key, self._arch) for key in differing.keys() - possible}
        for key in possible:
            group = _group(key, self._arch)
            if group is None or group not in unlike:
                self._take(key, lacking[key])
        for key, sides in differing.items():
            if key not in self._taken:
                for side in sides:
                    found = described(side, owner, key, self._tokens_of(side, key))
                    self._found.setdefault((owner.label, side.number or 0), []).append(found)

    def _tokens_of(self, side: Effective, key: str) -> int | None:
        """Of how many tokens a model has another value, under a key with one for each; None for other keys."""
        alignment = self._facts.alignment
        return len(_changed_tokens(side, key, alignment)) if alignment is not None and key in _BY_TOKEN else None

    def _agree(self, key: str, having: Sequence[Effective]) -> bool:
        if keys.is_token_id(key) and self._facts.alignment is not None:
            return len({side.token(side.value(key)) for side in having}) == 1
        return all(side.same(having[0], key) for side in having)

    def _fits(self, key: str, having: Sequence[Effective]) -> bool:
        """Whether a key that its owner lacks is right in the result, too."""
        if key.startswith(keys.TOKENIZER):
            return self._fits_tokenizer(key, having)
        name = key.removeprefix(self._arch)
        if not name.startswith(("rope.", "attention.sliding_window")) and name != "context_length":
            return False
        is_list = isinstance(having[0].value(key), np.ndarray) and not name.startswith("rope.")
        return not (is_list and self._facts.structure)

    def _fits_tokenizer(self, key: str, having: Sequence[Effective]) -> bool:
        if key.startswith(TEMPLATE) or key in _ENDS_OF_TURNS:
            if key.startswith(TEMPLATE) and self._has_template():
                return False
            template = self._template()
            if not all(side.means(TEMPLATE, template) for side in having):
                return False
        if key.startswith(TEMPLATE):
            return not any(self._lacks_tokens(str(side.value(key)), side) for side in having)
        if keys.is_token_id(key):
            return self._id_in_result(key, having[0]) is not None
        if key not in _OF_TOKENIZER:
            return False
        same_words = [keys.TOKENS, *([_MERGES] if key == keys.TOKENIZER_PRE else [])]
        if self._facts.alignment is not None and key == keys.TOKENIZER_PRE:
            same_words = [_MERGES]
        return all(self._owner.raw(k) == side.raw(k) for side in having for k in same_words if k != key)

    def _template(self) -> Any:
        """The chat template of the result."""
        if self._facts.template is not None:
            return self._facts.template
        if self._has_template() or self._asked:
            return self._owner.value(TEMPLATE)
        having = [side for side in self._tokenizers if TEMPLATE in side]
        return having[0].value(TEMPLATE) if having and self._agree(TEMPLATE, having) else MISSING

    def _lacks_tokens(self, template: str, side: Effective) -> bool:
        """Whether a model's chat template writes tokens of it that the result lacks."""
        alignment = self._facts.alignment
        if alignment is None:
            return False
        lost = side.tokens_as_set - alignment.vocabulary.index.keys()
        return any(token in template for token in lost if token.startswith(("<", "[")))

    def _has_template(self) -> bool:
        return any(key.startswith(TEMPLATE) for key in self._owner.metadata)

    def _id_in_result(self, key: str, side: Effective) -> int | None:
        """The id that the token under a key of a model has in the result; None when the result lacks it."""
        number = side.value(key)
        token = side.token(number)
        if token is None or self._facts.alignment is None:
            return number if token is not None else None
        return self._facts.alignment.vocabulary.index.get(token)

    def _take(self, key: str, having: list[Effective]) -> None:
        self._taken[key] = having
        if keys.is_token_id(key):
            number = self._id_in_result(key, having[0])
            if number != having[0].value(key):
                self._changes[key] = number

    def _same_in_model(self, side: Effective, key: str) -> bool:
        if self._sources[side.number or 0].is_checkpoint and key not in side:
            return True  # it states few
        files = self._sources[side.number or 0].file, self._sources[0].file
        if key == keys.prediction_layers(self._arch[:-1]) and len(set(map(main_layer_count, files))) == 1:
            return True  # what not all models have of these layers, the layout tells
        if key in self._facts.structure and (self._facts.stacked or side.layers != self._first.layers):
            return True
        return side.same(self._first, key) or self._same_layers(side, key)

    def _same_layers(self, side: Effective, key: str) -> bool:
        """Whether a key that says of which kind each layer is says the same of all, as a list, a period or neither."""
        arch = self._arch[:-1]
        rules = [rule for rule in layer_rules(arch) if key in (keys.of(arch, what) for what in rule.only_here)]
        one, other = (Layers(arch, each.layers, each.metadata) for each in (side, self._first))
        return bool(rules) and all(rule.of(one) == rule.of(other) for rule in rules)

    def _same_in_tokenizer(self, side: Effective, key: str) -> bool:
        alignment = self._facts.alignment
        if alignment is None:
            return side.same(self._owner, key)
        if keys.is_token_id(key):
            return equal(_meaning(side, key), _meaning(self._owner, key))
        if key in _BY_TOKEN:
            return not len(_changed_tokens(side, key, alignment))
        if key == _MERGES and side.raw(key) != self._owner.raw(key):
            common = side.tokens_as_set & self._owner.tokens_as_set
            return _merges(side, common) == _merges(self._owner, common)
        return side.same(self._owner, key)

    def _compare_tables(self) -> None:
        """The tables of the rotation, which are tensors."""
        for name in TABLES:
            having = [side for side in self._sides if name in self._sources[side.number or 0].tensors]
            number = self._facts.tables.get(name)
            owner = self._sides[number] if number is not None else self._first
            if number is not None and owner is not self._first and self._first not in having:
                self._taken[name] = having
                continue
            for side in self._sides:
                one, other = self._sources[side.number or 0], self._sources[owner.number or 0]
                if side is owner or one.is_checkpoint or (side not in having and owner not in having):
                    continue
                if not same_table(one, other, name):
                    both = side in having and owner in having
                    theirs = NONE if side not in having else "a table of its own" if both else "a table"
                    owners = NONE if owner not in having else "that of the other" if both else "a table"
                    found = Difference(name, theirs, owners, side not in having)
                    self._found.setdefault((owner.label, side.number or 0), []).append(found)

    def _unread(self) -> list[str]:
        """Warnings for sources whose tokens are only counted, and for a description of tokens that holds no more."""
        stale = [self._owner.label] if self._moved and keys.HUGGINGFACE_JSON in self._owner else []
        return [
            f"{label}: {keys.HUGGINGFACE_JSON} is left out, since it describes other tokens than the result has"
            for label in stale
        ] + [
            f"{source.label}: its tokenizer is not read; its tokens are taken to be those of {self._first.label}, "
            "since there are as many"
            for source in self._sources
            if source.is_checkpoint
        ]

    def _takings(self) -> Iterator[str]:
        """A line for each group of models that give the result what its first source lacks."""
        grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for key, having in self._taken.items():
            owner = self._owner if key.startswith(keys.TOKENIZER) else self._first
            labels = tuple(dict.fromkeys(side.label for side in having))
            words = "a table" if key in TABLES else in_words(having[0], key)
            grouped.setdefault((owner.label, labels), []).append(f"{key} ({words})")
        for (owner_label, labels), found in grouped.items():
            agree = ", which agree" if len(labels) > 1 else ""
            for part in _parts(found):
                yield f"{owner_label} lacks {part}: taken from {series(labels)}{agree}"

    def _differences(self) -> Iterator[str]:
        """A line for each group of models that differ alike from the one whose settings the result has."""
        models: dict[tuple[str, Difference], list[int]] = {}
        for (owner, number), listed in self._found.items():
            for difference in listed:
                models.setdefault((owner, difference), []).append(number)
        grouped: dict[tuple[str, tuple[int, ...]], list[Difference]] = {}
        for (owner, difference), numbers in models.items():
            grouped.setdefault((owner, tuple(numbers)), []).append(difference)
        for (owner, found_in), differences in grouped.items():
            labels = list(dict.fromkeys(self._sides[n].label for n in found_in))
            verb, own = ("differs", "its own") if len(labels) == 1 else ("differ", "theirs")
            remedy = self._remedy([d for d in differences if not d.is_missing] or differences, found_in)
            parts = list(_parts([f"{d.key} ({d.theirs}, taken {d.owners})" for d in differences]))
            for i, part in enumerate(parts):
                tail = f"; to take {own} {remedy}" if i == len(parts) - 1 else ""
                yield f"{series(labels)} {verb} from {owner} in {part}{tail}"

    def _remedy(self, found: Iterable[Difference], numbers: Sequence[int]) -> str:
        """What to do to get the settings of these models."""
        side, name = self._sides[numbers[0]], self._names[numbers[0]]
        values: dict[str, str] = {}
        template = tokenizer = model = False
        templates = [s.metadata.get(TEMPLATE) for s in self._sides]
        common = most_common([text if isinstance(text, str) else None for text in templates])
        for key in (difference.key for difference in found):
            value = literal(side, key)
            if keys.is_token_id(key) and value is not None:
                number = self._id_in_result(key, side)
                value = None if number is None else str(number)
            if key == TEMPLATE and common in numbers:
                template = True
            elif value is not None:
                values[key] = value
            elif key.startswith(keys.TOKENIZER):
                tokenizer = True
            else:
                model = True
        pairs = ", ".join(f"{key}: {value}" for key, value in values.items()) if len(values) < 3 else "KEY: VALUE"
        ways = [
            "chat_template: auto" * template,
            f"metadata: {{{pairs}}}" if values else "",
            f"tokenizer_source: {name}" * tokenizer,
        ]
        written = series([way for way in ways if way])
        place = f"make {name} the base" if self._recipe.base_model is not None else f"list {name} first"
        return ", or ".join(filter(None, (f"write {written}" if written else "", place * model)))


def _group(key: str, arch: str) -> str | None:
    """What a key belongs to that is taken as a whole or not at all; None when it stands for itself."""
    name = key.removeprefix(arch)
    return next((group for group in ("rope.", "attention.sliding_window") if name.startswith(group)), None)


def _parts(items: Sequence[str]) -> Iterator[str]:
    """The items as sentences have them, in lines that messages do not cut."""
    line: list[str] = []
    for item in items:
        if line and sum(map(len, line)) + len(item) > _LINE:
            yield series(line)
            line = []
        line.append(item)
    yield series(line)


def _meaning(side: Effective, key: str) -> Any:
    """The token under a key, or what else is there."""
    value = side.value(key)
    token = side.token(value)
    return value if token is None else token


def _changed_tokens(side: Effective, key: str, alignment: Alignment) -> NDArray[np.intp]:
    """Numbers of the rows of the result, of the owner's tokens, whose type or score is another in a model."""
    rows = alignment.maps[side.number or 0][: len(alignment.donor)]
    arrays = {keys.TOKEN_TYPES: alignment.vocabulary.types, keys.TOKEN_SCORES: alignment.vocabulary.scores}
    own: NDArray[Any] | None = arrays.get(key)
    theirs = side.value(key)
    if own is None and theirs is MISSING:
        return np.zeros(0, np.intp)
    here = np.flatnonzero(rows >= 0)
    if own is None or theirs is MISSING or not isinstance(theirs, np.ndarray):
        return here
    here = here[rows[here] < len(theirs)]
    return here[own[here] != theirs[rows[here]].astype(own.dtype)]


def _merges(side: Effective, tokens: set[str]) -> list[str]:
    """The merges of a tokenizer that make tokens of these, in their order."""
    merges = side.value(_MERGES)
    return [m for m in merges if m.replace(" ", "") in tokens] if isinstance(merges, list) else []
