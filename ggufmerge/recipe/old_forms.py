"""Forms that published recipes have and that are written otherwise today, or that belong to another tool.

What means the same is taken as it is meant, with a warning; what is no recipe of a merge is named for what it is.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ggufmerge.recipe.document import Document, Location
from ggufmerge.recipe.reference import tidy
from ggufmerge.text import printable

_FENCE = re.compile(
    r"[ \t]*(```+|~~~+|\'\'\'(?:ya?ml)?[ \t]*$"
    r"|(?:\w+[ \t]*=[ \t]*[rRfF]?)?(?:\"\"\"|\'\'\')[ \t]*$)"  # of the cell of a notebook that writes the recipe
)
_NO_BREAK = re.compile("^[ \t]*\u00a0[ \t\u00a0]*", re.MULTILINE)
_DOUBLES = ("float64", "torch.float64", "fp64", "double", "torch.double")

Warn = Callable[[Location, str], None]


def other_tool(data: dict[str, Any]) -> str:
    """What a document is that another tool of mergekit reads; "" for a recipe of a merge."""
    if any(key in data for key in ("experts", "gate_mode", "shared_experts")):
        return (
            "this is a recipe of mergekit-moe, which makes a mixture of experts from dense models; ggufmerge merges "
            "models of one architecture: make the mixture there and convert it to GGUF"
        )
    if "layer_slices" in data:
        return (
            "this is a configuration of bakllama, which mergekit once had: write each of its layer_slices as one of "
            "slices:, {sources: [{model: FILE, layer_range: [START, END]}]}, with merge_method: passthrough"
        )
    if "genome" in data:
        return (
            "this is a configuration of mergekit-evolve, which searches for a recipe; the recipe that it finds "
            "(best_config.yaml) is one for ggufmerge"
        )
    return ""


def modernized(data: dict[str, Any], warn: Warn) -> dict[str, Any]:
    """A document with today's words in the place of old ones; each is warned of.

    warn: takes the place of a word and what there is to say of it.
    """
    data = dict(data)
    for key in ("dtype", "out_dtype"):
        if isinstance(data.get(key), str) and data[key].lower() in _DOUBLES:
            warn((key,), f"llama.cpp runs no models of {data[key]}, so float32 is taken: write float32")
            data[key] = "float32"
    if plain := _without_prefix(data.get("tokenizer_source")):
        warn(("tokenizer_source",), f'the prefix "model:" has no effect: write {printable(plain)}')
        data["tokenizer_source"] = plain
    tokenizer = data.get("tokenizer")
    if isinstance(tokenizer, dict) and (plain := _without_prefix(tokenizer.get("source"))):
        warn(("tokenizer", "source"), f'the prefix "model:" has no effect: write {printable(plain)}')
        data["tokenizer"] = tokenizer | {"source": plain}
    if isinstance(tokenizer, dict) and tokenizer.get("tokens", 0) is None:
        warn(("tokenizer", "tokens"), '"tokens" has no effect: nothing stands below it')
        data["tokenizer"] = {key: value for key, value in data["tokenizer"].items() if key != "tokens"}
    if data.get("modules", 0) is None:
        del data["modules"]
    return data


def language_module(modules: dict[str, Any]) -> str:
    """The only one of several modules that is the language model; "" when none says so, or more than one."""
    found = [name for name in modules if re.search("text|language|llm", name, re.IGNORECASE)]
    return found[0] if len(found) == 1 else ""


def name_stages(documents: list[Document]) -> None:
    """Name the documents by whose `out_path` others use their results, as in the first files of several merges."""
    for document in documents[:-1]:
        data = document.data
        if isinstance(data, dict) and "name" not in data and isinstance(path := data.get("out_path"), str):
            data["name"] = tidy(path)
            document.marks[("name",)] = document.marks[("out_path",)]
            del data["out_path"]


def _without_prefix(source: Any) -> str:
    """The model of `model:NAME`, which the first versions of mergekit had for a tokenizer; "" for anything else."""
    return source.removeprefix("model:").strip() if isinstance(source, str) and source.startswith("model:") else ""


@dataclass(frozen=True)
class Fenced:
    """The text of a recipe, on the same lines as before, and what to say at the line where it was another."""

    text: str
    line: int
    remark: str


def as_copied(text: str) -> Fenced | None:
    """A recipe as it stood on the page that it was copied from: with plain spaces, and without its code fence. None for
    other texts, and for one with several recipes.
    """
    return _with_plain_spaces(text) or _within_fence(text)


def _within_fence(text: str) -> Fenced | None:
    lines = text.split("\n")
    if lines[0].strip().lower() in ("yaml", "yml") and _is_recipe(lines):  # what a page has written above its fence
        return Fenced("\n".join(["", *lines[1:]]), 1, f'"{lines[0].strip()}" has no effect; remove it')
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    if not fences:
        return None
    blocks = list(zip(fences[::2], [*fences[1::2], len(lines)], strict=False))
    if len(fences) == 1 and _is_recipe(lines[: fences[0]]):  # the last line of a fence was copied, the first was not
        blocks = [(-1, fences[0])]
    recipes = [(start, stop) for start, stop in blocks if _is_recipe(lines[start + 1 : stop])]
    if len(recipes) != 1:
        return None
    [(start, stop)] = recipes
    kept = [line if start < number < stop else "" for number, line in enumerate(lines)]
    line = (start if start >= 0 else stop) + 1
    return Fenced(
        textwrap.dedent("\n".join(kept)), line, "a code fence: what stands outside of it has no effect; remove it"
    )


def _with_plain_spaces(text: str) -> Fenced | None:
    first = _NO_BREAK.search(text)
    if first is None:
        return None
    plain = _NO_BREAK.sub(lambda match: match[0].replace("\u00a0", " "), text)
    line = text.count("\n", 0, first.start()) + 1
    return Fenced(plain, line, "no-break spaces, as pages have them, are taken for plain ones")


def _is_recipe(lines: list[str]) -> bool:
    return any(re.match(r"\s*merge_method\s*:", line) for line in lines)
