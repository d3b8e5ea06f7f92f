"""A model hub, asked through huggingface_hub.

Its own `hf_hub_download` cannot go on after a process was killed (since version 1 it writes to a
file named at random and deletes it on failure), and it takes what it gets without checking a hash.
So this file uses the library for what is said to the hub (endpoint, mirror, token, offline mode,
redirects, ranges, retries), and keeps the bytes itself, in a file named for their hash. Transfers
are plain HTTP; Xet's own protocol, which cannot go on either, is not used.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from safesteer_edge.errors import DownloadError, HubError, SafeSteerError, SettingsError

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo


RETRY_WAIT_S = 1.0
_MAX_WAIT_S: Final = 600
_N_TRIES: Final = 3
_PASSING: Final = (408, 429, 500, 502, 503, 504)  # statuses that pass by themselves

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_N_RETRIES = 5  # in a row, without a byte between them
_WHOLE = 200  # the HTTP status of an answer that begins at the first byte
_MAX_SIZE_BYTES = 1 << 43
_SYNC_BYTES = 64 << 20
_LOG = "huggingface_hub"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at one commit.

    size_bytes, checksum (SHA-256, or git's SHA-1): 0 and '' where a listing does not say; after
    `ask_about`, what listing and file itself agree on.
    """

    repository: str
    revision: str
    name: str
    size_bytes: int
    checksum: str

    @property
    def sha256(self) -> str | None:
        """The checksum, where it is a SHA-256."""
        return self.checksum if _SHA256.fullmatch(self.checksum) else None


@dataclass(slots=True)
class PartialFile:
    """The part of a download that has come: a file named for its checksum.

    It never grows too long, and outlives the process, so that a pull which was killed goes on
    where it stopped. One process at a time writes to it.
    """

    path: Path

    @property
    def size_bytes(self) -> int:
        """How much has come; 0 if nothing has."""
        return self.path.stat().st_size if self.path.exists() else 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes off it. Raises DownloadError if one is at it now."""
        import filelock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.path.with_name(f"{self.path.name}.lock")
        try:
            # The lock's own file stays: removing it would let two processes lock two files.
            with filelock.FileLock(lock_path, timeout=0):
                yield
        except filelock.Timeout as error:
            raise DownloadError(
                "another pull is downloading the same file; wait for it, or end it"
            ) from error


@contextmanager
def quiet_library() -> Iterator[None]:
    """Around a whole pull: the library's log is kept off stderr, but with --verbose."""
    logger = logging.getLogger(_LOG)
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:] = [logging.NullHandler(), *_root_handlers_when_verbose()]
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def list_repository(
    repository: str, revision: str | None, narrate: Callable[[str], None]
) -> list[RemoteFile]:
    """What a repository holds. One request. Raises HubError, DownloadError, SettingsError."""
    from huggingface_hub import HfApi

    def ask() -> ModelInfo:
        return HfApi().model_info(repository, revision=revision, files_metadata=True)

    info = patiently(ask, repository, narrate)
    if not info.sha or not _GIT_OID.fullmatch(info.sha):
        raise HubError(
            f"the hub names no commit of {repository!r} (it says {info.sha!r}); check HF_ENDPOINT"
        )
    files: list[RemoteFile] = []
    for sibling in info.siblings or []:
        lfs: dict[str, Any] = sibling.lfs or {}
        size, checksum = lfs.get("size", sibling.size), lfs.get("sha256") or sibling.blob_id
        files.append(RemoteFile(repository, info.sha, sibling.rfilename, size or 0, checksum or ""))
    return files


def ask_about(file: RemoteFile, narrate: Callable[[str], None]) -> RemoteFile:
    """Size and checksum of a file, asked at its own address. One request.

    Raises HubError where listing and file disagree, or where the hub gives no size or checksum.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    where = f"{file.repository}/{file.name}"
    url = hf_hub_url(file.repository, file.name, revision=file.revision)
    # Not its own retries: it would wait for as long as the hub says, be it a day.
    found = patiently(lambda: get_hf_file_metadata(url, token=None), where, narrate)
    checksum, size = file.checksum or found.etag or "", file.size_bytes or found.size or 0
    if found.size is not None and size != found.size:
        raise _lie(where, f"{size} bytes in its listing, {found.size} at the file itself")
    if file.checksum and found.etag and _is_checksum(found.etag) and found.etag != file.checksum:
        raise _lie(where, f"hash {file.checksum[:12]}… in its listing, {found.etag[:12]}… at it")
    if not _is_checksum(checksum):
        raise HubError(f"the hub gives no checksum of {where!r}; download it yourself, then add it")
    if not 0 < size < _MAX_SIZE_BYTES:
        raise HubError(f"the hub says that {where!r} has {size} bytes; it cannot be downloaded so")
    return replace(file, size_bytes=size, checksum=checksum)


def download(
    file: RemoteFile,
    partial: PartialFile,
    *,
    report: Callable[[int], None],
    narrate: Callable[[str], None],
) -> None:
    """Bring a partial file to its full size, from where it is. Its hash is not checked here.

    report: called with the number of bytes after each piece; negative where some are given up.
    Raises DownloadError if the transfer ends early (what has come stays), HubError if the hub
    sends more or fewer bytes than it says.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    where = f"{file.repository}/{file.name}"
    n_left = _N_RETRIES
    with _appended(partial.path) as stream, explained(where):
        if stream.tell() > file.size_bytes:
            _discard(stream, report)
        while (start := stream.tell()) < file.size_bytes:
            wait_s = RETRY_WAIT_S
            try:
                _receive(file, stream, report)
                return
            except HfHubHTTPError as error:
                n_left, wait_s = n_left - 1, asked_to_wait(error)
                if n_left >= 0:
                    narrate(waiting_text(error, wait_s))
            except httpx2.TransportError:
                n_left = _N_RETRIES if stream.tell() > start else n_left - 1
            if n_left < 0:
                raise DownloadError(
                    f"the download of {where!r} breaks off again and again; run it again later: "
                    "what was downloaded is kept"
                )
            wait(wait_s, report)


@contextmanager
def _appended(path: Path) -> Iterator[IO[bytes]]:
    with path.open("r+b" if path.exists() else "x+b") as stream:
        stream.seek(0, os.SEEK_END)
        try:
            yield stream
        finally:
            _sync(stream)


def _receive(file: RemoteFile, stream: IO[bytes], report: Callable[[int], None]) -> None:
    """One request for the bytes that are missing. Writes each piece as it comes.

    The library's `http_get` does nearly this, but it writes pieces of 10 MiB: of a line that breaks
    more often than that, nothing would ever stay.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    where, start = f"{file.repository}/{file.name}", stream.tell()
    # The token is for the hub: httpx2 leaves it out where a redirect leads to another origin.
    headers = {**build_hf_headers(token=None), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(file.repository, file.name, revision=file.revision)
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        hf_raise_for_status(response)
        if start and response.status_code == _WHOLE:  # it does not know ranges
            _discard(stream, report)
        elif start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _discard(stream, report)
            raise HubError(
                f"the hub sends another part of {where!r} than asked for; run it again, or try "
                "another mirror"
            )
        synced = stream.tell()
        for piece in response.iter_bytes():
            if stream.tell() + len(piece) > file.size_bytes:
                _discard(stream, report)
                raise _lie(where, f"{file.size_bytes} bytes, and sends more")
            report(stream.write(piece))
            if stream.tell() - synced >= _SYNC_BYTES:  # after a power cut, not all is lost
                _sync(stream)
                synced = stream.tell()
    if (n_came := stream.tell()) != file.size_bytes:  # an answer that ended as if whole
        _discard(stream, report)
        raise _lie(where, f"{file.size_bytes} bytes, and sends {n_came}")


def _discard(stream: IO[bytes], report: Callable[[int], None]) -> None:
    """Give up all that has come."""
    report(-stream.tell())
    stream.seek(0)
    stream.truncate()


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _is_checksum(text: str) -> bool:
    return bool(_SHA256.fullmatch(text) or _GIT_OID.fullmatch(text))


def _lie(where: str, what: str) -> HubError:
    return HubError(
        f"the hub contradicts itself about {where!r}: it says {what}; nothing was installed: "
        "try again later, or another mirror"
    )


def _root_handlers_when_verbose() -> list[logging.Handler]:
    root = logging.getLogger()
    return root.handlers[:] if root.isEnabledFor(logging.DEBUG) else []


# -- what a hub's refusals mean, in one line each, and which of them are worth waiting for ---------


def patiently(action: Callable[[], _T], where: str, narrate: Callable[[str], None]) -> _T:
    """What a request gives, after waiting where the hub asks for it. Raises as `explained`."""
    from huggingface_hub.errors import HfHubHTTPError

    with explained(where):
        for _ in range(_N_TRIES - 1):
            try:
                return action()
            except HfHubHTTPError as error:
                wait_s = asked_to_wait(error)
                narrate(waiting_text(error, wait_s))
                wait(wait_s, lambda _n_bytes: None)
        return action()


def asked_to_wait(error: Any) -> float:
    """Seconds until it is worth trying again; raises the error itself where it is not."""
    asked: str = error.response.headers.get("Retry-After", "")
    asked_s = int(asked) if asked.isascii() and asked.isdigit() else 0  # else it is a date
    if error.response.status_code not in _PASSING or asked_s > _MAX_WAIT_S:
        raise error
    return asked_s + RETRY_WAIT_S


def waiting_text(error: Any, wait_s: float) -> str:
    """What to tell of it."""
    return f"the hub answers with status {error.response.status_code}: waiting {wait_s:.0f} s"


def wait(seconds: float, report: Callable[[int], None]) -> None:
    """Wait, but not for longer than until `report` says by an error that it is over."""
    ends_s = time.monotonic() + seconds
    while (left_s := ends_s - time.monotonic()) > 0:
        report(0)
        time.sleep(min(left_s, 0.2))


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what the library raises into one line of ours."""
    import httpx2
    from huggingface_hub import errors, get_token

    try:
        yield
    except SafeSteerError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise SettingsError(
            f"cannot ask the hub for {where!r}: HF_HUB_OFFLINE is set; unset it, or add a file "
            "that you have: safesteer-edge models add NAME F.gguf"
        ) from error
    except errors.HFValidationError as error:
        raise SettingsError(f"{where!r} is not a repository; expected OWNER/NAME") from error
    except errors.HfHubHTTPError as error:
        raise _http_error(error, where, has_token=get_token() is not None) from error
    except httpx2.TransportError as error:
        raise DownloadError(
            f"cannot get {where!r}: {type(error).__name__}: {error}; check the connection and "
            "HF_ENDPOINT, then run it again: what was downloaded is kept"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, TypeError, KeyError) as error:
        raise HubError(
            f"cannot understand the hub's answer about {where!r} ({type(error).__name__}); "
            "check HF_ENDPOINT"
        ) from error


def _http_error(error: Any, where: str, *, has_token: bool) -> SafeSteerError:
    """The error for an HTTP status: 4xx is for the user to mend, but for rate limits."""
    from huggingface_hub import errors

    status: int = error.response.status_code
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return HubError(
            f"the hub does not give {where!r} to us (status {status}): accept its licence on the "
            "hub, then use a token of that account: HF_TOKEN=…, or 'hf auth login'"
        )
    if status == 401:
        problem = "the token is not valid for it" if has_token else "it is private, or not there"
        return HubError(
            f"the hub does not give {where!r} to us (status 401: {problem}); check the name, then "
            "give a token: HF_TOKEN=…, or 'hf auth login'"
        )
    if status == 404:
        return HubError(f"the hub has no {where!r} (status 404); check the name")
    if status == 429:
        return DownloadError(
            f"the hub accepts no more requests for now (status 429 at {where!r}); wait, or give "
            "a token (HF_TOKEN=…), then run it again: what was downloaded is kept"
        )
    return DownloadError(
        f"the hub fails at {where!r} (status {status}); run it again later: what was downloaded is "
        "kept"
    )
