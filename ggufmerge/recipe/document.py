"""YAML with positions: plain data for the schema, and the line and column of every key and value for messages.

Recipes are read with PyYAML's safe constructor, so anchors, aliases and merge keys (`<<:`) work and no tag can run
code. Duplicate keys, which YAML forbids and PyYAML lets pass, are errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from ggufmerge.errors import RecipeError

Location = tuple[str | int, ...]


@dataclass
class Document:
    """One YAML document: `data` as plain Python values, `marks` from a location to its (line, column), 1-based."""

    data: Any
    marks: dict[Location, tuple[int, int]] = field(default_factory=dict)
    name: str = "recipe"

    def where(self, location: Location) -> str:
        """`recipe.yaml:7:5`, for the closest place known on the way to `location`."""
        line, column = self.position(location)
        return f"{self.name}:{line}:{column}"

    def position(self, location: Location) -> tuple[int, int]:
        """(line, column) of the closest place known on the way to `location`."""
        return next(self.marks[location[:end]] for end in range(len(location), -1, -1) if location[:end] in self.marks)


def parse(text: str, name: str = "recipe") -> Document:
    """The single YAML document in `text`; RecipeError names line and column of what YAML does not allow."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{name}: the recipe is empty; it needs at least merge_method and models")
        document = Document(None, {}, name)
        _mark(node, (), document, loader, set())
        document.data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise RecipeError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise RecipeError(f"{name}: not a YAML text: {error.reason} at position {error.position}") from None
    finally:
        loader.dispose()
    return document


def _mark(node: yaml.Node, at: Location, document: Document, loader: yaml.SafeLoader, above: set[int]) -> None:
    """Record the position of `node` and of all below it; a key's position stands for the pair."""
    if id(node) in above:
        raise RecipeError(f"{document.where(at)}: an alias that contains itself")
    document.marks.setdefault(at, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _mark(item, (*at, i), document, loader, above | {id(node)})
    elif isinstance(node, yaml.MappingNode):
        written = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode) and k.tag != _MERGE]
        for key in {k for k in written if written.count(k) > 1}:
            raise RecipeError(f'{document.where(at)}: the key "{key}" stands twice in one mapping; remove one')
        loader.flatten_mapping(node)
        seen = set()
        for key_node, value in reversed(node.value):  # merged pairs come first, and the last one counts
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.tag)
            if key in seen:
                continue
            seen.add(key)
            place = (*at, key)
            document.marks[place] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            _mark(value, place, document, loader, above | {id(node)})


_MERGE = "tag:yaml.org,2002:merge"
