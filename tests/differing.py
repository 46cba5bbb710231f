"""Every setting of a model, removed or changed on either side of a merge, and what the plan says of it.

    told = differing.unnamed(a, b)      # the changes that no warning and no error names: none

Works on any two GGUF files of one architecture whose merge can be planned; nothing is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ggufmerge.errors import GgufmergeError
from ggufmerge.files import MetadataEditor, TensorInfo, open_gguf
from ggufmerge.files.metadata import KeyValues
from ggufmerge.files.writer import Layout
from ggufmerge.planning.planner import make_plan
from ggufmerge.recipe import load_recipe

OTHER_THAN_SETTINGS = ("general.", "split.", "quantize.", "ggufmerge.")
RECIPES = {
    "base": "{{merge_method: task_arithmetic, base_model: {0}, models: [{{model: {1}, parameters: {{weight: 1}}}}]}}",
    "models": "{{merge_method: linear, models: [{{model: {0}}}, {{model: {1}}}], parameters: {{weight: 1}}}}",
    "vocabulary": "{{merge_method: linear, models: [{{model: {0}}}, {{model: {1}}}], parameters: {{weight: 1}}, "
    "tokenizer_source: base}}",
}

Edit = Callable[[MetadataEditor], None]


def settings(metadata: Iterable[str]) -> list[str]:
    """The keys that are settings of a model."""
    return [key for key in metadata if not key.startswith(OTHER_THAN_SETTINGS)]


def other(value: Any) -> Any:
    """Another value of the same type; of a list, with another value in the middle."""
    if isinstance(value, bool | np.bool_):
        return not value
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list | np.ndarray):
        values = value.copy()
        at = len(values) // 2
        values[at] = other(values[at])
        return values
    if isinstance(value, float | np.floating):
        return type(value)(value * 2 + 1)
    return type(value)(value + 1 if value < 100 else value - 1)


def edits(metadata: KeyValues) -> Iterator[tuple[str, str, Edit]]:
    """(key, "removed" or "changed", edit) for each setting."""
    for key in settings(metadata):
        yield key, "removed", lambda editor, key=key: editor.remove(key)  # type: ignore[misc]
        if metadata.count(key):
            yield key, "changed", lambda editor, key=key: editor.set(key, other(editor[key]))  # type: ignore[misc]


def copied(source: Path, target: Path, edit: Edit | None = None) -> Path:
    """The model with other metadata; tensors stay."""
    with open_gguf(source) as file:
        editor = MetadataEditor(file.metadata)
        if edit is not None:
            edit(editor)
        layout = Layout(editor, [TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values()])
        with target.open("wb") as out:
            out.write(layout.header)
            for name, tensor in file.tensors.items():
                out.seek(layout.offsets[name])
                out.write(tensor.raw.tobytes())
            out.truncate(layout.total_bytes)
    return target


def said(recipe: str, *models: Path) -> list[str]:
    """The warnings of a plan, or its error."""
    text = recipe.format(*(model.name for model in models))
    path = models[0].with_name("differing.yaml")
    path.write_text(text, encoding="utf-8")
    try:
        plan, opened = make_plan(load_recipe(path))
    except GgufmergeError as error:
        return [str(error)]
    opened.close()
    return list(plan.warnings)


def unnamed(a: Path, b: Path, folder: Path, recipe: str = RECIPES["base"]) -> list[str]:
    """ "KEY removed in a", "KEY changed in b", ... for each change of one file that the plan of both does not name.

    folder: for copies of the files, which are not touched.
    """
    found = []
    for number, (own, counterpart) in enumerate(((a, b), (b, a))):
        whole = copied(counterpart, folder / f"whole.{number}.gguf")
        with open_gguf(own) as file:
            changes = list(edits(file.metadata))
        for key, how, edit in changes:
            changed = copied(own, folder / f"changed.{number}.gguf", edit)
            lines = said(recipe, *((changed, whole) if number == 0 else (whole, changed)))
            word = "numbers of layers" if key.endswith(".block_count") else key
            if not any(key in line or word in line for line in lines):
                found.append(f"{key} {how} in {'ab'[number]}")
    return found
