"""Parameter values of a recipe: scalars, gradients over layers, and filters by tensor name (mergekit's language).

    weight: 0.5                                  a number for every tensor
    weight: [0, 0.5, 1]                          a gradient: interpolated over the layers of the output slice
    weight: [{filter: mlp, value: 0.3},          the first filter that matches decides; its value may be a gradient
             {filter: "blk.*.attn_?.weight", value: [0, 1]},
             {value: 0.5}]                       no filter: every tensor

A filter is a plain part of the tensor's name, in GGUF's or Hugging Face's vocabulary, or a glob over the whole name.

The language is mergekit's (`evaluate_setting` of mergekit 0.1.5); globs and GGUF names are ours.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ggufmerge.architectures.names import is_own, own_spellings, spellings
from ggufmerge.text import shown

Scalar = float | bool | int | str | None
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Rule:
    """One alternative of a setting: a value (scalar or gradient) for the tensors that `filter` matches."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]

    def matches(self, tensor: str, architecture: str) -> bool:
        return self.filter is None or matches(self.filter, tensor, architecture)


@dataclass(frozen=True)
class Setting:
    """The value of one parameter as the recipe writes it. `rules` are tried in order."""

    rules: tuple[Rule, ...]

    def rule_for(self, tensor: str, architecture: str) -> Rule | None:
        """The rule that decides for a tensor (a GGUF name) of an architecture; None when no filter means it."""
        return next((rule for rule in self.rules if rule.matches(tensor, architecture)), None)

    def unreachable(self) -> list[Rule]:
        """Rules that can never decide, because an earlier one takes all their tensors."""
        found, filters = [], set[str | None]()
        for rule in self.rules:
            if rule.filter in filters or None in filters:
                found.append(rule)
            filters.add(rule.filter)
        return found


def parse(value: Any) -> Setting:
    """A setting from a recipe's value; ValueError says what is wrong with it."""
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return Setting(tuple(map(_rule, value)))
    if isinstance(value, dict):
        return Setting((_rule(value),))
    return Setting((Rule(None, _value(value)),))


def _rule(item: dict[str, Any]) -> Rule:
    if unknown := sorted(map(str, set(item) - {"filter", "value"})):
        raise ValueError(f"unknown key {shown(unknown[0])} in a conditional value; it has the keys filter and value")
    if "value" not in item:
        raise ValueError("a conditional value needs the key value")
    pattern = item.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise ValueError(f"a filter is a part of a tensor name, not {shown(pattern)}")
    return Rule(None if pattern == "*" else pattern, _value(item["value"]))


def _value(value: Any) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list):
        if not value:
            raise ValueError("a gradient needs at least one value")
        if any(isinstance(v, (dict, list)) for v in value):
            raise ValueError(
                "a list holds either plain values (a gradient) or mappings with filter and value, not both"
            )
        return tuple(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{shown(value)} is neither a value, a gradient nor a list of conditional values")


def matches(pattern: str, tensor: str, architecture: str) -> bool:
    """Whether a filter means this tensor (a GGUF name): part of, or glob over, any of its spellings.

    The names that the tensors of other architectures have count only for filters that mean none of its own.
    """
    names = (own_spellings if is_own(pattern, architecture) else spellings)(tensor, architecture)
    if _GLOB & set(pattern):
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)
    return any(pattern in name for name in names)


def matches_any(patterns: Iterable[str], tensor: str, architecture: str) -> bool:
    """Whether one of several filters means this tensor."""
    return any(matches(pattern, tensor, architecture) for pattern in patterns)


def at(value: Scalar | Sequence[Scalar], position: float) -> Scalar:
    """The value of a gradient at `position` in [0, 1]; a scalar is itself.

    Numbers are interpolated linearly between equally spaced anchors; switches and words are taken from the anchor at or
    before the position. These are mergekit's rules, except that a position within 1e-9 of an anchor is on it: layer 15
    of 23 stands at 15 / 22 * 22 = 14.999999999999998, and mergekit then takes the switch of layer 14.
    """
    if not isinstance(value, tuple):
        return value  # type: ignore[return-value]
    x = position * (len(value) - 1)
    if abs(x - round(x)) < 1e-9:
        x = round(x)
    i = int(x)
    left = value[i]
    if i == x or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        return left
    right = value[i + 1]
    # in mergekit's order of operations: where density times size is a whole number, the last bit decides an element
    return left if left == right else (1 - (x - i)) * float(left) + (x - i) * float(right)
