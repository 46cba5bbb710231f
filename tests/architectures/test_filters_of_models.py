"""Names of the tensors of checkpoints as filters, in a tiny model of each architecture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ggufmerge
from ggufmerge.architectures.names import listed
from ggufmerge.architectures.renamed import RENAMED
from ggufmerge.architectures.stacks import layer_of
from ggufmerge.recipe.settings import matches
from tests.architecture_models import TinyModel, each, tiny_models


def ends(model: TinyModel) -> list[str]:
    """The tensors outside of layers, and those of the first and the last layer."""
    return [name for name in model.tensors if layer_of(name) in (None, 0, model.layers - 1)]


def stem_of(name: str, architecture: str) -> tuple[str, str]:
    """The entry of gguf's table that a tensor has, and what the name has behind it."""
    template = name.replace(f".{layer_of(name)}.", ".{bid}.")
    if template in listed(architecture):
        return template, ""
    stem, _, suffix = template.rpartition(".")
    return stem, f".{suffix}"


def spelled(model: TinyModel, name: str) -> list[str]:
    """The whole names that gguf's table has for a tensor, beside its own; some keep in a layer what GGUF keeps once."""
    stem, suffix = stem_of(name, model.architecture)
    layer = layer_of(name) or 0
    found = [s.replace("{bid}", str(layer)) for s in listed(model.architecture).get(stem, ()) if s != stem]
    return [s + suffix for s in found if layer_of(name) is None or str(layer) in s]


def whole(spelling: str) -> str:
    """A filter that means a name and none of which it is a part."""
    return f"[{spelling[0]}]{spelling[1:]}"


def split_of(model: TinyModel, spelling: str) -> set[str]:
    """The tensors that a converter makes of the one of that name."""
    found = set()
    for name in ends(model):
        stem, suffix = stem_of(name, model.architecture)
        for s in RENAMED.get(model.architecture, {}).get(stem, ()):
            if s.replace("{bid}", str(layer_of(name))) + suffix == spelling:
                found.add(name)
    return found


def cases(model: TinyModel) -> Iterator[tuple[str, str]]:
    """(tensor, whole name in a checkpoint) for each name that gguf's table has."""
    for name in ends(model):
        for spelling in spelled(model, name):
            yield name, spelling


@pytest.mark.parametrize("name", each())
def test_a_whole_name_reaches_its_tensor_and_no_other(name: str):
    """Each name of gguf's table; what converters split, all its parts."""
    model = tiny_models()[name]
    tensors = ends(model)
    for tensor, spelling in cases(model):
        reached = {other for other in tensors if matches(whole(spelling), other, model.architecture)}
        assert reached == {tensor} | split_of(model, spelling), spelling


@pytest.mark.parametrize("name", each())
def test_whole_names_give_tensors_their_values(name: str, folder: Path):
    """In a plan, where each tensor has a filter with a value of its own."""
    model = tiny_models()[name]
    model.write(folder / "model.gguf", change=lambda name, values: values * 0)
    chosen = {tensor: spelling for tensor, spelling in reversed(list(cases(model))) if not split_of(model, spelling)}
    values = {tensor: (i + 1) / 1024 for i, tensor in enumerate(chosen)}
    rules = [{"filter": whole(chosen[tensor]), "value": value} for tensor, value in values.items()]
    one = {"model": "model.gguf", "parameters": {"weight": [*rules, {"value": 1}]}}
    other = {"model": "model.gguf", "parameters": {"weight": 2}}
    recipe = {"merge_method": "linear", "models": [one, other]}
    (folder / "recipe.yaml").write_text(repr(recipe).replace("'", '"'), encoding="utf-8")
    plan = ggufmerge.plan(folder / "recipe.yaml")
    merged = {t.name: t.models["weight"][0] for t in plan.tensors if t.models}  # tables of the rotation are taken
    assert merged == {name: values.get(name, 1) for name in merged}
    assert len(merged) >= len(plan.tensors) - 1
    assert values
