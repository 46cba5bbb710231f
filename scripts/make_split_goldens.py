#!/usr/bin/env python3
"""Ask the real llama-gguf-split for the golden data in vendor/llama.cpp/splits.json: digests of the files it writes.

    python scripts/make_split_goldens.py path/to/llama-gguf-split

It cuts the file of `tests.files.craft.splittable` with different limits and joins the shards again.
tests/files/test_split.py compares with the goldens.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.files import craft  # noqa: E402

GOLDENS = ROOT / "vendor" / "llama.cpp" / "splits.json"
OPTIONS = (
    "--split-max-tensors 1",
    "--split-max-tensors 3",
    "--split-max-tensors 128",
    "--split-max-size 1M",
    "--split-max-size 2M",
    "--split-max-size 1G",
    "--no-tensor-first-split --split-max-tensors 3",
    "--no-tensor-first-split --split-max-size 2M",
)


def main() -> None:
    cases = {options: ask(pathlib.Path(sys.argv[1]).resolve(), options.split()) for options in OPTIONS}
    about = (
        "SHA-256 of the files that llama-gguf-split of llama.cpp v0.5.0 (MIT) writes, by scripts/make_split_goldens.py"
    )
    goldens = {"about": about, "source": digest(craft.splittable()), "cases": cases}
    GOLDENS.write_text(json.dumps(goldens, indent=1) + "\n", encoding="utf-8")


def ask(program: pathlib.Path, options: list[str]) -> dict[str, Any]:
    """Digests of the shards and of the file that they are joined to."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.gguf").write_bytes(craft.splittable())
        subprocess.run([program, *options, "model.gguf", "cut"], cwd=folder, check=True)
        shards = sorted(folder.glob("cut-*.gguf"))
        subprocess.run([program, "--merge", shards[0].name, "joined.gguf"], cwd=folder, check=True)
        return {
            "shards": {shard.name: digest(shard.read_bytes()) for shard in shards},
            "joined": digest((folder / "joined.gguf").read_bytes()),
        }


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
