"""The Hugging Face Hub, by huggingface_hub: what a data set holds, and bytes of a file from where they stopped.

huggingface_hub looks for the token and sends it; nothing here reads it. Its hf_hub_download begins anew in every call,
so the bytes come by its http_get, which goes on where a file ends.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers
from rich.filesize import decimal

from longvita.data.errors import DataError

TROUBLES: tuple[type[Exception], ...] = (HTTPError, OSError, ValueError)
"""What a request of huggingface_hub may raise."""
_PATHS_AT_ONCE = 100
_ANSWER_SECONDS = 30
_HASHED_AT_ONCE = 1 << 20
_DENIED = (401, 403)
_TYPE = "dataset"


class State(StrEnum):
    """What became of a file."""

    FETCHED = "fetched"
    THERE = "there"
    """Whole already."""
    WANTED = "wanted"
    """Would be fetched (dry run)."""
    MISSING = "missing"
    """Not in the data set."""
    GATED = "gated"
    """The Hub asks who wants it."""
    FAILED = "failed"


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub describes it."""

    repository: str
    revision: str
    """Commit of the data set."""
    path: str
    size: int
    """Bytes."""
    digest: str
    """sha256 of the content (LFS), or git's sha1 of a small file."""

    def problem(self, path: Path) -> str | None:
        """What tells a local file from this one, or None if it is the same."""
        size = path.stat().st_size
        if size != self.size:
            return f"it has {size:,} bytes, on the Hub {self.size:,}"
        name = "sha256" if len(self.digest) == 64 else "git's sha1"
        digest = _digest(path, size, name)
        return None if digest == self.digest else f"its {name} is {digest}, on the Hub {self.digest}"


def _digest(path: Path, size: int, name: str) -> str:
    if name == "sha256":
        value = hashlib.sha256()
    else:
        value = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            value.update(block)
    return value.hexdigest()


class Hub:
    """Data sets at one endpoint."""

    def __init__(self, endpoint: str | None = None):
        """endpoint: address of the Hub or of a mirror; huggingface_hub's own when absent."""
        if endpoint is not None and not endpoint.startswith(("https://", "http://")):
            raise DataError(f"--endpoint {endpoint!r} is no address; give one such as https://huggingface.co")
        self._api = HfApi(endpoint=endpoint.rstrip("/") if endpoint else None)

    def page(self, repository: str) -> str:
        """Address of a data set's page."""
        return f"{self._api.endpoint}/datasets/{repository}"

    def describe(self, repository: str, paths: Sequence[str]) -> dict[str, HubFile]:
        """Those of the paths that the data set holds. Raises TROUBLES."""
        revision = self._revision(repository)
        found: list[Any] = []
        for start in range(0, len(paths), _PATHS_AT_ONCE):
            some = list(paths[start : start + _PATHS_AT_ONCE])
            found += self._api.get_paths_info(repository, some, revision=revision, repo_type=_TYPE)
        return {item.path: _hub_file(repository, revision, item) for item in found if isinstance(item, RepoFile)}

    def list_all(self, repository: str) -> dict[str, HubFile]:
        """Every file of a data set. Raises TROUBLES."""
        revision = self._revision(repository)
        tree = self._api.list_repo_tree(repository, recursive=True, revision=revision, repo_type=_TYPE)
        return {item.path: _hub_file(repository, revision, item) for item in tree if isinstance(item, RepoFile)}

    def _revision(self, repository: str) -> str:
        info = self._api.dataset_info(repository, timeout=_ANSWER_SECONDS, expand=["sha"])
        return str(info.sha)

    def download(self, file: HubFile, part: Path, on_bytes: Callable[[int], None]) -> None:
        """Adds to `part` what it lacks of the file. Raises TROUBLES, and what on_bytes raises."""
        url = hf_hub_url(
            file.repository, file.path, repo_type=_TYPE, revision=file.revision, endpoint=self._api.endpoint
        )
        if file.size > MAX_HTTP_DOWNLOAD_SIZE:
            raise OSError(
                f"{file.path} has more than {decimal(MAX_HTTP_DOWNLOAD_SIZE)}, which the Hub does not serve over HTTP: "
                f"get it with `hf download --repo-type dataset {file.repository} {file.path} --local-dir FOLDER`"
            )
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        with part.open("ab") as stream:
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                tqdm_class=cast(Any, functools.partial(_Meter, on_bytes)),
            )

    def explain(self, error: Exception, repository: str) -> tuple[State, str]:
        """What a trouble means for the files it met, and what to do about it."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        page = self.page(repository)
        if status in _DENIED:
            return State.GATED, (
                f"the Hub answers {status}: accept the terms at {page} and run `hf auth login` (without a login it "
                "says the same of a data set that is private or not there)"
            )
        if isinstance(error, RepositoryNotFoundError | EntryNotFoundError):
            return State.MISSING, f"not at {page}"
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        return State.FAILED, f"{page}: {type(error).__name__}: {reason}"


def _hub_file(repository: str, revision: str, item: RepoFile) -> HubFile:
    return HubFile(repository, revision, item.path, item.size, item.lfs.sha256 if item.lfs else item.blob_id)


class _Meter:
    """Stands where huggingface_hub expects a tqdm bar: tells how many bytes are there, those of an earlier run too."""

    def __init__(self, on_bytes: Callable[[int], None], *, initial: int = 0, **_: Any):
        self.update = on_bytes
        on_bytes(initial)

    def __enter__(self) -> _Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""
