"""From text to checked recipes: YAML, schema, method and parameter names, all complaints with line numbers.

Published recipes contain words that mergekit accepts and never reads: parameters of other methods, keys of other tools,
words at a level where nobody looks for them. They become warnings that say what to do. What looks like a slip of a word
that matters is an error: a word close to a known one, and a parameter that is needed and stands in the wrong place.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from ggufmerge import plugins
from ggufmerge.errors import GgufmergeError, RecipeError, close_to, nearest
from ggufmerge.files.absent import RECIPES, absent
from ggufmerge.files.small import open_regular
from ggufmerge.methods import NAMES
from ggufmerge.methods import method as find_method
from ggufmerge.methods import names as method_names
from ggufmerge.methods.parameters import REQUIRED, Parameter, ScopeError
from ggufmerge.methods.spec import Base, Method
from ggufmerge.patterns import Budget, Pattern, PatternError
from ggufmerge.recipe.document import Document, Location, parse
from ggufmerge.recipe.old_forms import as_copied, language_module, modernized, name_stages, other_tool
from ggufmerge.recipe.reference import NO_REVISION, ModelReference
from ggufmerge.recipe.schema import Graft, Model, OutputSlice, RecipeKeys, SliceSource, TokenEmbedding, Tokenizer
from ggufmerge.recipe.settings import Scalar, Setting
from ggufmerge.text import printable, shown
from ggufmerge.types import FileType

# Words that stand in published recipes and that mergekit reads without effect.
INERT = {
    "int_methods": "no version of mergekit reads it",
    "int8_mask": "it only chose the type of a temporary in mergekit and changes no number",
    "embed_slerp": "mergekit no longer reads it",
    "residual_weight": "mergekit never read it",
    "consensus_method": "mergekit never read it",
    "input_model_parameters": "mergekit no longer reads it; write the parameters under each model",
    "override_architecture": "it names a class of transformers; a GGUF file says itself what it is",
}

MAX_BYTES = 1 << 20
# of the commands that make recipes
OPTIONS = {
    "out_type": "--type",
    "max_size": "--max-size",
    "max_bpw": "--max-bpw",
    "imatrix": "--imatrix",
    "calibration": "--calibration",
    "rounding": "--rounding",
    "noise_aware": "--noise-aware",
}
_ENTRY = '"- model: FILE.gguf"'
MAX_COMPLAINTS = 20  # that are written out

_KEYS: dict[str, type[pydantic.BaseModel]] = {
    "": RecipeKeys,
    "models": Model,
    "slices": OutputSlice,
    "sources": SliceSource,
    "graft": Graft,
    "tokenizer": Tokenizer,
}
_MOVED = {
    "random_seed": 'write "seed" at the top level',
    "tokens": "it belongs under tokenizer:",
    "pad_to_multiple_of": "it belongs under tokenizer:",
}
_ELSEWHERE = {  # keys beside `model` that make another model of it
    "revision": NO_REVISION,
    "lora": 'an adapter stands in the reference: write "model: FILE.gguf+ADAPTER.gguf"',
}
# How alike a word is to the one that it must be a slip of (difflib's ratio). At 0.8 are "hyperparameters" and "metric
# method" of other tools.
_SLIP_OF_KEY = 0.81
_SLIP_OF_PARAMETER = 0.66


@dataclass(frozen=True)
class Loaded:
    """One document of a recipe: its keys, with parameters in the types of their methods, and where they stand.

    warnings: what was read but has no effect, one line each.
    """

    keys: RecipeKeys
    document: Document
    warnings: tuple[str, ...]


def read_text(path: Path) -> str:
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
    return recipe_text(data, path)


def recipe_text(data: bytes, path: Path) -> str:
    """What a recipe of this name says, with `\\n` as line break; RecipeError when it is no text."""
    if data[:4] == b"GGUF":
        raise RecipeError(f"{path}: a GGUF file, not a recipe; without one: ggufmerge merge {path} OTHER.gguf")
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: more than {MAX_BYTES >> 20} MiB, which is too large for a recipe; give a YAML file")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what `>` writes in Windows PowerShell
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{printable(path.name)}:{line}: not UTF-8 text; save the recipe as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_documents(
    text: str,
    name: str,
    arguments: Mapping[str, str] | None = None,
    *,
    has_lines: bool = True,
    strict: bool = False,
) -> list[Loaded]:
    """The checked documents of a recipe's text, each after those that it is made from; the last one is the recipe.

    RecipeError lists what is wrong in its `lines`, at most 20.  arguments: as in `load_recipe`.
    has_lines: False for the YAML of a mapping, whose keys complaints name instead of lines.
    strict: every unknown word is an error: nobody has published what a user has just written as an option.
    """
    found: list[Loaded] = []
    complaints: list[_Complaint] = []
    documents = _documents(text, name, arguments, has_lines=has_lines)
    name_stages(documents)
    for document in documents:
        report = _Report(document, is_strict=strict)
        keys = None
        if not isinstance(document.data, dict):
            report.problem((), "a recipe is a mapping with the keys merge_method, models, ...")
        elif tool := other_tool(document.data):
            report.problem((), tool)
        else:
            unwrapped = _without_module(document.data, report)
            keys = _validated(modernized(_without_inert(unwrapped, (), report), report.warn), report)
        if keys is not None:
            found.append(Loaded(_checked(keys, report), document, tuple(_lines(report.warnings))))
        complaints += report.problems.values()
    if complaints:
        raise RecipeError(*_lines(complaints))
    return found if len(found) == 1 else _in_order(found)


def _documents(text: str, name: str, arguments: Mapping[str, str] | None, *, has_lines: bool) -> list[Document]:
    """The documents of a recipe; a text that is none, such as a letter, is not corrected as if it were one."""
    if "\u00a0" in text and (copied := as_copied(text)):  # a no-break space, which YAML takes for a letter
        documents = _documents(copied.text, name, arguments, has_lines=has_lines)
        documents[0].remarks.append(((copied.line, 1), copied.remark))
        return documents
    keys = "|".join(RecipeKeys.model_fields)
    pattern = rf"^[^\w\n]*(?:(?:merge_method|base_model|models|slices)\b|(?:{keys})[ \t]*:)"
    is_recipe = not text.strip() or re.search(pattern, text, re.MULTILINE)
    try:
        documents = parse(text, name, arguments, has_lines=has_lines)
    except RecipeError:
        if copied := as_copied(text):
            documents = _documents(copied.text, name, arguments, has_lines=has_lines)
            documents[0].remarks.append(((copied.line, 1), copied.remark))
            return documents
        if is_recipe:
            raise
    else:
        if is_recipe or any(isinstance(document.data, dict | list) for document in documents):
            return documents
    raise RecipeError(f'{name}:1: this is not a recipe, which has lines such as "merge_method: linear" and "models:"')


def _in_order(documents: list[Loaded]) -> list[Loaded]:
    """Several documents, each behind those that it is made from; the last one is the one that no other is made from."""
    final, problems = documents[-1], []
    unnamed = [d for d in documents if d.keys.name is None]
    if unnamed:
        final = unnamed[0]
        problems += [
            f"{d.document.where(())}: a second document without a name; only the final one has none"
            for d in unnamed[1:]
        ]
    named: dict[str, Loaded] = {}
    for loaded in documents:
        if loaded is not final and (name := loaded.keys.name) is not None:
            if name in named:
                problems.append(f"{loaded.document.where(('name',))}: a second document of the name {shown(name)}")
            named[name] = loaded
    order: list[Loaded] = []
    _visit(final, named, order, (), problems)
    problems += [
        f"{loaded.document.where(('name',))}: no other document uses {shown(name)} as a model; remove it"
        for name, loaded in named.items()
        if not any(loaded is other for other in order) and not problems
    ]
    if problems:
        raise RecipeError(*_shortened(problems))
    return order


def _visit(
    loaded: Loaded, named: dict[str, Loaded], order: list[Loaded], above: tuple[Loaded, ...], problems: list[str]
) -> None:
    """Append a document to `order` behind all that it is made from."""
    keys = loaded.keys
    if any(loaded is other for other in above):
        problems.append(f"{loaded.document.where(('name',))}: {shown(keys.name)} is made from itself")
    elif not any(loaded is other for other in order):
        tokenizers = (keys.tokenizer_source, keys.tokenizer.source if keys.tokenizer else None)
        for reference in (*keys.references(), *(t for t in tokenizers if isinstance(t, ModelReference))):
            if reference.path in named:
                _visit(named[reference.path], named, order, (*above, loaded), problems)
        order.append(loaded)


def _without_module(data: dict[str, Any], report: _Report) -> dict[str, Any]:
    """The recipe with what its language model's module says at the top level; a GGUF file holds no other module.

    The module's parameters come before those of the recipe, whose value holds where no filter of the module matches.
    """
    modules = data.get("modules")
    if not isinstance(modules, dict) or not modules:
        return data
    name = next(iter(modules)) if len(modules) == 1 else language_module(modules)
    module = modules.get(name)
    if not isinstance(module, dict):
        return data
    if len(modules) > 1:
        others = ", ".join(shown(other) for other in modules if other != name)
        report.warn(("modules",), f"only {shown(name)} is merged: a GGUF file holds the language model, not {others}")
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

    def __init__(self, document: Document, *, is_strict: bool) -> None:
        self.document, self.is_strict = document, is_strict
        self.problems: dict[Location, _Complaint] = {}
        self.warnings = [
            _Complaint(place, f"{document.name}:{place[0]}:{place[1]}", what) for place, what in document.remarks
        ]

    def problem(self, at: Location, what: str | Callable[[], str]) -> None:
        self.problems.setdefault(at, self._complaint(at, what))

    def warn(self, at: Location, what: str | Callable[[], str]) -> None:
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


def _validated(data: dict[str, Any], report: _Report) -> RecipeKeys | None:
    """The data as keys of a recipe; None when it is none.

    Unknown keys and bad parameters are reported and left out, so that the checks that follow can find more.
    """
    try:
        return RecipeKeys.model_validate(data)
    except pydantic.ValidationError as error:
        unknown = {_place(item, report.document) for item in error.errors() if item["type"] == "extra_forbidden"}
        for at in sorted(unknown, key=report.document.position):
            _judge_key(at, data, report)
        for at in unknown:
            _remove(data, at)
        for item in error.errors():
            at = _place(item, report.document)
            if at in unknown:
                continue
            report.problem(at, partial(_explain, item, at))
            if (parameter := _parameter(at)) is not None:
                _remove(data, parameter)
    try:
        return RecipeKeys.model_validate(data)
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


def _judge_key(at: Location, data: dict[str, Any], report: _Report) -> None:
    """Report a key that the schema does not know: an error if it is a slip of a word that matters, else a warning."""
    key, rooms = str(at[-1]), [part for part in at if isinstance(part, str)]
    owner = TokenEmbedding if "tokens" in rooms[-3:-2] else _KEYS.get((["", *rooms])[-2], RecipeKeys)
    known = owner.model_fields
    name = shown(key)
    methods = _methods_of(data)
    own = [q.name for method in methods for q in method.parameters]
    spec = next((found for method in methods if (found := method.parameter(key))), None)
    if spec is None and not _is_known(data.get("merge_method")):
        spec = next((found for method in map(find_method, NAMES) if (found := method.parameter(key))), None)
    if key == "modules":
        report.problem(at, f"unknown key {name}: a GGUF file holds one module; keep the one of the language model")
    elif "model" in known and key in _ELSEWHERE:
        report.problem(at, f"unknown key {name}: {_ELSEWHERE[key]}")
    elif spec is not None and (report.is_strict or (_is_needed(spec) and not _is_set(key, data))):
        report.problem(at, f"unknown key {name}: a parameter of the method belongs under parameters:")
    elif spec is not None:
        report.warn(at, f"{name} has no effect here: a parameter of the method belongs under parameters:")
    elif owner is Graft or report.is_strict:
        report.problem(at, partial(_unknown, name, key, known))
    elif key in _MOVED and key not in known:
        report.warn(at, f"{name} has no effect here: {_MOVED[key]}")
    elif key in RecipeKeys.model_fields:
        report.warn(at, f"{name} has no effect here: it belongs at the top level")
    elif not _is_parameter(key) and (meant := _slip_of(key, [*known, *own])):
        where = "" if meant in known else "a parameter of the method belongs under parameters: "
        report.problem(at, f'unknown key {name}: {where}did you mean "{meant}"?')
    else:
        report.warn(at, partial(_without_effect, name, key, known))


def _is_needed(spec: Parameter) -> bool:
    """Whether a merge without this parameter is not what anybody meant: mergekit refuses it."""
    return spec.default is REQUIRED or spec.together


def _slip_of(word: str, known: Sequence[str]) -> str | None:
    """The known word that another one must be a slip of; None when it may be a word of its own."""
    return close_to(word, known, _SLIP_OF_KEY) or next((k for k in known if sorted(k) == sorted(word.lower())), None)


def _unknown(name: str, key: str, known: Iterable[str]) -> str:
    return f"unknown key {name}: {nearest(key, known)}"


def _without_effect(name: str, key: str, known: Iterable[str]) -> str:
    close = close_to(key, known)
    return f"{name} has no effect: nobody reads it; remove it" + (f', or did you mean "{close}"?' if close else "")


def _methods_of(data: dict[str, Any]) -> list[Method]:
    """The methods that a recipe names, as far as they exist."""
    value = data.get("merge_method")
    names = [rule.get("value") for rule in value if isinstance(rule, dict)] if isinstance(value, list) else [value]
    return [find_method(str(name)) for name in names if _is_known(name)]


def _is_known(name: Any) -> bool:
    return isinstance(name, str) and name in method_names()


def _is_parameter(word: str) -> bool:
    """Whether some method has a parameter of this name."""
    return any(method.parameter(word) is not None for method in map(find_method, NAMES))


def _is_set(parameter: str, data: Any) -> bool:
    """Whether a parameter has a value somewhere where parameters are read."""
    if isinstance(data, list):
        return any(_is_set(parameter, value) for value in data)
    if not isinstance(data, dict):
        return False
    own = data.get("parameters")
    inner = (_is_set(parameter, data.get(key)) for key in ("models", "slices", "sources"))
    return (isinstance(own, dict) and parameter in own) or any(inner)


def _explain(item: Any, at: Location) -> str:
    """A complaint of the schema in words of the recipe."""
    rooms = [part for part in at if isinstance(part, str)]
    key = rooms[-1] if rooms else ""
    subject = f'an entry of "{key}"' if at and isinstance(at[-1], int) else shown(key) if key else "a recipe"
    value = shown(item["input"])
    match item["type"]:
        case "missing":
            known = f"; it is one of {', '.join(method_names())}" if key == "merge_method" else ""
            return f"the key {subject} is missing{known}"
        case "value_error":
            return str(item["ctx"]["error"])
        case "literal_error":
            told = f"{value} is not a valid {key}; it is one of {item['ctx']['expected']}"
            return f'{told}; for {kind} write "out_type: {kind}"' if (kind := _file_type(item["input"])) else told
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


def _file_type(value: Any) -> str:
    """The file type that somebody has written as a dtype; "" for none."""
    try:
        return str(FileType.parse(value)) if isinstance(value, str) else ""
    except GgufmergeError:
        return ""


def _as_entry(value: Any) -> str:
    """How a list entry is written for what stands there instead of a list."""
    if isinstance(value, dict):
        value = value.get("model", next(iter(value), None))
    return f'"- model: {printable(value)}"' if isinstance(value, str) and "\n" not in value else _ENTRY


def _checked(recipe: RecipeKeys, report: _Report) -> RecipeKeys:
    """The recipe with its parameters in the types of their methods, after a report of what the schema cannot see:
    methods, and the names, scopes and values of parameters.
    """
    if recipe.models is None and recipe.slices is None:
        alone = "base_model alone makes no merge" if recipe.base_model else "the recipe names no models"
        report.problem((), f"{alone}: add models:, and below it a line such as {_ENTRY} for each model")
    elif recipe.models is not None and recipe.slices is not None:
        report.problem(("slices",), 'a recipe has either "models" or "slices": remove one of them')
    if recipe.tokenizer is not None and recipe.tokenizer_source is not None:
        report.problem(("tokenizer",), 'a recipe has either "tokenizer" or "tokenizer_source"')
    budget = next((key for key in ("max_size", "max_bpw") if getattr(recipe, key) is not None), None)
    for key in ("like", "out_type"):
        if budget and getattr(recipe, key) is not None:
            what = f'a recipe has either "{budget}" or "{key}": both say which types the result has'
            report.problem((key,), what)
    if recipe.like is not None and recipe.out_type is not None:
        report.problem(("like",), 'a recipe has either "like" or "out_type": both say which types the result has')
    try:
        methods = [find_method(name) for name in recipe.methods]
    except GgufmergeError as error:
        report.problem(("merge_method",), str(error))
        return recipe
    clashes = plugins.METHODS.clashes(NAMES)
    for method in methods:
        if method.name in clashes:
            report.warn(("merge_method",), clashes[method.name])
    _check_patterns(recipe, report)
    _warn_of_unreachable(("merge_method",), recipe.merge_method, report)
    for method in methods:
        try:
            method.check_base(recipe.base_model is not None or _every_slice_has_base(recipe))
        except ValueError as error:
            report.problem(("merge_method",), _base_missing(method, recipe, str(error)))
    typed: dict[Location, dict[str, Setting]] = {}
    for at, parameters, per_model in _parameter_places(recipe):
        is_base = per_model and all(method.base is not Base.MODEL for method in methods) and _is_base(recipe, at)
        typed[at] = {}
        for name in parameters:
            # the method that reads the parameter here, else one that knows it, else any: its complaint is the user's
            method = max(methods, key=lambda m: _affinity(m, name, per_model))
            if method.parameter(name) is None and not _is_slip(name, at, parameters, methods, report):
                continue
            setting = _checked_parameter(method, (*at, name), parameters, per_model, is_base, recipe, report)
            if setting is not None:
                typed[at][name] = setting
    return _with_parameters(recipe, typed)


_Owner = TypeVar("_Owner", bound=pydantic.BaseModel)


def _with_parameters(recipe: RecipeKeys, typed: Mapping[Location, dict[str, Setting]]) -> RecipeKeys:
    """A copy of the recipe with other settings, by the places of `_parameter_places`."""

    def changed(owner: _Owner, at: Location, **changes: Any) -> _Owner:
        settings = typed[(*at, "parameters")]
        if settings or owner.parameters:  # type: ignore[attr-defined]
            changes["parameters"] = settings
        return owner.model_copy(update=changes)

    def changed_slice(piece: OutputSlice, at: Location) -> OutputSlice:
        sources = [changed(source, (*at, "sources", j)) for j, source in enumerate(piece.sources)]
        return changed(piece, at, sources=sources)

    changes: dict[str, Any] = {}
    if recipe.models is not None:
        changes["models"] = [changed(model, ("models", i)) for i, model in enumerate(recipe.models)]
    if recipe.slices is not None:
        changes["slices"] = [changed_slice(piece, ("slices", i)) for i, piece in enumerate(recipe.slices)]
    return changed(recipe, (), **changes)


def _base_missing(method: Method, recipe: RecipeKeys, what: str) -> str:
    """What to do where a method has no base."""
    if not method.pair:
        return f'{what}: add "base_model: FILE.gguf", the model that the others were tuned from'
    models = [str(entry.model) for entry in recipe.models or ()]
    start, other = models if len(models) == 2 else ("one of them", "the other")
    return f"{what}: make {start} the base_model and list only {other} as model"


def _check_patterns(recipe: RecipeKeys, report: _Report) -> None:
    budget = Budget()
    for text in recipe.tensor_types:
        try:
            Pattern(text, re.IGNORECASE, budget)
        except PatternError as error:
            report.problem(("tensor_types", text), str(error))


def _affinity(method: Method, name: str, per_model: bool) -> int:
    spec = method.parameter(name)
    return 0 if spec is None else 1 if per_model and spec.scope == "shared" else 2


def _every_slice_has_base(recipe: RecipeKeys) -> bool:
    return bool(recipe.slices) and all(s.base_model for s in recipe.slices or ())


def _parameter_places(recipe: RecipeKeys) -> Iterable[tuple[Location, dict[str, Setting], bool]]:
    """(location, parameters, whether they belong to one model) for each place where a recipe sets parameters."""
    yield ("parameters",), recipe.parameters, False
    for i, model in enumerate(recipe.models or ()):
        yield ("models", i, "parameters"), model.parameters, True
    for i, out in enumerate(recipe.slices or ()):
        yield ("slices", i, "parameters"), out.parameters, False
        for j, source in enumerate(out.sources):
            yield ("slices", i, "sources", j, "parameters"), source.parameters, True


def _is_base(recipe: RecipeKeys, at: Location) -> bool:
    if at[0] == "models":
        return recipe.models is not None and recipe.models[int(at[1])].model == recipe.base_model
    out = (recipe.slices or [])[int(at[1])]
    return out.sources[int(at[3])].model == (out.base_model or recipe.base_model)


def _is_slip(
    name: str, at: Location, parameters: dict[str, Setting], methods: Sequence[Method], report: _Report
) -> bool:
    """Whether a parameter that none of the methods has is to be refused; reports it otherwise.

    What another method reads, or nobody, is left over from another recipe or another tool.
    """
    own = {q.name for method in methods for q in method.parameters}
    subject = '"' + name + '" has no effect'
    if name.isdecimal() and _decimal_comma(name, parameters):
        return True
    if report.is_strict:
        return True
    if _is_parameter(name):
        readers = " and ".join(method.name for method in methods)
        report.warn((*at, name), f"{subject} in {readers}, which {'do' if len(methods) > 1 else 'does'} not read it")
    elif name == "random_seed" or name in RecipeKeys.model_fields:
        report.warn((*at, name), f"{subject} here: {_MOVED.get(name, 'it belongs at the top level')}")
    elif close_to(name, own, _SLIP_OF_PARAMETER):
        return True
    else:
        report.warn((*at, name), f"{subject}: no method reads it; remove it")
    return False


def _checked_parameter(
    method: Method,
    at: Location,
    parameters: dict[str, Setting],
    per_model: bool,
    is_base: bool,
    recipe: RecipeKeys,
    report: _Report,
) -> Setting | None:
    """One of the `parameters` with its values in its type, after a report of what is wrong with it; None when it is
    not read here.
    """
    name = str(at[-1])
    setting = parameters[name]
    try:
        spec = method.named(name, per_model)
        typed = _typed(spec, setting)
    except ScopeError as error:
        what = f'{error} and is not read here: move it to "parameters:"'
        read = [recipe.parameters, *(piece.parameters for piece in recipe.slices or ())]
        shared = method.parameter(name)
        if shared is not None and _is_needed(shared) and not any(name in level for level in read):
            report.problem(at, what)
            return setting
        report.warn(at, what)
        return None
    except ValueError as error:
        if name.isdecimal() and (before := _decimal_comma(name, parameters)):
            report.problem(at, f'numbers have a point: write "{before}.{name}", not "{before},{name}"')
        else:
            report.problem(at, str(error))
        return setting
    doubts = (spec.doubt(value) for rule in typed.rules for value in _anchors(rule.value))
    if doubt := next(filter(None, doubts), ""):
        report.warn(at, doubt)
    if is_base:
        report.warn(at, f'"{name}" has no effect on the base model')
    _warn_of_unreachable(at, setting, report)
    return typed


def _decimal_comma(name: str, parameters: dict[str, Setting]) -> str:
    """`{weight: 0,5}` reads as weight 0 and a key 5: what stands before the comma, such as `weight: 0`."""
    names = list(parameters)
    previous = names[names.index(name) - 1] if names.index(name) else ""
    values = [rule.value for key in (name, previous) if key for rule in parameters[key].rules]
    whole = (
        len(values) == 2 and values[0] is None and isinstance(values[1], (int, float)) and values[1] == int(values[1])
    )
    return f"{previous}: {int(values[1])}" if whole else ""  # type: ignore[arg-type]


def _warn_of_unreachable(at: Location, setting: Setting, report: _Report) -> None:
    for rule in setting.unreachable():
        what = "a second value without a filter" if rule.filter is None else f"the filter {shown(rule.filter)}"
        report.warn(at, f'{what} of "{at[-1]}" has no effect: an earlier one takes all its tensors; write it first')


def _typed(spec: Parameter, setting: Setting) -> Setting:
    """A setting with its values in the parameter's type; ValueError when one is not."""
    return Setting(
        tuple(
            replace(rule, value=tuple(spec.parse(v, anchor=True) for v in rule.value))
            if isinstance(rule.value, tuple)
            else replace(rule, value=spec.parse(rule.value))
            for rule in setting.rules
        )
    )


def _anchors(value: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """The values of a gradient; a value alone."""
    return value if isinstance(value, tuple) else (value,)
