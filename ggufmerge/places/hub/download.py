"""Models on the Hugging Face Hub: `hf:owner/repo/file.gguf`, `hf:owner/repo:Q4_K_M`, each with `@revision` after it.

The package huggingface_hub (extra `hub`) downloads, with its cache, its token, its progress and its offline mode
(HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and so on). What is in the cache is found without a connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufmerge.errors import GgufmergeError, PlanError
from ggufmerge.places import choice
from ggufmerge.places.hub.cache import DEFAULT_REVISION, CachedFile, cached_files
from ggufmerge.sources.located import Located

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_FORM = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@:]+?)|:(?P<type>[\w.-]+))?(?:@(?P<revision>[^@\s]+))?", re.ASCII
)


@dataclass(frozen=True)
class HubName:
    """A reference without its `hf:`, by file, by type or by neither; a revision is a branch, a tag or a commit."""

    repo: str
    file: str | None = None
    file_type: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """PlanError for what is no reference."""
        match = _FORM.fullmatch(text.strip().replace("\\", "/"))  # of a Path on Windows
        parts = text.strip().replace("\\", "/").replace("@", "/").split("/")
        if match is None or any(part in ("", ".", "..") for part in parts):
            raise PlanError(
                f"'hf:{text}' is not a file on the Hub: write hf:owner/repo/file.gguf or hf:owner/repo:Q4_K_M, "
                "with @revision after it if it is not the newest"
            )
        return cls(match["repo"], match["file"], match["type"], match["revision"])


def find(name: str) -> Located:
    """The file of a reference, downloaded unless it is in the cache already; of a split model all shards are.

    PlanError when there is no such file, it may not be read, or neither the Hub nor the cache has it.
    """
    wanted, hub = HubName.parse(name), Hub()
    label = f"hf:{name}"
    warnings: tuple[str, ...] = ()
    file = wanted.file
    if file is None:
        try:
            names = hub.files(wanted.repo, wanted.revision, label)
        except UnreachableError as error:
            cached = _cached(hub.cache, wanted)
            if not cached:
                raise PlanError(f"{error}, and nothing of it is in the cache {hub.cache}") from None
            names = [entry.name for entry in cached]
            warnings = (f"{error}: chosen among what is in the cache",)
        file = choice.choose(names, wanted.file_type, label)
    paths = [hub.download(wanted.repo, part, wanted.revision, label) for part in choice.all_shards(file)]
    return Located(paths[0], warnings=warnings)


class UnreachableError(PlanError):
    """The Hub does not answer."""


class Hub:
    """huggingface_hub with its errors in this project's words. GgufmergeError when the package is missing."""

    def __init__(self) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import constants
        except ImportError:
            raise GgufmergeError(
                "models on the Hugging Face Hub need the package huggingface_hub: pip install 'ggufmerge[hub]'"
            ) from None
        self._hub = huggingface_hub
        self.cache = Path(constants.HF_HUB_CACHE)
        self.api: Any = huggingface_hub.HfApi(library_name="ggufmerge")

    def files(self, repo: str, revision: str | None, label: str) -> list[str]:
        """The names of all files of a repository. UnreachableError when the Hub does not answer."""
        try:
            return list(self.api.list_repo_files(repo, revision=revision))
        except Exception as error:
            raise self.explained(error, repo, label) from None

    def exists(self, repo: str, label: str) -> bool:
        """Whether there is such a repository that the user may see."""
        try:
            return bool(self.api.repo_exists(repo))
        except Exception as error:
            raise self.explained(error, repo, label) from None

    def download(self, repo: str, name: str, revision: str | None, label: str) -> Path:
        """A file of a repository in the cache, downloaded if it is not there or not the newest."""
        try:
            return Path(self.api.hf_hub_download(repo, name, revision=revision))
        except self._hub.errors.LocalEntryNotFoundError as error:  # neither the Hub nor the cache
            cause = self.explained(error.__cause__ or error, repo, label)
            if isinstance(cause, PlanError) and not isinstance(cause, UnreachableError):
                raise cause from None
            reason = cause if isinstance(cause, UnreachableError) else f"{label}: the Hub cannot be reached"
            raise PlanError(f"{reason}, and {name} is not in the cache {self.cache}") from None
        except self._hub.errors.EntryNotFoundError:
            raise choice.missing(label, name, self.files(repo, revision, label)) from None
        except Exception as error:
            raise self.explained(error, repo, label) from None

    def explained(self, error: BaseException, repo: str, label: str) -> BaseException:
        """What to tell the user instead, a PlanError or UnreachableError; the error itself if it is not the Hub's."""
        errors = self._hub.errors
        if isinstance(error, errors.GatedRepoError):
            return PlanError(f"{label}: accept its conditions at {self.api.endpoint}/{repo} first, then {LOG_IN}")
        if isinstance(error, errors.RevisionNotFoundError):
            return PlanError(f"{label}: the repository has no such revision: give a branch, a tag or a commit after @")
        if isinstance(error, errors.RepositoryNotFoundError):
            return PlanError(f"{label}: there is no repository {repo}, or it is private: check the name, or {LOG_IN}")
        if isinstance(error, errors.HFValidationError):
            return PlanError(f"{label}: {repo} is not the name of a repository")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return UnreachableError(f"{label}: the Hub is not asked because HF_HUB_OFFLINE is set")
        if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
            if status in (401, 403):
                return PlanError(f"{label}: the Hub refuses this ({status}): {LOG_IN} with a token that may do it")
            return UnreachableError(f"{label}: the Hub answers with an error ({status})")
        if isinstance(error, (ConnectionError, TimeoutError)) or _is_transport(error):
            return UnreachableError(f"{label}: the Hub cannot be reached")
        return error


def _is_transport(error: BaseException) -> bool:
    """Whether the library below huggingface_hub raised this, which is another one in each of its major versions."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return not modules.isdisjoint({"httpx", "httpx2", "httpcore", "requests", "urllib3"})


def _cached(folder: Path, wanted: HubName) -> list[CachedFile]:
    """What the cache has of a repository at a revision."""
    revision = wanted.revision or DEFAULT_REVISION
    return [f for f in cached_files(folder, wanted.repo) if revision in f.refs or f.commit.startswith(revision)]
