"""Recipes: mergekit's YAML dialect, read, checked and typed."""

from ggufmerge.recipe.recipe import Options, Recipe, load_recipe
from ggufmerge.recipe.reference import AdapterReference, ModelReference

__all__ = ["AdapterReference", "ModelReference", "Options", "Recipe", "load_recipe"]
