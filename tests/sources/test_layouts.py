"""Models of one merge are brought to one layout where nothing but the place of rows differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ggufmerge.places.opening import open_source
from ggufmerge.recipe import ModelReference
from ggufmerge.sources import Source
from ggufmerge.sources.layouts import to_one_layout
from tests.tiny import fused, write_tiny_llama


@contextmanager
def opened(folder: Path, **files: dict[str, Any]) -> Iterator[list[Source]]:
    with ExitStack() as stack:
        sources = []
        for name, options in files.items():
            write_tiny_llama(folder / f"{name}.gguf", layers=1, **options)
            sources.append(open_source(ModelReference(f"{name}.gguf"), folder))
            stack.callback(sources[-1].close)
        yield sources


def test_all_models_get_the_parts_that_one_has(tmp_path: Path) -> None:
    """In the order in which the whole stood."""
    with opened(tmp_path, a={"layout": fused}, b={}, c={"layout": fused, "type": "Q8_0"}) as sources:
        to_one_layout(sources)
        assert list(sources[0].tensors) == list(sources[1].tensors) == list(sources[2].tensors)


@pytest.mark.parametrize(
    "other",
    [{"metadata": {"general.architecture": "plm"}}, {"heads": 8, "kv_heads": 1}, {"embed": 128}, {"layout": fused}],
    ids=["of an architecture that has one layout", "parts of other lengths", "rows of another length", "nobody"],
)
def test_what_cannot_be_the_same_weight_is_left_alone(tmp_path: Path, other: dict[str, Any]) -> None:
    """So it is refused for what it is."""
    with opened(tmp_path, a={"layout": fused, "metadata": other.get("metadata")}, b=other) as sources:
        before = [list(source.tensors) for source in sources]
        to_one_layout(sources)
        assert [list(source.tensors) for source in sources] == before
