#!/usr/bin/env python3
"""Measure the codecs against ggml: speed, scaling over two threads, and the time of the first compilation.

    python scripts/bench_quants.py
    python scripts/bench_quants.py --types Q4_0 Q4_K --quick --json speed.json
    python scripts/bench_quants.py --docs           # writes the table of docs/performance.md anew, in about ten minutes

Ours and ggml (PyPI package libggml-python) work on the same rows in one process, one thread each, in turns; figures are
medians of processor time, in millions of values per second. The two-thread figure is our own speed on two threads over
our own on one, with chunks handed out by a thread pool; on a machine that is busy with other work it is left out.
Compilation is timed in a fresh process with an empty cache directory, and again with the cache that the first one
filled. docs/performance.md explains the figures.

ggml has nothing like `recode`, which writes values that all differ from the stored ones: its ratio is that to our own
dequantize.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ggufmerge import quants  # noqa: E402
from ggufmerge.quants.codec import Codec  # noqa: E402
from ggufmerge.types import TensorType  # noqa: E402
from tests import ggml  # noqa: E402

COLUMNS = 4096
ROWS = 64  # a megabyte of floats: what a core's second-level cache holds
CHUNKS = 8  # of ROWS each, for the thread pool
OPERATIONS = ("dequantize", "quantize", "quantize_weighted")
DOCS = ROOT / "docs" / "performance.md"
TABLE = re.compile("(?<=<!-- speeds -->\n).*?(?=<!-- end -->)", re.DOTALL)

Call = Callable[[], object]
Clock = Callable[[], float]
# Processor time of the thread, which other programs do not lengthen, where the system counts it finely.
CPU_CLOCK = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter

FIRST_USE = """
import json, sys, time
import numpy as np
import numba
from ggufmerge import quants
from ggufmerge.types import TensorType
kind = TensorType[sys.argv[1]]
x, imatrix = np.ones((1, 512), np.float32), np.ones(512, np.float32)
raw, seconds = np.zeros((1, kind.row_bytes(512)), np.uint8), {}
start = time.process_time()
codec = quants.codec(kind)
seconds["import"] = time.process_time() - start
for name, args in (("dequantize", (raw, x)), ("quantize", (x, raw)), ("quantize_weighted", (x, raw, imatrix))):
    kernel = getattr(codec, name)
    if kernel is not None:
        start = time.process_time()
        kernel(*args)
        seconds[name] = time.process_time() - start
if codec.recode is not None:
    start = time.process_time()
    codec.recode(raw, x, np.empty_like(raw))
    seconds["recode"] = time.process_time() - start
print(json.dumps(seconds))
"""


def main() -> None:
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else 120)
    idle = load() < 0.5
    console.print(f"{processor()}, {os.cpu_count()} cores{'' if idle else ', busy'}; ggml {ggml.version()}")
    results, missing = [], []
    for kind in args.types:
        codec = find_codec(kind)
        if codec is None:
            missing.append(str(kind))
            continue
        first, cached = compile_times(kind)
        for name in (*OPERATIONS, "recode"):
            kernel = getattr(codec, name)
            if kernel is None:
                if name == "quantize" and not ggml.lib().ggml_quantize_requires_imatrix(kind.id):
                    missing.append(f"{kind} {name}")
                continue
            if name == "recode":
                result = measure_recode(kind, codec, args.seconds)
            else:
                result = measure(kind, name, kernel, args.seconds, idle)
            result |= {"compile_s": first.get(name), "cached_s": cached.get(name)}
            result |= {"first_use_s": first_use(first), "first_use_cached_s": first_use(cached)}
            results.append(result)
            console.print(line(result), highlight=False)
    console.print(table(results))
    if missing:
        console.print("Not there: " + ", ".join(missing))
    if args.json:
        report = {"processor": processor(), "cores": os.cpu_count(), "ggml": ggml.version(), "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.docs:
        text = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(TABLE.sub(lambda _: markdown(results), text), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", type=TensorType.parse, default=benchable(), help="such as Q4_0 Q4_K")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time, less steady figures")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    parser.add_argument("--docs", action="store_true", help="also put the figures into docs/performance.md")
    args = parser.parse_args()
    args.seconds = 0.5 if args.quick else 2.5
    return args


def benchable() -> list[TensorType]:
    """The types that ggml converts."""
    return [kind for kind in TensorType if ggml.lib().ggml_get_type_traits(kind.id).contents.to_float]


def find_codec(kind: TensorType) -> Codec | None:
    try:
        return quants.codec(kind)
    except (ImportError, KeyError):
        return None


def measure(
    kind: TensorType, operation: str, kernel: Callable[..., None], seconds: float, idle: bool
) -> dict[str, Any]:
    """Speeds of one operation of one type; takes about three times `seconds`."""
    rng = np.random.default_rng(0)
    imatrix = (rng.standard_t(3, COLUMNS) ** 2 + 1e-4).astype(np.float32)
    x = (rng.standard_t(5, (ROWS, COLUMNS)) * 0.02).astype(np.float32)
    if operation != "dequantize":
        x = x[: affordable_rows(kind, operation, x, imatrix, seconds)]
    raw = np.empty((x.shape[0], kind.row_bytes(COLUMNS)), np.uint8)
    if operation == "dequantize":
        raw = quantize_any(kind, x, imatrix)
        ours, theirs = (lambda a, b: kernel(a, b)), ggml_dequantizer(kind)
        source, out = raw, x
    elif operation == "quantize":
        ours, theirs = (lambda a, b: kernel(a, b)), ggml_quantizer(kind, None)
        source, out = x, raw
    else:
        ours, theirs = (lambda a, b: kernel(a, b, imatrix)), ggml_quantizer(kind, imatrix)
        source, out = x, raw
    t_ours, t_ggml = alternate(lambda: ours(source, out), lambda: theirs(source, out), 2 * seconds, CPU_CLOCK)
    scaling = threads(ours, source, out, seconds) if idle else None
    return {
        "type": str(kind),
        "operation": operation,
        "ours": x.size / t_ours / 1e6,
        "ggml": x.size / t_ggml / 1e6,
        "ratio": t_ggml / t_ours,
        "two_threads": scaling,
    }


def measure_recode(kind: TensorType, codec: Codec, seconds: float) -> dict[str, Any]:
    """Speed of `recode` of values that lie a fifth of their spread beside the stored ones, and its ratio to ours of
    dequantize.
    """
    assert codec.recode is not None
    recode, rng = codec.recode, np.random.default_rng(0)
    imatrix = (rng.standard_t(3, COLUMNS) ** 2 + 1e-4).astype(np.float32)
    raw = quantize_any(kind, (rng.standard_t(5, (ROWS, COLUMNS)) * 0.02).astype(np.float32), imatrix)
    values, out = np.empty((ROWS, COLUMNS), np.float32), np.empty_like(raw)
    codec.dequantize(raw, values)
    x = values + (rng.standard_normal(values.shape) * 0.005).astype(np.float32)
    t_ours, t_dequantize = alternate(
        lambda: recode(raw, x, out), lambda: codec.dequantize(raw, values), 2 * seconds, CPU_CLOCK
    )
    return {
        "type": str(kind),
        "operation": "recode",
        "ours": x.size / t_ours / 1e6,
        "ggml": None,
        "ratio": t_dequantize / t_ours,
        "two_threads": None,
    }


def first_use(seconds: dict[str, float]) -> float:
    """Of the import and of all operations that ggml has too."""
    return sum(value for name, value in seconds.items() if name != "recode")


def affordable_rows(kind: TensorType, operation: str, x: np.ndarray, imatrix: np.ndarray, seconds: float) -> int:
    """As many rows as ggml quantizes in a tenth of the time, so that there are ten samples; at least 8."""
    quantizer = ggml_quantizer(kind, imatrix if operation == "quantize_weighted" else None)
    out = np.empty((1, kind.row_bytes(COLUMNS)), np.uint8)
    quantizer(x[:1], out)
    seconds_a_row = duration(lambda: quantizer(x[1:2], out), 1, CPU_CLOCK)
    return int(np.clip(seconds / 10 / seconds_a_row, 8, ROWS)) // 8 * 8


def quantize_any(kind: TensorType, x: np.ndarray, imatrix: np.ndarray) -> np.ndarray:
    """Blocks of this type for dequantizing: of a few rows, repeated."""
    few = ggml.quantize(x[:4], kind, imatrix)
    return np.ascontiguousarray(np.resize(few, (x.shape[0], few.shape[1])))


def ggml_dequantizer(kind: TensorType) -> Callable[[np.ndarray, np.ndarray], None]:
    to_float = ggml.lib().ggml_get_type_traits(kind.id).contents.to_float
    return lambda raw, out: to_float(raw.ctypes.data, out.ctypes.data, out.size)


def ggml_quantizer(kind: TensorType, imatrix: np.ndarray | None) -> Callable[[np.ndarray, np.ndarray], None]:
    chunk = ggml.lib().ggml_quantize_chunk
    pointer = None if imatrix is None else imatrix.ctypes.data

    def quantize(x: np.ndarray, out: np.ndarray) -> None:
        chunk(kind.id, x.ctypes.data, out.ctypes.data, 0, *x.shape, pointer)

    return quantize


def alternate(a: Call, b: Call, seconds: float, clock: Clock) -> tuple[float, float]:
    """Median duration of a call of each, measured in turns for about `seconds`, at least five times."""
    repeat_a, repeat_b = repetitions(a, clock), repetitions(b, clock)
    times_a, times_b = [], []
    end = time.perf_counter() + seconds
    while len(times_a) < 5 or (time.perf_counter() < end and len(times_a) < 200):
        times_a.append(duration(a, repeat_a, clock))
        times_b.append(duration(b, repeat_b, clock))
    return statistics.median(times_a), statistics.median(times_b)


def repetitions(call: Call, clock: Clock) -> int:
    """How often to call for a sample of at least 2 ms. The first call, which may compile, does not count."""
    call()
    return max(1, int(2e-3 / max(duration(call, 1, clock), 1e-6)))


def duration(call: Call, repeat: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeat):
        call()
    return (clock() - start) / repeat


def threads(ours: Callable, source: np.ndarray, out: np.ndarray, seconds: float) -> float:
    """Speed of the same CHUNKS chunks on a pool of two threads over that on a pool of one: median of pairs in turns."""
    chunks = [(source, np.empty_like(out)) for _ in range(CHUNKS)]
    repeat = 2 * repetitions(lambda: ours(*chunks[0]), CPU_CLOCK)

    def work(chunk: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(repeat):
            ours(*chunk)

    ratios: list[float] = []
    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
        while len(ratios) < 5 or time.perf_counter() < end:
            t_one, t_two = (duration(lambda p=p: drain(p.map(work, chunks)), 1, time.perf_counter) for p in (one, two))
            ratios.append(t_one / t_two)
    return statistics.median(ratios)


def drain(results: Iterator[None]) -> None:
    for _ in results:
        pass


def compile_times(kind: TensorType) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the first import and calls in a new process, with an empty and with a filled cache."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", FIRST_USE, str(kind)]
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
        first, cached = (
            json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            for _ in range(2)
        )
    return first, cached


def line(r: dict[str, Any]) -> str:
    theirs = f"{r['ggml']:9.1f} ggml" if r["ggml"] else f"{'dequantize':>14}"
    return f"{r['type']:8} {r['operation']:18} {r['ours']:9.1f} ours {theirs} {r['ratio']:6.2f}x"


def table(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="M values/s on one thread; seconds of first use", width=118)
    for name in ("type", "operation"):
        table.add_column(name)
    for name in ("ours", "ggml", "ratio", "2 threads", "compile", "cached", "whole type"):
        table.add_column(name, justify="right")
    for r in results:
        speeds = [figure(r["ours"]), figure(r["ggml"]), f"{r['ratio']:.2f}", times(r["two_threads"])]
        seconds = [f"{r[key]:.2f}" for key in ("compile_s", "cached_s", "first_use_s")]
        table.add_row(r["type"], r["operation"], *speeds, *seconds)
    return table


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A row for each type: our speed and its ratio to ggml's, for each operation."""
    lines = [
        f"{processor()}, {os.cpu_count()} cores; ggml {ggml.version()}",
        "",
        "| type | dequantize | quantize | with imatrix | two threads | first use |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(r["type"] for r in results):
        rows = {r["operation"]: r for r in results if r["type"] == kind}
        cells = [f"{figure(r['ours'])} ({r['ratio']:.1f}×)" if (r := rows.get(name)) else "" for name in OPERATIONS]
        last = [rows[name] for name in OPERATIONS if name in rows][-1]
        lines.append(f"| {kind} | {' | '.join(cells)} | {times(last['two_threads'])} | {last['first_use_s']:.1f} s |")
    return "\n".join([*lines, ""])


def figure(speed: float | None) -> str:
    if speed is None:
        return ""
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}×"


def load() -> float:
    """How many processes want a core, 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def processor() -> str:
    """The CPU's name, as the operating system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for text in info.read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
