"""A package that adds a merge method, a place of models and a sink to ggufmerge."""
