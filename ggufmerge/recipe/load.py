"""From text to a checked Recipe: YAML, schema, method and parameter names, all complaints with line numbers.

Published recipes contain keys that mergekit accepts and never reads. Those few that are known (`INERT`) become warnings
that name them; every other unknown word is an error that suggests the nearest valid one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pydantic

from ggufmerge.errors import RecipeError, nearest
from ggufmerge.methods import method as find_method
from ggufmerge.methods.spec import Base, Method
from ggufmerge.recipe.document import Document, Location, parse
from ggufmerge.recipe.schema import Model, OutputSlice, Recipe, SliceSource
from ggufmerge.recipe.settings import Setting

# Words that stand in published recipes and that mergekit reads without effect.
INERT = {
    "int_methods": "no version of mergekit reads it",
    "int8_mask": "it only chose the type of a temporary in mergekit and changes no number",
    "embed_slerp": "mergekit no longer reads it",
    "residual_weight": "mergekit never read it",
    "consensus_method": "mergekit never read it",
}
_TASK_ONLY = {"density", "rescale"}  # accepted by mergekit for task_arithmetic, which sparsifies nothing

_KEYS: dict[str, type[pydantic.BaseModel]] = {
    "": Recipe,
    "models": Model,
    "slices": OutputSlice,
    "sources": SliceSource,
}


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """A checked recipe from a path, or from YAML text (a str with a line break).

    Relative model paths start from the recipe file's folder (for text: the working folder). RecipeError lists all that
    is wrong, one line each, as `file:line:column: what is wrong and what to do`.
    """
    if isinstance(source, str) and "\n" in source:
        return _build(source, "recipe", ".")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        hint = "; it is a GGUF file, give a recipe (YAML)" if _is_gguf(path) else ""
        raise RecipeError(f"{path}: not a text file{hint}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    return _build(text, path.name, str(path.parent))


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(4) == b"GGUF"


def _build(text: str, name: str, folder: str) -> Recipe:
    document = parse(text, name)
    if not isinstance(document.data, dict):
        raise RecipeError(f"{name}: a recipe is a mapping with the keys merge_method, models, ...")
    warnings: list[str] = []
    data = _without_inert(document.data, (), document, warnings)
    try:
        recipe = Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError("\n".join(_complaints(error, document))) from None
    problems = _check(recipe, document, warnings)
    if problems:
        raise RecipeError("\n".join(problems))
    recipe._source = (text, name, folder)
    recipe._warnings = tuple(warnings)
    return recipe


def _without_inert(data: Any, at: Location, document: Document, warnings: list[str]) -> Any:
    """A copy of the data without the inert words, each of which becomes a warning."""
    if isinstance(data, list):
        return [_without_inert(v, (*at, i), document, warnings) for i, v in enumerate(data)]
    if not isinstance(data, dict) or at[-1:] == ("metadata",):
        return data
    kept = {}
    for key, value in data.items():
        if key in INERT:
            warnings.append(f'{document.where((*at, key))}: "{key}" has no effect: {INERT[key]}')
        else:
            kept[key] = _without_inert(value, (*at, key), document, warnings)
    return kept


def _complaints(error: pydantic.ValidationError, document: Document) -> list[str]:
    """One line per complaint of the schema, in the order of the text, without pydantic's jargon."""
    lines: dict[Location, tuple[tuple[int, int], str]] = {}
    for item in error.errors():
        loc = tuple(part for part in item["loc"] if isinstance(part, int) or not _is_branch(part))
        lines.setdefault(loc, (document.position(loc), f"{document.where(loc)}: {_explain(item, loc)}"))
    return [line for _, line in sorted(lines.values())]


def _is_branch(part: str) -> bool:
    """Whether a location part is pydantic's name for a branch of a union, not a key of the recipe."""
    return part.startswith(("function-", "literal[", "is-instance"))


def _explain(item: Any, loc: Location) -> str:
    key = next((part for part in reversed(loc) if isinstance(part, str)), "")
    match item["type"]:
        case "extra_forbidden":
            room = next((p for p in reversed(loc[:-1]) if isinstance(p, str)), "")
            owner = _KEYS.get(room, Recipe)
            hint = _MOVED.get(str(key)) or nearest(str(key), owner.model_fields)
            return f'unknown key "{key}": {hint}'
        case "missing":
            return f'the key "{key}" is missing'
        case "value_error":
            return str(item["ctx"]["error"])
        case "literal_error":
            return f'"{item["input"]}" is not a valid {key}; it is one of {item["ctx"]["expected"]}'
        case "too_short":
            return f'"{key}" needs at least one entry'
        case _:
            return f'"{key}": {item["msg"][0].lower()}{item["msg"][1:]}'


_MOVED = {
    "modules": "GGUF files hold one module; write its models or slices at the top level",
    "random_seed": 'write "seed" at the top level',
    "weight": 'parameters such as weight stand under "parameters:"',
    "density": 'parameters such as density stand under "parameters:"',
    "t": 'parameters such as t stand under "parameters:"',
}


def _check(recipe: Recipe, document: Document, warnings: list[str]) -> list[str]:
    """What the schema cannot see: methods, parameter names, scopes and values."""
    problems = []
    if (recipe.models is None) == (recipe.slices is None):
        problems.append(f'{document.where(())}: a recipe has either "models" or "slices"')
    try:
        method = find_method(recipe.merge_method)
    except RecipeError as error:
        return [*problems, f"{document.where(('merge_method',))}: {error}"]
    if method.base is Base.REQUIRED and recipe.base_model is None and not _every_slice_has_base(recipe):
        problems.append(
            f"{document.where(('merge_method',))}: {method.name} takes differences from a base: "
            'add "base_model: FILE.gguf", the model that the others were tuned from'
        )
    for at, parameters, per_model in _parameter_places(recipe):
        is_base = per_model and _is_base(recipe, at)
        for name, setting in parameters.items():
            place = (*at, name)
            try:
                _check_parameter(method, name, setting, per_model)
            except ValueError as error:
                if method.name == "task_arithmetic" and name in _TASK_ONLY:
                    warnings.append(f'{document.where(place)}: "{name}" has no effect in task_arithmetic')
                else:
                    problems.append(f"{document.where(place)}: {error}")
            else:
                if is_base and method.base is not Base.MODEL:
                    warnings.append(f'{document.where(place)}: "{name}" has no effect on the base model')
    return problems


def _every_slice_has_base(recipe: Recipe) -> bool:
    return bool(recipe.slices) and all(s.base_model for s in recipe.slices or ())


def _parameter_places(recipe: Recipe) -> list[tuple[Location, dict[str, Setting], bool]]:
    """(location, parameters, whether they belong to one model) for each place where a recipe sets parameters."""
    places: list[tuple[Location, dict[str, Setting], bool]] = [(("parameters",), recipe.parameters, False)]
    for i, model in enumerate(recipe.models or ()):
        places.append((("models", i, "parameters"), model.parameters, True))
    for i, out in enumerate(recipe.slices or ()):
        places.append((("slices", i, "parameters"), out.parameters, False))
        for j, source in enumerate(out.sources):
            places.append((("slices", i, "sources", j, "parameters"), source.parameters, True))
    return places


def _is_base(recipe: Recipe, at: Location) -> bool:
    if at[0] == "models":
        return recipe.models is not None and recipe.models[int(at[1])].model == recipe.base_model
    out = (recipe.slices or [])[int(at[1])]
    return out.sources[int(at[3])].model == (out.base_model or recipe.base_model)


def _check_parameter(method: Method, name: str, setting: Setting, per_model: bool) -> None:
    """ValueError when the method does not know the parameter, reads it elsewhere, or refuses one of its values."""
    spec = method.parameter(name)
    if spec is None:
        names = [q.name for q in method.parameters]
        hint = nearest(name, names) if names else f"{method.name} has no parameters"
        raise ValueError(f'{method.name} has no parameter "{name}": {hint}')
    if per_model and spec.scope == "shared":
        raise ValueError(
            f'"{name}" of {method.name} is one value for all models and is not read here: move it to "parameters:"'
        )
    for rule in setting.rules:
        for value in rule.value if isinstance(rule.value, tuple) else (rule.value,):
            _check_value(spec.name, spec.type, value, spec.low, spec.high, spec.choices)


def _check_value(
    name: str, kind: type, value: Any, low: float | None, high: float | None, choices: tuple[str, ...]
) -> None:
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f'"{name}" is true or false, not {value!r}')
        return
    if kind is str:
        if value not in choices:
            raise ValueError(f'"{name}" is one of {", ".join(choices)}, not {value!r}')
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'"{name}" is a number, not {value!r}')
    if kind is int and int(value) != value:
        raise ValueError(f'"{name}" is a whole number, not {value!r}')
    if value != value or abs(value) == float("inf"):
        raise ValueError(f'"{name}" is a finite number, not {value!r}')
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
        raise ValueError(f'"{name}" is {bounds}, not {value!r}')
