"""The tables of the rotation, which are computed and not trained: whose the result has.

`rope_freqs` and `rope_factors_*` (Llama 3.1 and later, Phi 3) say how far each frequency is stretched, as the keys
`rope.*` do, and come from the same model as these: from the one that gives the metadata, and where it has neither a
table nor other settings of the rotation, from the models that have one, if these agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufmerge.planning.effective import Effective
from ggufmerge.sources import Source

TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def table_owners(sources: Sequence[Source], owner: int) -> dict[str, int]:
    """Table -> number of the source that the result has it from; without those that it does not have.

    owner: the source that gives the tensors which are not merged.
    """
    found = {name: owner for name in TABLES if name in sources[owner].tensors}
    for name in TABLES:
        having = [i for i, source in enumerate(sources) if name in source.tensors]
        first = sources[having[0]] if having else None
        agree = first is not None and all(same_table(first, sources[i], name) for i in having)
        if name not in found and agree and not contradicting(sources):
            found[name] = having[0]
    return found


def contradicting(sources: Sequence[Source]) -> bool:
    """Whether the sources state different settings of the rotation, so that a table of one does not fit those that the
    result has. What the first one leaves unsaid is no contradiction.
    """
    sides = [Effective("", source.metadata, source) for source in sources]
    prefix = f"{sources[0].file.architecture}.rope."
    for key in {key for source in sources for key in source.metadata if key.startswith(prefix)}:
        stating = [side for side, source in zip(sides, sources, strict=True) if key in side or not source.is_checkpoint]
        if key not in sides[0]:
            stating = [side for side in stating if key in side]
        if any(not stating[0].same(side, key) for side in stating):
            return True
    return False


def same_table(a: Source, b: Source, name: str) -> bool:
    """Whether two sources have the same table; False when one of them has none."""
    return a is b or (name in a.tensors and name in b.tensors and _stored(a, name) == _stored(b, name))


def _stored(source: Source, name: str) -> tuple[object, ...]:
    tensor = source.file.tensors[name]
    return tensor.type, tensor.shape, bytes(tensor.raw_rows(0, tensor.rows))
