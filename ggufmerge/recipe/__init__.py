"""Recipes: mergekit's YAML dialect, read, checked and typed."""

from ggufmerge.recipe.load import load_recipe
from ggufmerge.recipe.reference import AdapterReference, ModelReference
from ggufmerge.recipe.schema import Recipe

__all__ = ["AdapterReference", "ModelReference", "Recipe", "load_recipe"]
