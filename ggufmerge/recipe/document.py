"""YAML with positions: plain data for the schema, and the line and column of every key and value for messages.

A recipe may come from anywhere, so only YAML's plain types are read (mappings, lists, texts, numbers, true/false,
null): tags cannot name anything else, aliases cannot grow without end, and duplicate keys, which YAML forbids and
PyYAML lets pass, are errors. Anchors, aliases and merge keys (`<<:`) work. Words mean what they mean to PyYAML, and so
to mergekit, but for two: `1e-5` is a number, and a date is a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from ggufmerge.errors import RecipeError
from ggufmerge.recipe.slips import explain
from ggufmerge.text import one_line, quoted, shown

Location = tuple[str | int, ...]

MAX_VALUES = (
    200_000  # keys count, too; with aliases written out; frankenmerges of hundreds of layers have a few thousand
)
MAX_NODES = 20_000  # the same without aliases: what PyYAML has to read, which takes it a second
MAX_DOCUMENTS = 100
MAX_DEPTH = 20
_MAX_NUMBER = 1000  # letters
NAME = "recipe"  # of one that has no file


@dataclass
class Document:
    """One YAML document: `data` as plain Python values, `marks` from a location to its (line, column), 1-based.

    Keys of mappings are always texts, as they are written.
    arguments: None for what the user has written. A recipe that a command made of its arguments has no lines to speak
        of; complaints about these of its keys name the options that stand for them.
    has_lines: False for a mapping of a Python program, whose YAML nobody has seen.
    remarks: what was noticed before the text was read, each with its (line, column).
    options: the options that have won over these of its keys; complaints about the keys name them.
    """

    data: Any
    marks: dict[Location, tuple[int, int]] = field(default_factory=dict)
    name: str = NAME
    arguments: Mapping[str, str] | None = None
    has_lines: bool = True
    remarks: list[tuple[tuple[int, int], str]] = field(default_factory=list)
    options: Mapping[str, str] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """`recipe.yaml:7:5`, for the closest place known on the way to `location`; "" when there is none.

        Without lines: the way to that place, `models[1].parameters.weight`.
        """
        if location and location[0] in self.options:
            return self.options[str(location[0])]
        if self.arguments is not None:
            return self.arguments.get(str(location[0]), "") if location else ""
        if not self.has_lines:
            keys = _keys(self._known(location))
            return ": ".join(part for part in (self.name if self.name != NAME or not keys else "", keys) if part)
        line, column = self.position(location)
        return f"{self.name}:{line}:{column}"

    def complaint(self, location: Location, what: str) -> str:
        """A complaint that begins with its place."""
        where = self.where(location)
        return f"{where}: {what}" if where else what

    def position(self, location: Location) -> tuple[int, int]:
        """(line, column) of the closest place known on the way to `location`."""
        return self.marks[self._known(location)]

    def _known(self, location: Location) -> Location:
        return next(location[:end] for end in range(len(location), -1, -1) if location[:end] in self.marks)


def _keys(location: Location) -> str:
    """A place as one writes it in Python.

    >>> _keys(("models", 1, "parameters", "weight"))
    'models[1].parameters.weight'
    """
    found = ""
    for key in location:
        if isinstance(key, str) and key.isidentifier():
            found += f".{key}" if found else key
        else:
            found += f"[{key if isinstance(key, int) else quoted(key)}]"
    return found


def parse(
    text: str, name: str = NAME, arguments: Mapping[str, str] | None = None, *, has_lines: bool = True
) -> list[Document]:
    """The YAML documents in `text`; RecipeError names line and column of what a recipe may not hold.

    arguments, has_lines: see `Document`.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{name}:{line}: not a text: it holds the character U+{error.character:04X}") from None
    try:
        documents: list[Document] = []
        while loader.check_node() and (node := loader.get_node()) is not None:
            if len(documents) == MAX_DOCUMENTS:
                loader.refuse(node.start_mark, f"a recipe has at most {MAX_DOCUMENTS} documents")
            reader = _Reader(loader, Document(None, {}, name, arguments, has_lines))
            reader.document.data = reader.read(node, (), ())
            if reader.document.data is not None:  # nothing but "---"
                documents.append(reader.document)
        if not documents:
            raise RecipeError(f"{name}: the recipe is empty; it needs at least merge_method and models")
        if not has_lines and len(documents) > 1:
            for number, document in enumerate(documents, 1):
                document.name = f"{name}, document {number}"
        return documents
    except _Refused as error:
        raise RecipeError(f"{_place(error, name)}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_not_yaml(error, name, text)) from None
    except RecursionError:
        raise RecipeError(f"{name}: nested deeper than any recipe; check the brackets") from None
    finally:
        loader.dispose()


def _place(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name


def _not_yaml(error: yaml.MarkedYAMLError, name: str, text: str) -> str:
    what = explain(error, text) or " ".join(", ".join(filter(None, (error.context, error.problem))).split())
    return f"{_place(error, name)}: not valid YAML: {one_line(what)}"


class _Refused(yaml.MarkedYAMLError):
    """YAML, but more of it than a recipe has."""


class _Loader(yaml.SafeLoader):
    """Splits text into nodes and resolves what plain words mean; counts while it does, since PyYAML is slow."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self.refuse(mark, f"the recipe has more than {MAX_NODES} words and values")
        if self._depth > MAX_DEPTH:
            self.refuse(mark, "nested deeper than any recipe; check the brackets")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def refuse(self, mark: yaml.Mark, what: str) -> NoReturn:
        raise _Refused(problem=what, problem_mark=mark)


_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_OURS = {_TAG + "timestamp", _TAG + "value"}  # dates, and "=": texts here
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OURS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _TAG + "float", re.compile(r"[-+]?(\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$", re.ASCII), list("-+.0123456789")
)


class _Reader:
    """Turns nodes into data and notes where each stands."""

    def __init__(self, loader: yaml.SafeLoader, document: Document) -> None:
        self.document = document
        self.values = 0
        self._scalars = {
            "null": loader.construct_yaml_null,
            "bool": loader.construct_yaml_bool,
            "int": loader.construct_yaml_int,
            "float": loader.construct_yaml_float,
            "str": loader.construct_yaml_str,
        }

    def read(self, node: yaml.Node, at: Location, above: tuple[yaml.Node, ...]) -> Any:
        """The data of a node at a location; `above` are the nodes that it stands in."""
        self.document.marks.setdefault(at, _mark(node))
        self._count(node)
        if node in above:
            self._refuse(node, "an alias that contains itself")
        if len(above) > MAX_DEPTH:
            self._refuse(node, "nested deeper than any recipe; check the brackets")
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, at, above)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.read(item, (*at, i), (*above, node)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in self._scalars:
            return self._scalar(node, kind)
        return self._refuse(node, f"the tag {shown(node.tag)} has no meaning in a recipe; remove it")

    def _mapping(self, node: yaml.MappingNode, at: Location, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value in self._pairs(node, above):
            key = self._key(key_node)
            if key not in data:
                place = (*at, key)
                self.document.marks[place] = _mark(key_node)  # a key's position stands for the pair
                data[key] = self.read(value, place, (*above, node))
        return data

    def _pairs(
        self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]
    ) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """The pairs of a mapping, then those it merges in; of a key that comes again the first counts."""
        seen = set()
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            if re.match(r"-\w", self._key(key)):
                self._refuse(key, f"an entry of a list has a blank after its dash: {shown(f'- {key.value[1:]}: ...')}")
            if self._key(key) in seen:
                self._refuse(key, f"the key {shown(key.value)} appears twice in one mapping; remove one")
            seen.add(self._key(key))
            self._count(key)
            yield key, value
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                self._refuse(other, '"<<" takes a mapping, such as an alias of one')
            if other in (*above, node):
                self._refuse(other, "an alias that contains itself")
            yield from self._pairs(other, (*above, node))

    def _count(self, node: yaml.Node) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            self._refuse(node, f"with its aliases written out the recipe has more than {MAX_VALUES} words and values")

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, "a key is a word, not a list or a mapping")
        return self._text(node)

    def _scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        if kind == "str":
            return self._text(node)
        try:
            if len(node.value) > _MAX_NUMBER:
                raise ValueError
            return self._scalars[kind](node)
        except (ValueError, KeyError, IndexError, OverflowError):
            self._refuse(node, f"{shown(node.value)} is not a valid {kind}")

    def _text(self, node: yaml.ScalarNode) -> str:
        text: str = node.value
        if "\0" in text or not _is_unicode(text):
            self._refuse(node, f"{shown(text)} holds a character that texts cannot have")
        return text

    def _refuse(self, node: yaml.Node, what: str) -> NoReturn:
        line, column = _mark(node)
        place = f"{self.document.name}:{line}:{column}" if self.document.has_lines else self.document.name
        raise RecipeError(f"{place}: {what}")


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as bytes: YAML's escapes can write half of a character. Those that stand for a byte
    are taken, since names of files that are not UTF-8 have them (PEP 383).
    """
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
