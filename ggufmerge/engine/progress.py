"""What a run tells about itself while it works; the command line draws it, a library user may ignore it."""

from __future__ import annotations

from collections.abc import Sequence


class Progress:
    """Receiver of a run's events; every method does nothing, override what is of use. Called by the main thread."""

    def warn(self, warnings: Sequence[str]) -> None:
        """What the user should know before work starts, one line each."""

    def begin(self, total_bytes: int, tensors: int) -> None:
        """Work starts: so many bytes of result to write and of sources to digest."""

    def phase(self, text: str) -> None:
        """What is being done outside the tensors: preparing kernels, verifying."""

    def tensor(self, name: str) -> None:
        """Work on this tensor starts."""

    def advance(self, nbytes: int) -> None:
        """So many bytes more are done."""

    def tensor_done(self, name: str) -> None:
        """All of this tensor is written."""

    def end(self) -> None:
        """The result has its name, or the run failed."""
