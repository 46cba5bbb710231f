"""Measure what the looks for NaN, infinity and values beyond a type cost: builds with and without them, in turns.

    python scripts/bench_checks.py                  linear merges of two models, and a copy
    python scripts/bench_checks.py --types Q8_0     of these types only

Two models of random weights are merged on one thread, without the digests of the sources, which cost more than the rest
of a merge of such types and would hide what the checks cost. The figures are the least processor times of several
builds; the files lie in memory if the system has /dev/shm.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from ggufmerge.files import MetadataEditor, TensorInfo
from ggufmerge.files.writer import GGUFWriter
from ggufmerge.planning import provenance
from ggufmerge.planning.planner import make_plan
from ggufmerge.quants import quantize
from ggufmerge.quants.codec import Codec
from ggufmerge.recipe import load_recipe
from ggufmerge.running import encode
from ggufmerge.running.run import run
from ggufmerge.sources import model
from ggufmerge.types import TensorType

TENSORS, ROWS, N = 16, 1024, 4096
LINEAR = "{{merge_method: linear, models: [{{model: {0}/a.gguf}}, {{model: {0}/b.gguf}}], parameters: {{weight: 0.5}}}}"
COPY = "{{merge_method: passthrough, models: [{{model: {0}/a.gguf}}]}}"


def write_model(path: Path, kind: TensorType, seed: int) -> None:
    """A model of TENSORS matrices [ROWS, N] of a type, as far as a merge looks."""
    metadata = MetadataEditor()
    metadata.set("general.architecture", "llama")
    metadata.set("llama.block_count", TENSORS)
    infos = [TensorInfo(f"blk.{i}.ffn_up.weight", (ROWS, N), kind) for i in range(TENSORS)]
    rng = np.random.default_rng(seed)
    with GGUFWriter(path, metadata, infos) as writer:
        for info in infos:
            writer.write(info.name, 0, quantize(rng.standard_normal((ROWS, N), np.float32) * np.float32(0.02), kind))
        writer.commit()


@contextmanager
def without_checks() -> Iterator[None]:
    """Nothing is looked at: all is taken to be finite and to fit."""
    with (
        mock.patch.object(Codec, "damaged", return_value=-1),
        mock.patch.object(Codec, "decode", lambda self, raw, out: self.dequantize(raw, out) or -1),
        mock.patch.object(encode, "magnitude", return_value=0.0),
        mock.patch.object(model, "magnitude", return_value=0.0),
    ):
        yield


def builder(folder: Path, recipe: str) -> Callable[[], None]:
    path = folder / "recipe.yaml"
    path.write_text(recipe.format(folder), encoding="utf-8")

    def build() -> None:
        plan, opened = make_plan(load_recipe(path))
        metadata = {
            k: v for k, v in plan.metadata.items() if k not in {provenance.digest_key(0), provenance.digest_key(1)}
        }
        run(dataclasses.replace(plan, metadata=metadata), opened, folder / "out.gguf", overwrite=True, threads=1)
        opened.close()

    return build


def compare(build: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Seconds of processor time with and without checks, the least of each: other guests of a machine only add."""

    def seconds() -> float:
        started = time.process_time()
        build()
        return time.process_time() - started

    build()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        times[0].append(seconds())
        with without_checks():
            times[1].append(seconds())
    return min(times[0]), min(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=["F32", "F16", "Q8_0", "Q4_0", "Q4_K"], metavar="TYPE")
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    memory = Path("/dev/shm")
    print(f"{TENSORS * ROWS * N / 1e6:.0f} million weights; seconds with checks, without, and what they add")
    for kind in map(TensorType.parse, args.types):
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
            folder = Path(name)
            for number, model_name in enumerate(("a", "b")):
                write_model(folder / f"{model_name}.gguf", kind, number)
            for title, recipe in (("linear", LINEAR), ("copy", COPY)):
                on, off = compare(builder(folder, recipe), args.repeats)
                print(f"{kind!s:8} {title:8} {on:7.3f} {off:7.3f} {100 * (on / off - 1):+6.1f} %", flush=True)


if __name__ == "__main__":
    main()
