"""Record golden merges: what the code of today makes of vendor/golden-merges/NAME.yaml, as NAME.json beside it.

    python scripts/make_merge_goldens.py            all that have no record yet
    python scripts/make_merge_goldens.py NAME ...   these

A record that is there is never written again. Where bytes shall change, and the change log says so, delete the record,
run this, and read the difference: it shows which tensors changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.golden_merges import FOLDER, made, names


def main(wanted: list[str]) -> int:
    """The exit code: 1 when a name is unknown or recorded already."""
    failed = False
    for name in wanted or [name for name in names() if not (FOLDER / f"{name}.json").exists()]:
        record = FOLDER / f"{name}.json"
        if not record.with_suffix(".yaml").exists():
            print(f"error: there is no {record.with_suffix('.yaml')}", file=sys.stderr)
            failed = True
        elif record.exists():
            print(f"error: {record} is there and stays as it is; delete it to record anew", file=sys.stderr)
            failed = True
        else:
            with tempfile.TemporaryDirectory() as folder:
                found = made(name, Path(folder))
            record.write_text(written(found), encoding="utf-8", newline="\n")
            print(f"recorded {name}: {len(found['tensors'])} tensors")
    return int(failed)


def written(found: dict[str, dict[str, object]]) -> str:
    """JSON with one entry a line, so that a difference shows which entries changed."""
    parts = []
    for key, entries in found.items():
        lines = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in entries.items())
        parts.append(f'  "{key}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
