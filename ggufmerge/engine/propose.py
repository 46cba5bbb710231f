"""A recipe for some models, when all that is known is which: the base, a method and a type, each with its reason.

Nothing is guessed where a file records it or a few rows tell it, and nothing is hidden: each choice is a line that says
what was taken and why, and every one can be given instead.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufmerge import keys
from ggufmerge.engine import relatives
from ggufmerge.engine.relatives import Base
from ggufmerge.engine.trial import to_try
from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.files import GGUFFile, facts, open_gguf
from ggufmerge.files.shards import model_name
from ggufmerge.formats.peft import CONFIG
from ggufmerge.methods import method as find_method
from ggufmerge.methods.parameters import REQUIRED
from ggufmerge.methods.spec import Base as MethodBase
from ggufmerge.methods.spec import Method
from ggufmerge.places import inventory
from ggufmerge.places.inventory import FoundModel
from ggufmerge.places.opening import open_source
from ggufmerge.places.references import find
from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan
from ggufmerge.planning.planner import make_plan
from ggufmerge.planning.survival import LOW_SURVIVAL, TypeSurvival, as_large
from ggufmerge.recipe import AdapterReference, ModelReference, Recipe, load_recipe
from ggufmerge.recipe.load import OPTIONS
from ggufmerge.recipe.plain import written
from ggufmerge.running.run import foresee
from ggufmerge.sources import Source
from ggufmerge.text import printable
from ggufmerge.types import FileType, TensorType

DENSITY = 0.5  # where a method prunes
_PRUNING = ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
_OVERDONE = 1.25  # share of a change, from which on it is said that rounding makes it larger
_LONGEST = 60  # letters of a file's name


@dataclass(frozen=True)
class Choice:
    """One thing that was decided: `what` ("base", "method", "type"), the `value` taken, and why, in words."""

    what: str
    value: str
    why: str

    def __str__(self) -> str:
        value = model_name(self.value) if self.what == "base" else self.value
        return f"{self.what}: {value}, {self.why}" if self.why else f"{self.what}: {value}"


@dataclass(frozen=True)
class Proposal:
    """A recipe for some models, and why it is this one.

    output: a name for the result that no file has.  warnings: what the user should know, one line each.
    """

    recipe: Recipe
    choices: tuple[Choice, ...]
    output: Path
    warnings: tuple[str, ...] = ()

    def find(self, what: str) -> Choice | None:
        """The choice of "base", "method" or "type"; None where nothing was chosen."""
        return next((choice for choice in self.choices if choice.what == what), None)

    def choice(self, what: str) -> Choice:
        """The same of what is always chosen."""
        found = self.find(what)
        assert found is not None
        return found

    def text(self, folder: str | os.PathLike[str] | None = None) -> str:
        """The recipe as YAML, with a comment for each choice; for a file in `folder`, where paths start from there."""
        recipe = self.recipe.text if folder is None else _moved(self.recipe, Path(folder))
        return "".join(f"# {printable(str(choice))}\n" for choice in self.choices) + recipe


@dataclass(frozen=True)
class _Given:
    """The models and adapters that were named, in their order."""

    items: tuple[ModelReference | AdapterReference, ...]

    @property
    def models(self) -> list[ModelReference]:
        return [item for item in self.items if isinstance(item, ModelReference)]

    @property
    def adapters(self) -> list[AdapterReference]:
        return [item for item in self.items if isinstance(item, AdapterReference)]

    def without(self, base: ModelReference) -> _Given:
        """All but the base."""
        return _Given(tuple(i for i in self.items if isinstance(i, AdapterReference) or not _same_file(i, base)))

    def __str__(self) -> str:
        return ", ".join(map(str, self.items))


def propose_merge(
    models: Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | None = None,
    find_base: bool = True,
    method: str | None = None,
    weights: Sequence[float] = (),
    parameters: Mapping[str, Any] | None = None,
    out_type: FileType | str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Proposal:
    """A recipe that merges some models, with a reason for all that was not said.

    models: paths and names as in recipes; LoRA adapters among them, followed by "=0.5" for a strength, belong to
        the base, or to the only model there is.
    base: the model that the others were tuned from. Without it the models that `ggufmerge models` lists and those in
        the folders of the given ones are looked at, unless find_base is False: what the files record decides, else the
        weights (`engine.relatives`), for about five seconds.
    method: of `ggufmerge.methods.NAMES`. Without it: adapters alone are written into their model; with a base
        task_arithmetic, two models without one slerp, more linear.
    weights: one for each model in the order given, 1 for each by default; for methods with `t` it is the share of the
        second model. With task_arithmetic and weights of one's own lambda is 1.
    parameters: further ones of the method, such as {"density": 0.4}.
    out_type: file type. Without it that of the models, or a wider one if a trial on a few tensors says that too little
        of the change would survive in it.
    options: further keys of the recipe, such as {"name": "both", "seed": 3}.
    GgufmergeError (PlanError, FormatError, RecipeError) says what does not fit.
    """
    if isinstance(models, str | os.PathLike):
        models = [models]
    given = _sorted_out(models)
    if len(given.items) == 1 and given.models and base is None:
        alone = model_name(str(given.models[0]))
        raise PlanError(f"{alone}: one model alone makes nothing new: give another one, or an adapter")
    choices: list[Choice] = []
    warnings: list[str] = []
    reference: ModelReference | None = None
    with ExitStack() as stack:
        sources = [_opened(stack, model) for model in given.models]
        if base is not None:
            reference, why = _base_reference(base), "as you say"
            _opened(stack, reference)
        elif len(given.models) == 1 and given.adapters:
            reference, why = given.models[0], "the model that the adapters are for"
        elif not given.models:
            reference, why = _base_of_adapters(given.adapters)
        else:
            if find_base and _wants_base(method, given):
                reference, why, note = _find_base(given, sources)
                warnings += note
            if reference is None and given.adapters:
                adapter = given.adapters[0]
                raise PlanError(
                    f"{adapter.path}: an adapter, and it is not known for which model: write "
                    f"MODEL.gguf+{Path(adapter.path).name}, or give the base with --base MODEL"
                )
            apart = relatives.distance(sources)
            if relatives.are_strangers(apart):
                warnings.append(
                    f"these models differ by {100 * (apart or 0):.0f} % of their weights, as models of different "
                    "origin do: a merge of such models talks nonsense"
                )
        if reference is not None:
            given = given.without(reference)
            choices.append(Choice("base", str(reference), why))
        content = _content(given, reference, method, weights, dict(parameters or {}), choices)
    content |= {key: value for key, value in (options or {}).items() if value is not None}
    recipe = _with_type(content, out_type, choices)
    return Proposal(recipe, tuple(choices), _free_name(given, reference), tuple(warnings))


def _sorted_out(models: Sequence[str | os.PathLike[str]]) -> _Given:
    """What was named, as models and adapters; PlanError when there is nothing, or one does not exist."""
    items: list[ModelReference | AdapterReference] = []
    texts, wrong = [os.fspath(model) for model in models], list[str]()
    for text in texts:
        try:
            item = _as_adapter(text) or ModelReference.from_argument(text)
            if isinstance(item, ModelReference):
                find(item.path)
        except GgufmergeError as error:
            if len(texts) == 1 or type(error) is not PlanError:
                raise
            wrong += error.lines
            continue
        if item in items:
            raise PlanError(f"{text}: is given twice; a model merged with itself is itself: give it once")
        items.append(item)
    if wrong:
        raise PlanError(*wrong)
    if not items:
        raise PlanError("name the models to merge, two or more")
    return _Given(tuple(items))


def _as_adapter(text: str) -> AdapterReference | None:
    """What was named if it is a LoRA adapter; None for a model."""
    if "+" in text and not Path(text).exists():
        return None
    try:
        reference = AdapterReference(text) if Path(text).exists() else AdapterReference.parse(text)
    except ValueError as error:
        raise PlanError(str(error)) from None
    path = find(reference.path).path
    if path.is_dir():
        return reference if (path / CONFIG).is_file() else None
    if path.suffix == ".safetensors":
        return reference if (path.parent / CONFIG).is_file() else None
    with open_gguf(path) as file:
        return reference if facts.kind(file) == "adapter" else None


def _opened(stack: ExitStack, reference: ModelReference) -> Source:
    source = open_source(reference)
    stack.callback(source.close)
    return source


def _base_reference(base: str | os.PathLike[str]) -> ModelReference:
    text = os.fspath(base)
    if _as_adapter(text) is not None:
        raise PlanError(f"{text}: a LoRA adapter cannot be the base; give the model that it is for")
    return ModelReference.from_argument(text)


def _same_file(a: ModelReference, b: ModelReference) -> bool:
    if a.adapters or b.adapters:
        return a == b
    return a.path == b.path or find(a.path).path.resolve() == find(b.path).path.resolve()


def _wants_base(method: str | None, given: _Given) -> bool:
    """Whether a base is looked for: one that the method takes differences from, and that is not one of two models."""
    if method is None or given.adapters:
        return True
    chosen = find_method(method)
    return chosen.base is MethodBase.REQUIRED and not _goes_from_one(chosen)


def _find_base(given: _Given, sources: Sequence[Source]) -> tuple[ModelReference | None, str, list[str]]:
    """The base of some models, why it is that, and what to tell the user of the search."""
    known = inventory.known_models(source.file.path.parent for source in sources)
    families = {inventory.family_of(source.file) for source in sources if isinstance(source.file, GGUFFile)}
    candidates = [model for model in known if {model.family} == families]
    # the model below an adapter may well be the base of the others, too
    whole = [source for source, model in zip(sources, given.models, strict=True) if not model.adapters]
    paths = {source.file.path.resolve() for source in whole}
    others = [model for model in candidates if model.path is None or model.path.resolve() not in paths]
    base = relatives.recorded_base(sources, others)
    if base is None and len(sources) > 2:
        base = _among(given, sources)
    if base is not None:
        return ModelReference(base.reference), base.why, []
    base, measured = relatives.measured_base(sources, others)
    if base is not None:
        return ModelReference(base.reference), base.why, []
    missed = len(others) - measured
    if not missed:
        return None, "", []
    what = f"{missed} of {len(others)} models that could be the base were not looked at"
    return None, "", [f"{what}, for lack of time or because they cannot be read: give it with --base MODEL"]


def _among(given: _Given, sources: Sequence[Source]) -> Base | None:
    """The given model that the others were tuned from, by what they record or by their weights."""
    for i, reference in enumerate(given.models):
        others = [source for j, source in enumerate(sources) if j != i]
        if reference.adapters or sources[i].is_checkpoint:
            continue
        found = inventory.described(reference.path, sources[i].file.path)
        base = relatives.recorded_base(others, [found]) or relatives.measured_base(others, [found])[0]
        if base is not None:
            return base
    return None


def _base_of_adapters(adapters: Sequence[AdapterReference]) -> tuple[ModelReference, str]:
    """The model that some adapters are for: the only known one that they fit, or the one that they name; and why."""
    known = inventory.known_models(find(adapter.path).path.parent for adapter in adapters)
    fitting = [model for model in known if model.kind == "model" and _fit(adapters, model)]
    names = _names_of_bases(adapters)
    named = [model for model in fitting if relatives.word(model.name) in names]
    if len(named or fitting) == 1:
        [model] = named or fitting
        why = "the model that the adapters name" if named else "the only model here that the adapters fit"
        return ModelReference(model.references[0]), why
    if not fitting:
        raise PlanError("none of the models on this machine fits these adapters: give theirs with --base MODEL")
    listed = ", ".join(model.references[0] for model in (named or fitting)[:5])
    raise PlanError(f"the adapters fit several models ({listed}): give theirs with --base MODEL")


def _fit(adapters: Sequence[AdapterReference], model: FoundModel) -> bool:
    return model.path is not None and all(inventory.fits(find(a.path).path, model.path) for a in adapters)


def _names_of_bases(adapters: Sequence[AdapterReference]) -> set[str]:
    """The names by which GGUF adapters call the model they are for."""
    names = set()
    for adapter in adapters:
        path = find(adapter.path).path
        if path.suffix == ".gguf":
            with open_gguf(path) as file:
                names.add(relatives.word(file.metadata.text(keys.base_model(0, "name")) or ""))
    return names - {""}


def _content(
    given: _Given,
    base: ModelReference | None,
    method: str | None,
    weights: Sequence[float],
    parameters: dict[str, Any],
    choices: list[Choice],
) -> dict[str, Any]:
    """The recipe but for its type."""
    if weights and len(weights) != len(given.items):
        raise PlanError(f"{len(weights)} weights for {len(given.items)} models to merge ({given}): give one for each")
    if base is not None and not given.models and method is None:
        return _baked(given, base, weights, choices)
    order = [_as_model(item, base) for item in given.items]
    name, why = _method(method, order, base)
    chosen = find_method(name)
    choices.append(Choice("method", name, why))
    if base is not None and chosen.base is MethodBase.MODEL:
        raise PlanError(f"{name} averages its models and takes no differences from a base: leave the base out")
    if base is None and chosen.base is MethodBase.REQUIRED:
        if not _goes_from_one(chosen):
            raise PlanError(f"{name} takes differences from a base, and none was found: give it with --base MODEL")
        if len(order) < 2:
            raise PlanError(f"{name} goes from one model to another: give two")
        base, order = order[0], order[1:]
    elif len(order) < 2 and not (weights or parameters):
        raise PlanError("one model and its base make nothing new: give another model, or --weight 0.5 to go half way")
    if _goes_from_one(chosen):
        weights = _steps(chosen, weights, parameters)
    return _recipe(chosen, base, order, weights, parameters)


def _goes_from_one(method: Method) -> bool:
    """Whether a method goes from one model, its "base", to another, so that two models are enough for it."""
    return method.base is MethodBase.REQUIRED and (method.name == "slerp" or method.max_models == 1)


def _baked(given: _Given, base: ModelReference, weights: Sequence[float], choices: list[Choice]) -> dict[str, Any]:
    """Adapters alone: the model with all of them."""
    factors = weights or [1.0] * len(given.adapters)
    adapters = [
        AdapterReference(a.path, a.strength * factor) for a, factor in zip(given.adapters, factors, strict=True)
    ]
    reference = ModelReference(base.path, (*base.adapters, *adapters))
    choices.append(Choice("method", "bake", "since adapters alone are written into their model"))
    return {"merge_method": "passthrough", "models": [{"model": reference.written()}]}


def _as_model(item: ModelReference | AdapterReference, base: ModelReference | None) -> ModelReference:
    """What is merged: a model as it is, an adapter as the base with it."""
    if isinstance(item, ModelReference):
        return item
    assert base is not None
    return ModelReference(base.path, (*base.adapters, item))


def _method(method: str | None, order: Sequence[ModelReference], base: ModelReference | None) -> tuple[str, str]:
    """The method, and why."""
    if method is not None:
        return method, "as you say"
    if base is not None:
        return "task_arithmetic", "since the base is known: what each model learned is added to it"
    if len(order) == 2:
        return "slerp", "since no base is known: from one model half way to the other"
    return "linear", "since no base is known: the average"


def _steps(method: Method, weights: Sequence[float], parameters: dict[str, Any]) -> Sequence[float]:
    """The weights that are left when `t` was made of them, for methods that go from one model to another by it."""
    if method.parameter("t") is None:
        return weights
    if weights and "t" in parameters:
        raise PlanError(f"{method.name}: weights say how far to go to the second model, and so does t: give one")
    if len(weights) > 2:
        raise PlanError(f"{method.name} goes from one model to another, not to {len(weights) - 1}")
    if weights:
        if not sum(weights):
            raise PlanError("the weights sum to zero: give others")
        parameters["t"] = weights[1] / sum(weights) if len(weights) == 2 else weights[0]
    elif method.name == "slerp":
        parameters.setdefault("t", 0.5)
    return ()


def _recipe(
    method: Method,
    base: ModelReference | None,
    order: Sequence[ModelReference],
    weights: Sequence[float],
    parameters: dict[str, Any],
) -> dict[str, Any]:
    shared = dict(parameters)
    if weights and method.parameter("weight") is None:
        raise PlanError(f"{method.name} has no weights: leave them out")
    entries: list[dict[str, Any]] = [{"model": reference.written()} for reference in order]
    if weights:
        for entry, weight in zip(entries, weights, strict=True):
            entry["parameters"] = {"weight": weight}
    elif (weight_of := method.parameter("weight")) is not None and (
        weight_of.together or weight_of.default is REQUIRED
    ):
        shared.setdefault("weight", 1)
        if method.name == "task_arithmetic" and len(order) > 1:
            # unrelated changes of one size then sum up to a change of that size; docs/merge.md has figures
            shared.setdefault("lambda", round(1 / math.sqrt(len(order)), 2))
    if method.name in _PRUNING:
        shared.setdefault("density", DENSITY)
    for q in method.parameters:
        if q.scope == "shared" and q.default is REQUIRED and q.name not in shared:
            raise PlanError(f"{method.name} needs {q.name} ({q.doc}): give it with --set {q.name}=NUMBER")
    content: dict[str, Any] = {"merge_method": method.name}
    if base is not None:
        content["base_model"] = base.written()
    content["models"] = entries
    if shared:
        content["parameters"] = shared
    return content


def _with_type(content: dict[str, Any], out_type: FileType | str | None, choices: list[Choice]) -> Recipe:
    """The recipe with its type: the one asked for, that of the models, or a wider one that keeps their changes."""
    if any(key in content for key in ("like", "dtype", "out_dtype", "out_type")):
        return load_recipe(content, arguments=OPTIONS)
    if out_type is not None:
        choices.append(Choice("type", str(FileType.parse(str(out_type))), "as you say"))
        return load_recipe(content | {"out_type": str(FileType.parse(str(out_type)))}, arguments=OPTIONS)
    with ExitStack() as stack:
        plan, opened = make_plan(load_recipe(content, arguments=OPTIONS))
        stack.callback(opened.close)
        wanted = _type_of_models(plan, opened)
        if wanted is not None:
            content = content | {"out_type": str(wanted)}
            plan, opened = make_plan(load_recipe(content, arguments=OPTIONS))
            stack.callback(opened.close)
        kept = foresee(plan, opened, to_try(plan, opened))
    found = [one for one in kept if _is_lost(one) and one.wider]
    donor = "that of the models" if wanted is not None else f"as in {plan.sources[0].label}"
    if not found:
        choices.append(Choice("type", str(plan.file_type), f"{donor}{_remains(kept, plan.file_type)}"))
        return load_recipe(content, arguments=OPTIONS)
    worst = min(found, key=lambda one: one.survival.share)
    wider = next((n for n, s in worst.wider.items() if s.share >= LOW_SURVIVAL), list(worst.wider)[-1])
    share, better = worst.survival.share, worst.wider[wider].share
    choices.append(
        Choice(
            "type",
            wider,
            f"since only {100 * share:.0f} % of the change would survive in {worst.type}, and {100 * better:.0f} % "
            f"does in it; type {plan.file_type} would keep the size",
        )
    )
    return load_recipe(content | {"out_type": wider}, arguments=OPTIONS)


def _is_lost(kept: TypeSurvival) -> bool:
    """Whether too little of a change survives; a few tensors are no more than a sample."""
    return kept.survival.is_lost


def _remains(kept: Sequence[TypeSurvival], file_type: FileType) -> str:
    """What a trial found of the changes, in words."""
    if not kept:
        return ""
    noise = max(one.survival.noise for one in kept)
    beside = f", with noise {as_large(noise)}" if noise > 1 else ""
    if beside and file_type.default.bits_per_weight < TensorType.Q8_0.bits_per_weight:
        beside += "; type Q8_0 has less noise"
    if any(one.stochastic for one in kept):
        return f": the change survives in it, since it is rounded stochastically{beside}"
    worst = min(kept, key=lambda one: one.survival.share)
    most = max(one.survival.share for one in kept)
    if most > _OVERDONE:
        return f": the change comes out up to {most:.2g} times as large as asked in it; type Q8_0 is closer"
    share = min(100, round(100 * worst.survival.share))
    return f": about {share} % of the change survives in it{beside}"


def _type_of_models(plan: Plan, opened: Opened) -> FileType | None:
    """The file type that the models have, the widest if they differ; None when that is what the plan has anyway."""
    inputs = {i.source for t in plan.tensors for i in t.inputs}
    merged = [s for n, s in enumerate(opened.sources) if n in inputs and not s.is_checkpoint]
    base = {opened.sources[t.inputs[0].source].file.path for t in plan.tensors if t.has_base}
    models = [s for s in merged if s.file.path not in base] or merged
    kinds = {kind for source in models if (kind := facts.file_type(source.file)) is not None}
    if not kinds:
        return None
    widest = max(kinds, key=lambda kind: (kind.default.bits_per_weight, kind.id))
    return None if widest == facts.file_type(opened.sources[0].file) else widest


def _free_name(given: _Given, base: ModelReference | None) -> Path:
    """A name for the result in the working folder that neither a file nor a Modelfile has."""
    parts = [_short(reference.path) for reference in given.models] or [_short(base.path) if base else ""]
    parts += [_short(a.path) for m in given.models for a in m.adapters] + [_short(a.path) for a in given.adapters]
    stem = "-".join(dict.fromkeys(part for part in parts if part))
    if len(stem) > _LONGEST or not stem:
        stem = f"{parts[0][:_LONGEST]}-and-{max(len(parts) - 1, 1)}-more" if parts and parts[0] else "models"
    for number in range(1, 10_000):
        name = f"{stem}-merged{f'-{number}' if number > 1 else ''}"
        if not any(os.path.lexists(f"{name}{suffix}") for suffix in (".gguf", ".Modelfile")):
            return Path(f"{name}.gguf")
    raise PlanError(f"{stem}-merged.gguf: this name is taken, with all numbers: give one with --output FILE")


def _short(path: str) -> str:
    """What a model is called within a file's name."""
    scheme, colon, name = path.partition(":")
    last = (name if colon and len(scheme) > 1 else path).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    plain = re.sub(r"\.(gguf|safetensors)$", "", last, flags=re.IGNORECASE)
    kinds = "|".join(re.escape(kind) for kind in FileType)
    untyped = re.sub(rf"[-._:]({kinds})$", "", plain, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "-", untyped).strip("-.")


def _moved(recipe: Recipe, folder: Path) -> str:
    """The text of a recipe of the working folder for a file in another one: local paths are written whole there."""
    if folder.resolve() == Path().resolve():
        return recipe.text

    def path(text: str) -> str:
        return str(Path(text).absolute()) if Path(text).expanduser().exists() and not text.startswith("~") else text

    def reference(model: ModelReference) -> Any:
        adapters = tuple(AdapterReference(path(a.path), a.strength) for a in model.adapters)
        return ModelReference(path(model.path), adapters).written()

    data = recipe.as_written()
    if recipe.base_model is not None:
        data["base_model"] = reference(recipe.base_model)
    data["models"] = [
        entry | {"model": reference(model.model)}
        for entry, model in zip(data["models"], recipe.models or (), strict=True)
    ]
    for key in ("imatrix", "calibration"):
        if files := getattr(recipe, key):
            data[key] = [path(name) for name in files]
    return written([data])
