"""mergekit's rules for vocabularies in plain Python, token by token and row by row (`mergekit/tokenizer`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rule = dict[str, Any]  # {"zero": True} or {"model": i, "token": text or id}, and "force"


def union(vocabularies: Sequence[Sequence[str]], base: int, also: Sequence[str] = ()) -> list[str]:
    """The base's tokens, then the others' that are new, model by model; then those that rules name."""
    out = list(vocabularies[base])
    for token in [*(t for v in vocabularies for t in v), *also]:
        if token not in out:
            out.append(token)
    return out


def embeddings(
    out: Sequence[str],
    vocabularies: Sequence[Sequence[str]],
    matrices: Sequence[np.ndarray],
    base: int | None,
    rules: Mapping[str, Rule] | None = None,
    padding: int = 0,
) -> list[np.ndarray]:
    """For each model float32 [tokens of the result + padding, n]."""
    rules = rules or {}
    n = matrices[0].shape[1]
    results = []
    for model, matrix in enumerate(matrices):
        rows = []
        for token in out:
            rule = rules.get(token, {})
            own = vocabularies[model].index(token) if token in vocabularies[model] else None
            if own is not None and not rule.get("force"):
                rows.append(matrix[own])
            else:
                rows.append(_default(token, rule, vocabularies, matrices, base, n))
        if padding:
            mean = np.mean(np.array(rows, np.float64), axis=0)
            rows += [mean] * padding
        results.append(np.array(rows, np.float32))
    return results


def _default(
    token: str,
    rule: Rule,
    vocabularies: Sequence[Sequence[str]],
    matrices: Sequence[np.ndarray],
    base: int | None,
    n: int,
) -> np.ndarray:
    if rule.get("zero"):
        return np.zeros(n, np.float32)
    if "model" in rule:
        name = rule.get("token", token)
        row = name if isinstance(name, int) else vocabularies[rule["model"]].index(name)
        return matrices[rule["model"]][row]
    owners = [i for i, v in enumerate(vocabularies) if token in v]
    if base in owners:
        owners = [base]
    if not owners:
        return np.zeros(n, np.float32)
    total = np.zeros(n, np.float32)
    for i in owners:
        total = total + matrices[i][vocabularies[i].index(token)]
    return total / np.float32(len(owners))
