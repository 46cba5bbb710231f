"""Measure what heeding rounding errors costs: whole builds of quantized models, with `noise_aware` auto and off.

    python scripts/bench_noise.py             methods that heed them, and linear, which does not
    python scripts/bench_noise.py ties 9      one method, the best of nine builds

The models are made here: a base and two tunes of it in Q4_0, 34 million weights each. Both ways take turns, so that
what else the machine does hits both, and the fastest build of each counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ggufmerge
from tests.tiny import write_tiny_llama

METHODS = ("linear", "ties", "dare_ties", "della", "breadcrumbs")
WAYS = ("off", "auto")
MODELS = ("base", "a", "b")


def recipe_of(method: str, way: str, folder: Path) -> dict[str, object]:
    base, *tunes = (str(folder / f"{name}.gguf") for name in MODELS)
    parameters = {"weight": 0.5} if method == "linear" else {"weight": 0.5, "density": 0.2}
    if method == "della":
        parameters["epsilon"] = 0.1
    recipe = {"merge_method": method, "models": [{"model": tune} for tune in tunes], "parameters": parameters}
    return recipe | ({} if method == "linear" else {"base_model": base}) | {"noise_aware": way}


def measure(method: str, times: int, folder: Path) -> dict[str, float]:
    """Seconds of the fastest of so many builds, each way, after one that does not count."""
    best = dict.fromkeys(WAYS, float("inf"))
    for turn in range(times + 1):
        for way in WAYS:
            began = time.perf_counter()
            ggufmerge.build(recipe_of(method, way, folder), folder / "out.gguf", overwrite=True, threads=1)
            if turn:
                best[way] = min(best[way], time.perf_counter() - began)
    return best


def main(arguments: list[str]) -> None:
    methods = [word for word in arguments if not word.isdecimal()] or list(METHODS)
    times = next((int(word) for word in arguments if word.isdecimal()), 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, model in enumerate(MODELS):
            tune = (number, 0.01) if number else None
            size = {"layers": 4, "embed": 1024, "ff": 2048, "heads": 8, "kv_heads": 8}
            write_tiny_llama(folder / f"{model}.gguf", type="Q4_0", tune=tune, **size)
        for method in methods:
            best = measure(method, times, folder)
            more = 100 * (best["auto"] / best["off"] - 1)
            print(f"{method:12s} off {best['off']:.2f} s, auto {best['auto']:.2f} s: {more:+.0f} %", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
