"""Whether filters of a recipe mean any tensor (of parameters, methods and `exclude`), and gradients any layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from ggufmerge.architectures.names import architectures, known_words, own_spellings
from ggufmerge.architectures.stacks import layer_of
from ggufmerge.errors import RecipeError
from ggufmerge.planning.layout import Slot, possible_names
from ggufmerge.recipe import Recipe
from ggufmerge.recipe.document import Location
from ggufmerge.recipe.settings import Rule, Setting
from ggufmerge.sources import Source

# a filter for a single expert, of which GGUF has none: it keeps all of a layer in one tensor
_ONE_EXPERT = re.compile(r"experts\.\d", re.ASCII)


def check_gradients(recipe: Recipe, filled: Sequence[Slot]) -> list[str]:
    """A warning for each gradient that has no layers to go over, as in models of images."""
    if any(layer_of(slot.name) is not None for slot in filled):
        return []
    return [
        recipe.complaint((*where, key), f"no tensor is in a layer: all get the first value of this gradient of {key}")
        for where, parameters in _parameters(recipe)
        for key, setting in parameters.items()
        if any(isinstance(rule.value, tuple) for rule in setting.rules)
    ]


def _parameters(recipe: Recipe) -> list[tuple[Location, Mapping[str, Setting]]]:
    """All parameters that a recipe gives, with their places."""
    levels: list[tuple[Location, Mapping[str, Setting]]] = [(("parameters",), recipe.parameters)]
    for i, model in enumerate(recipe.models or ()):
        levels.append((("models", i, "parameters"), model.parameters))
    for i, piece in enumerate(recipe.slices or ()):
        levels.append((("slices", i, "parameters"), piece.parameters))
        for j, source in enumerate(piece.sources):
            levels.append((("slices", i, "sources", j, "parameters"), source.parameters))
    return levels


def check_filters(recipe: Recipe, filled: Sequence[Slot], sources: Sequence[Source]) -> list[str]:
    """RecipeError for filters that match no tensor; a warning when the word would match in other models.

    What is excluded need not be in the result: a tensor that the base lacks stays away.
    """
    architecture = sources[0].file.architecture
    names = dict.fromkeys(name for slot in filled for name in (slot.name, *slot.names) if name is not None)
    levels = _parameters(recipe)
    excluded = Setting(tuple(Rule(pattern, None) for pattern in recipe.exclude))
    levels.append(((), {"merge_method": recipe.merge_method, "exclude": excluded}))
    others = (
        dict.fromkeys(name for source in sources for name in possible_names(recipe, source)) if recipe.exclude else {}
    )
    theirs = ""  # a filter that only Hugging Face's names make mean something
    has_experts = any("_exps." in name for name in names)
    unused: dict[str, tuple[Location, str]] = {}
    beside: dict[str, tuple[Location, str]] = {}
    for where, parameters in levels:
        for key, setting in parameters.items():
            among = {**names, **others} if key == "exclude" else names
            used = [any(rule.matches(name, architecture) for name in among) for rule in setting.rules]
            for number, rule in enumerate(setting.rules):
                if rule.filter is not None and used[number] and not any(_is_part(rule.filter, name) for name in names):
                    theirs = theirs or rule.filter
                if rule.filter is not None and not used[number]:
                    is_of_one = has_experts and _ONE_EXPERT.search(rule.filter)  # which mergekit would have obeyed
                    spared = where and any(used) and not is_of_one  # as in mergekit; what else is said there holds
                    (beside if spared else unused).setdefault(rule.filter, ((*where, key, number, "filter"), key))
    words = known_words() if unused else frozenset()
    warnings, problems = [], []
    for pattern, (place, key) in unused.items():
        what = f'the filter "{pattern}" of {key} matches no tensor'
        if any(_is_part(pattern, word) for word in words):
            warnings.append(recipe.complaint(place, f"{what} of these models"))
        elif has_experts and _ONE_EXPERT.search(pattern):
            what += ": GGUF keeps all experts of a layer in one tensor, so no value can be given to one of them; "
            what += "a filter such as mlp.experts or ffn_down_exps means them all"
            problems.append(recipe.complaint(place, what))
        else:
            inside = (n for n in names if layer_of(n) is not None)
            example = next((s for n in inside for s in own_spellings(n, architecture)[1:]), "")
            what += f"; filters are parts of names such as blk.0.ffn_down.weight{example and f' or {example}'}"
            problems.append(recipe.complaint(place, what))
    for pattern, (place, key) in beside.items():
        if pattern not in unused:
            what = f'the filter "{pattern}" of {key} matches no tensor and has no effect: remove it'
            warnings.append(recipe.complaint(place, what))
    if problems:
        raise RecipeError(*problems)
    if theirs and architecture not in architectures():
        warnings.append(
            f"architecture {architecture!r} is new to ggufmerge, so filters by Hugging Face's names, such as "
            f'"{theirs}", mean what any other architecture means by them: look with ggufmerge recipe explain, or use '
            "those of GGUF"
        )
    return warnings


def _is_part(pattern: str, name: str) -> bool:
    """Whether a filter means a tensor by this very name."""
    return pattern in name or fnmatchcase(name, pattern)
