"""The memory of a build: what it needs itself, and the pages of the models' files that the system keeps for it.

Sources are mapped. What was read of them counts as memory of the process until the system wants it back, which costs
nothing but reading it again. So two figures are told: memory that must be there, and memory that may be.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from ggufmerge.planning.opened import Opened
from ggufmerge.planning.plan import Plan, PlannedTensor
from ggufmerge.planning.provenance import digest_key

_COPIES = 3  # of a chunk beside the inputs: the result, its bytes with what they are read back as, what kernels need


def buffers(plan: Plan, threads: int, chunk: int) -> int:
    """Bytes of the arrays that threads hold: a chunk of each input and of the result, float32."""
    made = [t for t in plan.tensors if t.action != "copy" and t.rows * t.n]
    return threads * max((_chunk(t, chunk) * (len(t.inputs) + _COPIES) * 4 for t in made), default=0)


def mapped(plan: Plan, opened: Opened, *, digests: bool) -> int:
    """Bytes of the sources that are read, at most: each source has its files in memory by itself.

    digests: whether all of each file is read, once, though only some tensors are merged.
    """
    read = {(i.source, i.tensor) for t in plan.tensors for i in t.inputs}
    nbytes, whole = 0, set[Path]()
    for number, source in enumerate(opened.sources):
        stored = [source.file.tensors[tensor] for of, tensor in read if of == number]
        own = sum(t.rows * t.type.row_bytes(t.n) for t in stored)
        files = [path for path in source.files() if path.is_file()]
        if digests and whole.isdisjoint(files):
            own = sum(path.stat().st_size for path in files)
        whole.update(files)
        nbytes += own
    return nbytes


def own_memory(plan: Plan, opened: Opened, threads: int, chunk: int) -> int | None:
    """Bytes of the process at its largest, without `buffers` and `mapped`; None where the system does not tell."""
    peak = peak_memory()
    digests = plan.metadata.get(digest_key(0)) is not None
    return (
        None if peak is None else max(0, peak - buffers(plan, threads, chunk) - mapped(plan, opened, digests=digests))
    )


def peak_memory() -> int | None:
    """Bytes of the largest resident size of this process so far; None where the system does not tell."""
    status = Path("/proc/self/status")  # Linux, where the figure below is that of the parent process as well
    with contextlib.suppress(OSError, ValueError, IndexError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def total_memory() -> int | None:
    """Bytes of memory that the machine has; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _chunk(tensor: PlannedTensor, chunk: int) -> int:
    """Values of a chunk of a tensor: whole rows, at least one."""
    rows = tensor.rows // (tensor.matrices or 1)
    return min(rows, max(1, chunk // tensor.n)) * tensor.n
