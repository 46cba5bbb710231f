"""A sink: the SHA-256 of each finished file, in a file beside the first one that `sha256sum --check` reads."""

import hashlib
from pathlib import Path

from ggufmerge import PlanError


class Checksum:
    def __init__(self, output):
        self.path = Path(f"{output}.sha256")

    def targets(self):
        return [self.path]

    def inputs(self):
        return []

    def check(self, plan, opened, output):
        if self.path.exists() and not output.owns(str(self.path)):
            raise PlanError(f"{self.path}: exists: remove it")
        return []

    def finish(self, report, output):
        output.claim(str(self.path))
        lines = []
        for path in report.files:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
        self.path.write_text("".join(lines))
        return report
