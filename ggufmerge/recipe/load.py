"""From text to a checked Recipe: YAML, schema, method and parameter names, all complaints with line numbers.

Published recipes contain keys that mergekit accepts and never reads. Those few that are known (`INERT`) become warnings
that name them; every other unknown word is an error that suggests the nearest valid one.
"""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pydantic

from ggufmerge.errors import RecipeError, nearest
from ggufmerge.files.absent import RECIPES, absent
from ggufmerge.files.small import open_regular
from ggufmerge.methods import NAMES
from ggufmerge.methods import method as find_method
from ggufmerge.methods.spec import Base, Method, Parameter
from ggufmerge.patterns import Budget, Pattern, PatternError
from ggufmerge.recipe.document import NAME, Document, Location, human_number, parse, shown
from ggufmerge.recipe.plain import plain, written
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.schema import Graft, Model, OutputSlice, Recipe, SliceSource, TokenEmbedding, Tokenizer
from ggufmerge.recipe.settings import Scalar, Setting
from ggufmerge.text import printable

# Words that stand in published recipes and that mergekit reads without effect.
INERT = {
    "int_methods": "no version of mergekit reads it",
    "int8_mask": "it only chose the type of a temporary in mergekit and changes no number",
    "embed_slerp": "mergekit no longer reads it",
    "residual_weight": "mergekit never read it",
    "consensus_method": "mergekit never read it",
}
_TASK_ONLY = {"density", "rescale"}  # accepted by mergekit for task_arithmetic, which sparsifies nothing

MAX_BYTES = 1 << 20
OPTIONS = {"out_type": "--type", "imatrix": "--imatrix", "rounding": "--rounding"}  # of the commands that make recipes
_ENTRY = '"- model: FILE.gguf"'
MAX_COMPLAINTS = 20  # that are written out

_KEYS: dict[str, type[pydantic.BaseModel]] = {
    "": Recipe,
    "models": Model,
    "slices": OutputSlice,
    "sources": SliceSource,
    "graft": Graft,
    "tokenizer": Tokenizer,
}
_MOVED = {
    "modules": "a GGUF file holds one module; keep the one of the language model",
    "random_seed": 'write "seed" at the top level',
    "tokens": "it belongs under tokenizer:",
    "pad_to_multiple_of": "it belongs under tokenizer:",
}

_CHANGED = " (changed)"  # after the name of a file whose recipe a program has changed


def load_recipe(
    source: Recipe | Mapping[str, Any] | str | os.PathLike[str], *, arguments: Mapping[str, str] | None = None
) -> Recipe:
    """A checked recipe from a path, from YAML text (a str with a line break), or from a mapping of the same content.

    Of several documents, the one that no other document names as a model is the recipe, the others are its `stages`.
    Relative model paths start from the recipe file's folder (for text and mappings: the working folder). In a mapping
    paths may be `Path` objects, tuples count as lists, and NumPy's numbers as Python's. A Recipe that was loaded comes
    back as it is; one that was made by hand is checked. RecipeError lists what is wrong in its `lines`, at most 20, as
    `file:line:column: what is wrong and what to do`; of a mapping, the keys take the place of the line:
    `models[1].parameters.weight: ...`.

    arguments: for a text that a command made of its arguments: the options that stand for keys. Complaints then name an
    option, or nothing, where they would name a line that nobody has written.
    """
    if isinstance(source, Recipe):
        return source if source.text else _build(written([plain(source)]), NAME, ".", has_lines=False)
    if isinstance(source, Mapping):
        return _build(written([source]), NAME, ".", arguments, has_lines=False)
    if isinstance(source, str) and "\n" in source:
        return _build(source, NAME, ".", arguments)
    path = Path(source)
    return _build(_text(path), printable(path.name), str(path.parent))


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """See `Recipe.with_changes`."""
    recipe = load_recipe(recipe)
    data = [_data(stage) for stage in recipe.stages]
    final = {key: value for key, value in (_data(recipe) | dict(changes)).items() if value is not None}
    name = recipe.origin if recipe.origin == NAME else f"{recipe.origin.removesuffix(_CHANGED)}{_CHANGED}"
    return _build(written([*data, final]), name, recipe.folder, has_lines=False)


Recipe._changed = _changed


def _data(recipe: Recipe) -> dict[str, Any]:
    """What a document says."""
    assert recipe._document is not None
    return dict(recipe._document.data)


def _text(path: Path) -> str:
    """The recipe file's text with `\\n` as line break; RecipeError when it is no text or cannot be read."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: {absent(path, RECIPES)}") from None
    except IsADirectoryError:
        here = ", ".join(sorted(p.name for p in path.glob("*") if p.suffix.lower() in RECIPES)[:5])
        raise RecipeError(
            f"{path}: a folder, not a recipe; {f'it has {here}' if here else 'give a YAML file'}"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    if data[:4] == b"GGUF":
        raise RecipeError(f'{path}: a GGUF file, not a recipe; name it under "models:" of a recipe (YAML)')
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: more than {MAX_BYTES >> 20} MiB, which is too large for a recipe; give a YAML file")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what `>` writes in Windows PowerShell
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{printable(path.name)}:{line}: not UTF-8 text; save the recipe as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _build(
    text: str, name: str, folder: str, arguments: Mapping[str, str] | None = None, *, has_lines: bool = True
) -> Recipe:
    recipes: list[Recipe] = []
    complaints: list[_Complaint] = []
    for document in _documents(text, name, arguments, has_lines=has_lines):
        report = _Report(document)
        recipe = None
        if isinstance(document.data, dict):
            unwrapped = _without_module(document.data, report)
            recipe = _validated(_without_inert(unwrapped, (), report), report)
        else:
            report.problem((), "a recipe is a mapping with the keys merge_method, models, ...")
        if recipe is not None:
            _check(recipe, report)
            recipe._source = (text, name, folder)
            recipe._warnings = tuple(_lines(report.warnings))
            recipe._document = document
            recipes.append(recipe)
        complaints += report.problems.values()
    if complaints:
        raise RecipeError(*_lines(complaints))
    return recipes[0] if len(recipes) == 1 else _with_stages(recipes)


def _documents(text: str, name: str, arguments: Mapping[str, str] | None, *, has_lines: bool) -> list[Document]:
    """The documents of a recipe; a text that is none, such as a letter, is not corrected as if it were one."""
    keys = "|".join(Recipe.model_fields)
    pattern = rf"^[^\w\n]*(?:(?:merge_method|base_model|models|slices)\b|(?:{keys})[ \t]*:)"
    is_recipe = not text.strip() or re.search(pattern, text, re.MULTILINE)
    try:
        documents = parse(text, name, arguments, has_lines=has_lines)
    except RecipeError:
        if is_recipe:
            raise
    else:
        if is_recipe or any(isinstance(document.data, dict | list) for document in documents):
            return documents
    raise RecipeError(f'{name}:1: this is not a recipe, which has lines such as "merge_method: linear" and "models:"')


def _with_stages(recipes: list[Recipe]) -> Recipe:
    """The final one of several recipes, with the others as its stages, each behind those that it is made from."""
    final, problems = recipes[-1], []
    unnamed = [r for r in recipes if r.name is None]
    if unnamed:
        final = unnamed[0]
        problems += [
            f"{r.where(())}: a second document without a name; only the final one has none" for r in unnamed[1:]
        ]
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe is not final and recipe.name is not None:
            if recipe.name in named:
                problems.append(f"{recipe.where(('name',))}: a second document of the name {shown(recipe.name)}")
            named[recipe.name] = recipe
    order: list[Recipe] = []
    _visit(final, named, order, (), problems)
    problems += [
        f"{recipe.where(('name',))}: no other document uses {shown(name)} as a model; remove it"
        for name, recipe in named.items()
        if recipe not in order and not problems
    ]
    if problems:
        raise RecipeError(*_shortened(problems))
    final._stages = tuple(order[:-1])
    return final


def _visit(
    recipe: Recipe, named: dict[str, Recipe], order: list[Recipe], above: tuple[Recipe, ...], problems: list[str]
) -> None:
    """Append a recipe to `order` behind all that it is made from."""
    if any(recipe is r for r in above):
        problems.append(f"{recipe.where(('name',))}: {shown(recipe.name)} is made from itself")
    elif not any(recipe is r for r in order):
        tokenizers = (recipe.tokenizer_source, recipe.tokenizer.source if recipe.tokenizer else None)
        for reference in (*recipe.references(), *(t for t in tokenizers if isinstance(t, ModelReference))):
            if reference.path in named:
                _visit(named[reference.path], named, order, (*above, recipe), problems)
        order.append(recipe)


def _without_module(data: dict[str, Any], report: _Report) -> dict[str, Any]:
    """The recipe with what its only module says at the top level; a GGUF file holds one module, the language model.

    The module's parameters come before those of the recipe, whose value holds where no filter of the module matches.
    """
    modules = data.get("modules")
    if not isinstance(modules, dict) or len(modules) != 1:
        return data
    [(name, module)] = modules.items()
    if not isinstance(module, dict):
        return data
    marks = report.document.marks
    for at in [at for at in marks if at[:2] == ("modules", name) and len(at) > 2]:
        marks[at[2:]] = marks[at]
    merged = {key: value for key, value in data.items() if key != "modules"} | module
    outer, inner = data.get("parameters"), module.get("parameters")
    if isinstance(outer, dict) and isinstance(inner, dict):
        both = {key: _rules(inner[key]) + _rules(outer[key]) for key in inner if key in outer}
        merged["parameters"] = outer | inner | both
    return merged


def _rules(setting: Any) -> list[Any]:
    """A setting as a list of conditional values."""
    if isinstance(setting, dict):
        return [setting]
    if isinstance(setting, list) and setting and all(isinstance(v, dict) for v in setting):
        return setting
    return [{"value": setting}]


@dataclass(frozen=True)
class _Complaint:
    """A complaint at a (line, column) of a document; its words are found when it is shown, which may take a search."""

    position: tuple[int, int]
    where: str
    what: str | Callable[[], str]


def _lines(complaints: Iterable[_Complaint]) -> list[str]:
    """The complaints in the order of the file, as far as anybody reads them."""
    ordered = sorted(complaints, key=lambda complaint: complaint.position)
    lines = [
        f"{c.where}: " * bool(c.where) + (c.what if isinstance(c.what, str) else c.what())
        for c in ordered[:MAX_COMPLAINTS]
    ]
    return [*lines, *_rest(len(ordered))]


def _shortened(lines: list[str]) -> list[str]:
    return [*lines[:MAX_COMPLAINTS], *_rest(len(lines))]


def _rest(count: int) -> list[str]:
    return [f"and {count - MAX_COMPLAINTS} more"] if count > MAX_COMPLAINTS else []


class _Report:
    """What is wrong with a recipe, one complaint per place, and what has no effect."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: dict[Location, _Complaint] = {}
        self.warnings: list[_Complaint] = []

    def problem(self, at: Location, what: str | Callable[[], str]) -> None:
        self.problems.setdefault(at, self._complaint(at, what))

    def warn(self, at: Location, what: str) -> None:
        self.warnings.append(self._complaint(at, what))

    def _complaint(self, at: Location, what: str | Callable[[], str]) -> _Complaint:
        return _Complaint(self.document.position(at), self.document.where(at), what)


def _without_inert(data: Any, at: Location, report: _Report) -> Any:
    """A copy of the data without the inert words, each of which becomes a warning."""
    if isinstance(data, list):
        return [_without_inert(v, (*at, i), report) for i, v in enumerate(data)]
    if not isinstance(data, dict) or at in (("metadata",), ("tensor_types",)):
        return data
    kept = {}
    for key, value in data.items():
        if key in INERT:
            report.warn((*at, key), f'"{key}" has no effect: {INERT[key]}')
        else:
            kept[key] = _without_inert(value, (*at, key), report)
    return kept


def _validated(data: dict[str, Any], report: _Report) -> Recipe | None:
    """The data as a Recipe; None when it is none.

    Unknown keys and bad parameters are reported and left out, so that the checks that follow can find more.
    """
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        for item in error.errors():
            at = _place(item, report.document)
            report.problem(at, partial(_explain, item, at, data))
            if item["type"] == "extra_forbidden":
                _remove(data, at)
            elif (parameter := _parameter(at)) is not None:
                _remove(data, parameter)
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError:
        return None


def _place(item: Any, document: Document) -> Location:
    """The place in the recipe that pydantic complains about: its location without the names of union branches."""
    at: Location = ()
    for part in item["loc"]:
        if (*at, part) in document.marks:
            at = (*at, part)
    return (*at, item["loc"][-1]) if item["type"] == "missing" else at


def _parameter(at: Location) -> Location | None:
    """The location of the parameter that a place lies in."""
    start = next(
        (i for i, part in enumerate(at) if part not in ("models", "slices", "sources") and type(part) is str), 0
    )
    return at[: start + 2] if at[start : start + 1] == ("parameters",) and len(at) > start + 1 else None


def _remove(data: Any, at: Location) -> None:
    for part in at[:-1]:
        data = data[part]
    data.pop(at[-1], None)


def _explain(item: Any, at: Location, data: dict[str, Any]) -> str:
    """A complaint of the schema in words of the recipe."""
    rooms = [part for part in at if isinstance(part, str)]
    key = rooms[-1] if rooms else ""
    subject = f'an entry of "{key}"' if at and isinstance(at[-1], int) else shown(key) if key else "a recipe"
    value = shown(item["input"])
    match item["type"]:
        case "extra_forbidden":
            owner = TokenEmbedding if "tokens" in rooms[-3:-2] else _KEYS.get((["", *rooms])[-2], Recipe)
            hint = _MOVED.get(key) or _parameter_hint(key, data) or nearest(key, owner.model_fields)
            return f"unknown key {subject}: {hint}"
        case "missing":
            known = f"; it is one of {', '.join(NAMES)}" if key == "merge_method" else ""
            return f"the key {subject} is missing{known}"
        case "value_error":
            return str(item["ctx"]["error"])
        case "literal_error":
            return f"{value} is not a valid {key}; it is one of {item['ctx']['expected']}"
        case "too_short":
            return f"{subject} needs at least one entry"
        case "model_type" | "dict_type" if rooms[-1:] == ["models"] and isinstance(item["input"], str):
            return f'{subject} has keys: write "- model: {printable(item["input"])}"'
        case "list_type" if key == "models":
            return f"{subject} is a list: below it, write a line such as {_as_entry(item['input'])} for each model"
        case "model_type" | "dict_type":
            return f"{subject} is a mapping of keys to values, not {value}"
        case "list_type" | "tuple_type":
            return f"{subject} is a list, not {value}"
        case "string_type":
            return f"{subject} is a text, not {value}; write it in quotes"
        case _:
            return f"{subject} {item['msg'].removeprefix('Input ')}, not {value}"


def _as_entry(value: Any) -> str:
    """How a list entry is written for what stands there instead of a list."""
    if isinstance(value, dict):
        value = value.get("model", next(iter(value), None))
    return f'"- model: {printable(value)}"' if isinstance(value, str) and "\n" not in value else _ENTRY


def _parameter_hint(key: str, data: dict[str, Any]) -> str:
    name = data.get("merge_method")
    methods = [name] if isinstance(name, str) and name in NAMES else NAMES
    known = any(find_method(n).parameter(key) for n in methods)
    return "a parameter of the method belongs under parameters:" if known else ""


def _check(recipe: Recipe, report: _Report) -> None:
    """What the schema cannot see: methods, parameter names, scopes and values, which get the types of their method."""
    if recipe.models is None and recipe.slices is None:
        alone = "base_model alone makes no merge" if recipe.base_model else "the recipe names no models"
        report.problem((), f"{alone}: add models:, and below it a line such as {_ENTRY} for each model")
    elif recipe.models is not None and recipe.slices is not None:
        report.problem(("slices",), 'a recipe has either "models" or "slices": remove one of them')
    if recipe.tokenizer is not None and recipe.tokenizer_source is not None:
        report.problem(("tokenizer",), 'a recipe has either "tokenizer" or "tokenizer_source"')
    if recipe.like is not None and recipe.out_type is not None:
        report.problem(("like",), 'a recipe has either "like" or "out_type": both say which types the result has')
    try:
        methods = [find_method(name) for name in recipe.methods]
    except RecipeError as error:
        report.problem(("merge_method",), str(error))
        return
    _check_patterns(recipe, report)
    _warn_of_unreachable(("merge_method",), recipe.merge_method, report)
    for method in methods:
        if method.base is Base.REQUIRED and recipe.base_model is None and not _every_slice_has_base(recipe):
            report.problem(("merge_method",), _base_missing(method, recipe))
    for at, parameters, per_model in _parameter_places(recipe):
        is_base = per_model and all(method.base is not Base.MODEL for method in methods) and _is_base(recipe, at)
        for name, setting in parameters.items():
            # the method that reads the parameter here, else one that knows it, else any: its complaint is the user's
            order = sorted(methods, key=lambda m: _affinity(m, name, per_model), reverse=True)
            _check_parameter(order[0], (*at, name), parameters, setting, per_model, is_base, report)


def _base_missing(method: Method, recipe: Recipe) -> str:
    """What to do where a method has no base."""
    if not method.pair:
        add = 'add "base_model: FILE.gguf", the model that the others were tuned from'
        return f"{method.name} takes differences from a base: {add}"
    models = [str(entry.model) for entry in recipe.models or ()]
    start, other = models if len(models) == 2 else ("one of them", "the other")
    return (
        f"{method.name} goes from base_model to one model: make {start} the base_model and list only {other} as model"
    )


def _check_patterns(recipe: Recipe, report: _Report) -> None:
    budget = Budget()
    for text in recipe.tensor_types:
        try:
            Pattern(text, re.IGNORECASE, budget)
        except PatternError as error:
            report.problem(("tensor_types", text), str(error))


def _affinity(method: Method, name: str, per_model: bool) -> int:
    spec = method.parameter(name)
    return 0 if spec is None else 1 if per_model and spec.scope == "shared" else 2


def _every_slice_has_base(recipe: Recipe) -> bool:
    return bool(recipe.slices) and all(s.base_model for s in recipe.slices or ())


def _parameter_places(recipe: Recipe) -> Iterable[tuple[Location, dict[str, Setting], bool]]:
    """(location, parameters, whether they belong to one model) for each place where a recipe sets parameters."""
    yield ("parameters",), recipe.parameters, False
    for i, model in enumerate(recipe.models or ()):
        yield ("models", i, "parameters"), model.parameters, True
    for i, out in enumerate(recipe.slices or ()):
        yield ("slices", i, "parameters"), out.parameters, False
        for j, source in enumerate(out.sources):
            yield ("slices", i, "sources", j, "parameters"), source.parameters, True


def _is_base(recipe: Recipe, at: Location) -> bool:
    if at[0] == "models":
        return recipe.models is not None and recipe.models[int(at[1])].model == recipe.base_model
    out = (recipe.slices or [])[int(at[1])]
    return out.sources[int(at[3])].model == (out.base_model or recipe.base_model)


def _check_parameter(
    method: Method,
    at: Location,
    parameters: dict[str, Setting],
    setting: Setting,
    per_model: bool,
    is_base: bool,
    report: _Report,
) -> None:
    """Report what is wrong with one parameter; else give its values in `parameters` their type."""
    name = str(at[-1])
    spec = method.parameter(name)
    if spec is None:
        if method.name == "task_arithmetic" and name in _TASK_ONLY:
            report.warn(at, f'"{name}" has no effect in task_arithmetic')
            return
        if name.isdecimal() and (before := _decimal_comma(name, parameters)):
            report.problem(at, f'numbers have a point: write "{before}.{name}", not "{before},{name}"')
            return
        names = [q.name for q in method.parameters]
        hint = nearest(name, names) if names else f"{method.name} has no parameters"
        report.problem(at, f"{method.name} has no parameter {shown(name)}: {hint}")
        return
    if per_model and spec.scope == "shared":
        report.problem(
            at, f'"{name}" of {method.name} is one value for all models and is not read here: move it to "parameters:"'
        )
        return
    try:
        parameters[name] = Setting(tuple(replace(rule, value=_typed(spec, rule.value)) for rule in setting.rules))
    except ValueError as error:
        report.problem(at, str(error))
        return
    for odd in _unusual(spec, parameters[name]):
        report.warn(at, odd)
    if is_base:
        report.warn(at, f'"{name}" has no effect on the base model')
    _warn_of_unreachable(at, setting, report)


def _decimal_comma(name: str, parameters: dict[str, Setting]) -> str:
    """`{weight: 0,5}` reads as weight 0 and a key 5: what stands before the comma, such as `weight: 0`."""
    names = list(parameters)
    previous = names[names.index(name) - 1] if names.index(name) else ""
    values = [rule.value for key in (name, previous) if key for rule in parameters[key].rules]
    whole = (
        len(values) == 2 and values[0] is None and isinstance(values[1], (int, float)) and values[1] == int(values[1])
    )
    return f"{previous}: {int(values[1])}" if whole else ""  # type: ignore[arg-type]


def _unusual(spec: Parameter, setting: Setting) -> Iterator[str]:
    """What to ask about values that are allowed but make no sense."""
    if spec.usual is None:
        return
    low, high = spec.usual
    for rule in setting.rules:
        for value in rule.value if isinstance(rule.value, tuple) else (rule.value,):
            if isinstance(value, (int, float)) and not low <= value <= high:
                meant = _meant(value, low, high) if value >= 10 else ""
                yield f'"{spec.name}" is {value:g}, but makes sense from {low:g} to {high:g}: {spec.doc}{meant}'
                return


def _meant(value: float, low: float | None, high: float | None) -> str:
    """For a percentage where a share is wanted: how it is written."""
    return f"; for {value:g} % write {value / 100:g}" if (low, high) == (0, 1) and 1 < value <= 100 else ""


def _warn_of_unreachable(at: Location, setting: Setting, report: _Report) -> None:
    for rule in setting.unreachable():
        what = "a second value without a filter" if rule.filter is None else f"the filter {shown(rule.filter)}"
        report.warn(at, f'{what} of "{at[-1]}" has no effect: an earlier one takes all its tensors; write it first')


def _typed(spec: Parameter, value: Scalar | tuple[Scalar, ...]) -> Scalar | tuple[Scalar, ...]:
    """A value or gradient in the parameter's type; ValueError when it is not one. As in mergekit a number may be
    written as a text, and a switch as 0 or 1."""
    if isinstance(value, tuple):
        if spec.type is int:
            raise ValueError(f'"{spec.name}" is a whole number, which has no gradient')
        return tuple(_scalar(spec, v) for v in value)
    return _scalar(spec, value)


def _scalar(spec: Parameter, value: Scalar) -> Scalar:
    if spec.type is bool:
        if value not in (0, 1):
            raise ValueError(f'"{spec.name}" is true or false, not {shown(value)}')
        return bool(value)
    if spec.type is str:
        if value not in spec.choices:
            raise ValueError(f'"{spec.name}" is one of {", ".join(spec.choices)}, not {shown(value)}')
        return value
    return _number(spec, value)


def _as_number(value: Scalar) -> str:
    """How a number is written that stands there in another way: 0,5 or 50%."""
    meant = human_number(value) if isinstance(value, str) else None
    return "" if meant is None else f": write {meant:g}"


def _number(spec: Parameter, value: Scalar) -> float:
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f'"{spec.name}" is a number, not {shown(value)}{_as_number(value)}') from None
    if not math.isfinite(number):
        raise ValueError(f'"{spec.name}" is a finite number, not {shown(value)}')
    low, high = spec.low, spec.high
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"at least {low:g}" if high is None else f"at most {high:g}" if low is None else f"{low:g} to {high:g}"
        raise ValueError(f'"{spec.name}" is {bounds}, not {shown(value)}{_meant(number, low, high)}')
    if spec.type is int:
        if number != int(number):
            raise ValueError(f'"{spec.name}" is a whole number, not {shown(value)}')
        return int(number)
    return number
