"""What a recipe's `tokenizer_source`, `tokenizer` and `chat_template` mean for its models: between the pure rules of
`tokenizers` and the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ggufmerge import keys
from ggufmerge.chat.templates import TEMPLATE, TEMPLATES, most_common
from ggufmerge.errors import GgufmergeError, PlanError, RecipeError
from ggufmerge.files import open_gguf
from ggufmerge.places.references import locate
from ggufmerge.planning.plan import PlannedVocabulary
from ggufmerge.recipe import ModelReference, Recipe
from ggufmerge.recipe.schema import TokenEmbedding
from ggufmerge.sources import Source
from ggufmerge.sources.aligned import token_rows
from ggufmerge.tokenizers.align import Alignment, Settings, TokenRule, align, different_kinds
from ggufmerge.tokenizers.sentencepiece import KIND as SENTENCEPIECE
from ggufmerge.tokenizers.sentencepiece import difference, read_tokenizer_model, tokenizer_model_beside
from ggufmerge.tokenizers.vocabulary import Vocabulary, read_vocabulary


def alignment_of(recipe: Recipe, references: Sequence[ModelReference], sources: Sequence[Source]) -> Alignment | None:
    """The alignment that a recipe asks for; None when it asks for none, and the vocabularies are the same."""
    asked = _asked(recipe)
    if asked is None:
        _check_same(sources)
        return None
    for source in sources:
        if source.is_checkpoint:
            raise PlanError(
                f"{source.label}: the tokenizer of a Hugging Face checkpoint is not read, so its vocabulary cannot be "
                "changed; leave out tokenizer_source, or convert it with convert_hf_to_gguf.py of llama.cpp"
            )
    if all(keys.TOKENS not in source.metadata for source in sources):
        return None
    rules = recipe.tokenizer.tokens if recipe.tokenizer else {}
    tokens = {token: _rule(rule, recipe, references) for token, rule in rules.items()}
    vocabularies = [read_vocabulary(source.file.metadata, source.label, token_rows(source)) for source in sources]
    settings = Settings(
        source=asked if isinstance(asked, str) else _named(asked, recipe, references, vocabularies),
        tokens=tokens,
        pad_to_multiple_of=recipe.tokenizer.pad_to_multiple_of if recipe.tokenizer else None,
    )
    return align(vocabularies, references.index(recipe.base_model) if recipe.base_model else None, settings)


def _check_same(sources: Sequence[Source]) -> None:
    """PlanError unless all sources have the same tokens at the same ids; those of checkpoints are not looked at."""
    first = sources[0]
    for other in sources[1:]:
        if other.is_checkpoint or _raw(first) == _raw(other):
            continue
        for source in (first, other):
            if keys.TOKENS in source.metadata and source.metadata.texts(keys.TOKENS) is None:
                found = source.metadata.found(keys.TOKENS)
                raise PlanError(f"{source.label}: {keys.TOKENS} is {found}, not a list of texts; take another file")
        kinds = [source.metadata.text(keys.TOKENIZER_MODEL) for source in (first, other)]
        if all(kinds) and kinds[0] != kinds[1]:  # then no tokenizer_source helps
            raise different_kinds(first.label, str(kinds[0]), other.label, str(kinds[1]))
        a, b = _tokens(first), _tokens(other)
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        token = [repr(v[at]) if at < len(v) else "missing" for v in (a, b)]
        raise PlanError(
            f"different vocabularies: {first.label} has {len(a)} tokens, {other.label} has {len(b)}, and token {at} is "
            f'{token[0]} in one and {token[1]} in the other; write "tokenizer_source: base" to take the base\'s, '
            f'"tokenizer_source: union" for those of all, or merge models of one tokenizer ({keys.TOKENS})'
        )


def _tokens(source: Source) -> list[str]:
    return source.metadata.texts(keys.TOKENS) or []


def _raw(source: Source) -> bytes | None:
    return source.file.metadata.raw(keys.TOKENS) if keys.TOKENS in source.metadata else None


def _asked(recipe: Recipe) -> Literal["base", "union"] | ModelReference | None:
    """What vocabulary the recipe asks for: "base", "union", that of a model, or None."""
    return recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source


def _named(
    reference: ModelReference, recipe: Recipe, references: Sequence[ModelReference], vocabularies: Sequence[Vocabulary]
) -> Vocabulary:
    """The vocabulary of a model that takes part, or of another file, which may hold nothing else."""
    at = _find(reference, references)
    if at is not None:
        return vocabularies[at]
    with open_gguf(locate(recipe.locate(reference).path, recipe.folder)) as file:
        return read_vocabulary(file.metadata, str(reference))


def _find(reference: ModelReference, references: Sequence[ModelReference]) -> int | None:
    """The number of a model, by its whole reference or by its file."""
    if reference in references:
        return references.index(reference)
    return next((i for i, other in enumerate(references) if other.path == reference.path), None)


def _rule(entry: TokenEmbedding, recipe: Recipe, references: Sequence[ModelReference]) -> TokenRule:
    source = entry.source
    if source is None:
        return TokenRule(force=entry.force)
    if isinstance(source, ModelReference):
        return TokenRule("row", model=_model(source, recipe, references), force=entry.force)
    if source == "zero":
        return TokenRule("zero", force=entry.force)
    model = _model(source.model, recipe, references)
    return TokenRule("row", model=model, token=source.token, id=source.token_id, force=entry.force)


def _model(reference: ModelReference, recipe: Recipe, references: Sequence[ModelReference]) -> int:
    at = _find(reference, references)
    if at is None:
        known = ", ".join(map(str, references))
        raise RecipeError(f"{reference} does not take part in the merge; it has {known}")
    return at


@dataclass(frozen=True)
class PlannedTokenizer:
    """What becomes of the tokenizer, as a plan has it.

    changes: to the metadata of the first source, besides the vocabulary itself.
    """

    vocabulary: PlannedVocabulary | None
    changes: dict[str, Any]
    warnings: tuple[str, ...]


def planned_tokenizer(recipe: Recipe, sources: Sequence[Source], alignment: Alignment | None) -> PlannedTokenizer:
    """What a recipe makes of the tokenizers of its models, which have one vocabulary now."""
    changes: dict[str, Any] = {}
    warnings: list[str] = []
    size_key = keys.vocab_size(sources[0].file.architecture)
    if alignment is not None:
        if size_key in sources[0].metadata:
            changes[size_key] = alignment.rows
        if _asked(recipe) == "base" and recipe.base_model is None:
            warnings.append(f"the recipe has no base_model: the vocabulary is that of {alignment.donor.label}")
    if recipe.chat_template is not None:
        own = alignment.donor.metadata if alignment else sources[0].file.metadata
        template, more = _chat_template(recipe.chat_template, sources)
        warnings += more
        if template is not None and template != own.text(TEMPLATE):
            changes |= {k: None for k in own if k.startswith((TEMPLATE + ".", TEMPLATE + "s"))}
            changes[TEMPLATE] = template
    vocabulary = planned_vocabulary(recipe, sources, alignment)
    return PlannedTokenizer(vocabulary, changes, (*_differing_tokenizer_models(sources), *warnings))


def planned_vocabulary(
    recipe: Recipe, sources: Sequence[Source], alignment: Alignment | None
) -> PlannedVocabulary | None:
    """The alignment as the plan shows it."""
    if alignment is None:
        return None
    return PlannedVocabulary(
        source="union" if _asked(recipe) == "union" else alignment.donor.label,
        tokens=alignment.rows,
        added=alignment.added,
        filled={s.label: alignment.filled(i) for i, s in enumerate(sources)},
        dropped={s.label: n for s, n in zip(sources, alignment.dropped, strict=True)},
        digest=alignment.digest(),
    )


def _differing_tokenizer_models(sources: Sequence[Source]) -> list[str]:
    """Warnings for SentencePiece models beside the sources that have another vocabulary than the source."""
    warnings = []
    for source in sources:
        beside = tokenizer_model_beside(source.file.path)
        if beside is not None and source.metadata.text(keys.TOKENIZER_MODEL) == SENTENCEPIECE:
            try:
                differs = difference(read_vocabulary(source.file.metadata, source.label), read_tokenizer_model(beside))
            except GgufmergeError as error:
                differs = str(error)
            if differs:
                warnings.append(f"{beside.name} in the folder of {source.label} is not its tokenizer: {differs}")
    return warnings


def _chat_template(setting: str, sources: Sequence[Source]) -> tuple[str | None, list[str]]:
    """(template, warnings); None keeps what the result has anyway."""
    if setting != "auto":
        return TEMPLATES.get(setting, setting), []
    found = [s.metadata.text(TEMPLATE) for s in sources]
    at = most_common(found)
    if at is None:
        return None, ["chat_template: auto, but no model has a chat template: the result has none"]
    return found[at], []
