"""Download of wanted files: listed, resumed, checked by size and checksum, and moved to the paths that the mix names.

This is our own although huggingface_hub has snapshot_download. That (2.4) deletes a partial file after an error, checks
sizes alone, replaces files that the user changed, and keeps the data set's paths. From huggingface_hub come listings,
the HTTP transfer with its retries, Xet, the names of partial files, and the metadata by which a second run knows files.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, hf_hub_url
from huggingface_hub._local_folder import get_local_download_paths, read_download_metadata, write_download_metadata
from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock, build_hf_headers, silent_tqdm
from huggingface_hub.utils._xet import abort_xet_session
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from longvita.data.errors import DataError
from longvita.data.fetch.wanted import FetchState, WantedFile, matching

HUB_ERRORS = (HTTPError, OSError, ValueError)
"""What a request of huggingface_hub may raise."""
OnBytes = Callable[[int], Any]

OnFile = Callable[[WantedFile], None]
_NAMES_AT_ONCE = 100
"""Names in one request for the sizes and checksums of files."""


class FetchStopped(Exception):
    """Raised in the threads that download when the run ends early; partial files stay."""


@contextmanager
def only_fetch(folder: Path) -> Iterator[None]:
    """Lock a folder against other fetches. Raises DataError if one is running."""
    lock = folder / ".cache" / "huggingface" / "fetch.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=0.1))
        except TimeoutError as error:
            raise DataError(f"another `longvita data fetch` is filling {folder}; wait for it, or end it") from error
        yield


class Downloader:
    """Downloads files of the Hub into one folder and sets their `state` and `detail`."""

    def __init__(self, folder: Path, endpoint: str | None = None):
        """endpoint: address of the Hub or of a mirror; huggingface_hub's default when absent."""
        if endpoint is not None and not endpoint.startswith(("https://", "http://")):
            raise DataError(f"--endpoint {endpoint!r} is no address; give one such as https://huggingface.co")
        self._api = HfApi(endpoint=endpoint.rstrip("/") if endpoint else None)
        self._folder = folder
        self._stopped = threading.Event()

    def list_files(self, wanted: Sequence[WantedFile]) -> list[WantedFile]:
        """List the files of the wanted ones, each target once; a wanted one without files is MISSING or has an error.

        Raises DataError for a path of the Hub that leads out of the folder.
        """
        files: dict[str, WantedFile] = {}
        for repository in dict.fromkeys(item.repository for item in wanted):
            own = [item for item in wanted if item.repository == repository]
            try:
                revision = str(self._api.dataset_info(repository, timeout=30, expand=["sha"]).sha)
                entries = self._entries(repository, revision, own)
            except HUB_ERRORS as error:
                for item in own:
                    self._explain(item, error)
                files |= {item.target: item for item in own}
                continue
            for item in own:
                found = matching(item, entries)
                for path, target in found.items():
                    entry = entries[path]
                    digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
                    file = replace(item, path=path, target=target, size=entry.size, revision=revision, digest=digest)
                    files.setdefault(target, file)
                if not found and item.path:
                    detail = f"not at {self._page(repository)}"
                    files[item.target] = replace(item, state=FetchState.MISSING, detail=detail)
        return list(files.values())

    def _entries(self, repository: str, revision: str, wanted: Sequence[WantedFile]) -> dict[str, RepoFile]:
        """The files of a data set by path: those of exact names, or all where a pattern or archives are wanted."""
        if all(item.path for item in wanted):
            names = [item.path for item in wanted]
            parts = [names[start : start + _NAMES_AT_ONCE] for start in range(0, len(names), _NAMES_AT_ONCE)]
            found = [
                entry
                for part in parts
                for entry in self._api.get_paths_info(repository, part, revision=revision, repo_type="dataset")
            ]
            exact = {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
            if exact.keys() >= set(names):
                return exact
        tree = self._api.list_repo_tree(repository, recursive=True, revision=revision, repo_type="dataset")
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def check(self, file: WantedFile, record: bool) -> None:
        """Set the state to THERE, or to FAILED if another file is in its place.

        record: whether a complete file that was not fetched here gets metadata, so that the next run need not hash it.
        Raises DataError for a place outside the folder.
        """
        place = self._place(file)
        if not place.exists():
            return
        known = None
        metadata = self._folder / ".cache" / "huggingface" / "download" / f"{file.target}.metadata"
        if metadata.exists():  # Reading it locks a file: a dry run leaves a folder without metadata as it is.
            with suppress(OSError):
                known = read_download_metadata(self._folder, file.target)
        is_known = known and known.etag == file.digest and place.stat().st_size == file.size
        difference = None if is_known else _difference(place, file)
        if difference is None:
            file.state = FetchState.THERE
            if record and not is_known:
                write_download_metadata(self._folder, file.target, file.revision, file.digest)
        elif not known or place.is_dir() or known.etag != _digest(place, known.etag):  # Not an earlier version either.
            file.state = FetchState.FAILED
            file.detail = f"{place} exists and is not the Hub's file: {difference}; move it away to fetch the Hub's"

    def missing_bytes(self, file: WantedFile) -> int:
        """Bytes that are still to be transferred."""
        part = self._part(file)
        return file.size - (min(part.stat().st_size, file.size) if part.exists() else 0)

    def fetch_all(self, files: Sequence[WantedFile], workers: int, on_bytes: OnBytes, on_file: OnFile) -> None:
        """Download `workers` files at once. An interrupt or an error stops all transfers at their next bytes."""

        def fetch(file: WantedFile) -> None:
            self.fetch(file, on_bytes)
            on_file(file)

        pool = ThreadPoolExecutor(workers)
        try:
            list(pool.map(fetch, files))
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """Make all transfers raise FetchStopped."""
        self._stopped.set()
        abort_xet_session()

    def fetch(self, file: WantedFile, on_bytes: OnBytes) -> None:
        """Download a file, check it and move it to its place. Raises FetchStopped after stop()."""
        part = self._part(file)
        try:
            self._transfer(file, part, on_bytes)
            difference = _difference(part, file)
            if difference is None:
                os.replace(part, self._place(file))
                write_download_metadata(self._folder, file.target, file.revision, file.digest)
                file.state = FetchState.FETCHED
                for other in part.parent.glob(f"{part.name.split('.')[0]}.*.incomplete"):  # of earlier versions
                    other.unlink(missing_ok=True)
            else:
                part.unlink()
                file.state = FetchState.FAILED
                file.detail = f"the downloaded file is damaged and was removed: {difference}; run the command again"
        except HUB_ERRORS as error:
            self._explain(file, error)

    def _transfer(self, file: WantedFile, part: Path, on_bytes: OnBytes) -> None:
        """Complete a partial file. Above 50 GB a file comes by Xet alone, from its first byte."""
        stopped = self._stopped

        class Meter(silent_tqdm):
            """In place of a tqdm bar: passes on the number of bytes that were written."""

            def update(self, n: float | None = 1) -> None:
                if stopped.is_set():
                    raise FetchStopped
                on_bytes(int(n or 0))

            def update_transfer(self, *_: object, **__: object) -> None:
                """Bytes on the network, before Xet writes them: not counted."""

            set_postfix_str = set_transfer_postfix_str = update_transfer

        tqdm_class: Any = Meter
        where: dict[str, Any] = {"repo_type": "dataset", "revision": file.revision, "endpoint": self._api.endpoint}
        if file.size > MAX_HTTP_DOWNLOAD_SIZE:
            folder = part.with_suffix(".xet")
            came = hf_hub_download(file.repository, file.path, local_dir=folder, tqdm_class=tqdm_class, **where)
            os.replace(came, part)
            shutil.rmtree(folder)
            return
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        with part.open("ab") as stream:
            http_get(
                hf_hub_url(file.repository, file.path, **where),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                tqdm_class=tqdm_class,
            )

    def _page(self, repository: str) -> str:
        return f"{self._api.endpoint}/datasets/{repository}"

    def _explain(self, file: WantedFile, error: Exception) -> None:
        """Set the state and the detail of a file whose request raised one of HUB_ERRORS."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        page = self._page(file.repository)
        if status in (401, 403):
            file.state = FetchState.GATED
            file.detail = (
                f"the Hub answers {status}: accept the terms at {page} and run `hf auth login` (without a login it "
                "gives the same answer for a data set that is private or does not exist)"
            )
        elif isinstance(error, RepositoryNotFoundError | EntryNotFoundError):
            file.state, file.detail = FetchState.MISSING, f"not at {page}"
        else:
            reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
            file.state, file.detail = FetchState.FAILED, f"{page}: {type(error).__name__}: {reason}"

    def _place(self, file: WantedFile) -> Path:
        place = self._folder / file.target
        if not place.resolve().is_relative_to(self._folder.resolve()):
            raise DataError(f"{place} leads out of {self._folder} by a link; nothing outside that folder is written")
        return place

    def _part(self, file: WantedFile) -> Path:
        return get_local_download_paths(self._folder, file.target).incomplete_path(file.digest)


def _difference(path: Path, file: WantedFile) -> str | None:
    """How a local file differs from the Hub's; None if it does not."""
    if path.is_dir():
        return "it is a folder"
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size:,} bytes, on the Hub {file.size:,}"
    digest = _digest(path, file.digest)
    kind = "git's sha1" if len(digest) == 40 else "sha256"
    return None if digest == file.digest else f"its {kind} is {digest}, on the Hub {file.digest}"


def _digest(path: Path, other: str) -> str:
    """The checksum of a file, of the kind of `other`: sha256, or git's sha1."""
    if len(other) == 40:
        return git_hash(path.read_bytes())
    with path.open("rb") as file:
        return sha_fileobj(file).hex()
