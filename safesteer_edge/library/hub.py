"""A model hub, asked through huggingface_hub: the only file that imports it.

Its own `hf_hub_download` cannot go on after a process was killed (since version 1 it writes to a
file named at random and deletes it on failure), and it takes what it gets without checking a hash.
So this file uses the library for what is said to the hub (endpoint, mirror, token, offline mode,
redirects, ranges, retries), and keeps the bytes itself, in a file named for their hash. Transfers
are plain HTTP; Xet's own protocol, which cannot go on either, is not used.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safesteer_edge.errors import DownloadError, HubError, SafeSteerError, SettingsError
from safesteer_edge.library.partial_file import PartialFile, TooManyBytesError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_N_RETRIES = 5  # in a row, without a byte between them
_RETRY_WAIT_S = 0.5
_MAX_SIZE_BYTES = 1 << 43
_LOG = "huggingface_hub"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository as its listing has it. checksum: SHA-256, or git's SHA-1 of it."""

    name: str
    size_bytes: int | None
    checksum: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds. revision: the commit."""

    repository: str
    revision: str
    files: tuple[HubFile, ...]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to download: size and checksum are what listing and file itself agree on."""

    repository: str
    revision: str
    name: str
    size_bytes: int
    checksum: str


@contextmanager
def hub_session(narrate: Callable[[str], None]) -> Iterator[None]:
    """Around a whole pull: the library's log is kept off stderr; that it waits is told."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars("huggingface_hub.http_get")
    logger = logging.getLogger(_LOG)
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:] = [_WaitHandler(narrate), *_root_handlers_when_verbose()]
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def list_repository(repository: str, revision: str | None = None) -> Listing:
    """What a repository holds. One request. Raises HubError, DownloadError, SettingsError."""
    from huggingface_hub import HfApi

    with _hub_errors(repository):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    if not info.sha or not _GIT_OID.fullmatch(info.sha):
        raise HubError(
            f"the hub names no commit of {repository!r} (it says {info.sha!r}); check HF_ENDPOINT"
        )
    files: list[HubFile] = []
    for sibling in info.siblings or []:
        lfs: dict[str, Any] | None = sibling.lfs
        checksum = (lfs or {}).get("sha256") or sibling.blob_id
        size = (lfs or {}).get("size", sibling.size)
        files.append(HubFile(sibling.rfilename, size, checksum))
    return Listing(repository, info.sha, tuple(files))


def ask_about(listing: Listing, file: HubFile) -> RemoteFile:
    """Size and checksum of a file, asked at its own address. One request.

    Raises HubError where listing and file disagree, or where the hub gives no size or checksum.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    where = f"{listing.repository}/{file.name}"
    with _hub_errors(where):
        url = hf_hub_url(listing.repository, file.name, revision=listing.revision)
        found = get_hf_file_metadata(url, token=None, retry_on_errors=True)
    checksum = file.checksum or found.etag
    size = found.size if file.size_bytes is None else file.size_bytes
    if found.size is not None and size != found.size:
        raise _lie(where, f"{size} bytes in its listing, {found.size} at the file itself")
    if file.checksum and found.etag and _is_checksum(found.etag) and found.etag != file.checksum:
        raise _lie(where, f"hash {file.checksum[:12]}… in its listing, {found.etag[:12]}… at it")
    if checksum is None or not _is_checksum(checksum):
        raise HubError(f"the hub gives no checksum of {where!r}; download it yourself, then add it")
    if size is None or not 0 < size < _MAX_SIZE_BYTES:
        raise HubError(f"the hub says that {where!r} has {size} bytes; it cannot be downloaded so")
    return RemoteFile(listing.repository, listing.revision, file.name, size, checksum)


def download(file: RemoteFile, partial: PartialFile, *, report: Callable[[int], None]) -> None:
    """Bring a partial file to its full size, from where it is. Its hash is not checked here.

    report: called with the number of bytes after each piece; negative where some are given up.
    Raises DownloadError if the transfer ends early (what has come stays), HubError if the hub
    sends more or fewer bytes than it says.
    """
    import httpx2
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    where = f"{file.repository}/{file.name}"
    url = hf_hub_url(file.repository, file.name, revision=file.revision)
    headers = {**build_hf_headers(token=None), "Accept-Encoding": "identity"}
    n_left = _N_RETRIES
    with partial.open(file.size_bytes, report) as sink, _hub_errors(where):
        while (start := sink.tell()) < file.size_bytes:
            try:
                http_get(
                    url,
                    sink,  # pyright: ignore[reportArgumentType]  # what http_get uses of a BinaryIO
                    resume_size=start,
                    headers=headers,
                    expected_size=file.size_bytes,
                )
            except TooManyBytesError as error:
                sink.discard()
                raise _lie(where, f"{file.size_bytes} bytes, and sends more") from error
            except httpx2.ReadError:
                # The library retries cut answers, but not connections that are reset.
                n_left = _N_RETRIES if sink.tell() > start else n_left - 1
                if n_left < 0:
                    raise
                time.sleep(_RETRY_WAIT_S)
            except OSError as error:
                if isinstance(error, httpx2.HTTPError) or error.errno is not None:
                    raise
                # Its check of the size, after an answer that ended as if it were whole.
                n_came = sink.tell()
                sink.discard()
                raise _lie(where, f"{file.size_bytes} bytes, and sends {n_came}") from error


def _is_checksum(text: str) -> bool:
    return bool(_SHA256.fullmatch(text) or _GIT_OID.fullmatch(text))


def _lie(where: str, what: str) -> HubError:
    return HubError(
        f"the hub contradicts itself about {where!r}: it says {what}; nothing was installed: "
        "try again later, or another mirror"
    )


@contextmanager
def _hub_errors(where: str) -> Iterator[None]:
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
            "HF_ENDPOINT, then run it again: what has come is kept"
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
            f"the hub allows no more requests now (status 429 at {where!r}); wait, or give a token "
            "(HF_TOKEN=…), then run it again: what has come is kept"
        )
    return DownloadError(
        f"the hub fails at {where!r} (status {status}); run it again later: what has come is kept"
    )


def _root_handlers_when_verbose() -> list[logging.Handler]:
    root = logging.getLogger()
    return root.handlers[:] if root.isEnabledFor(logging.DEBUG) else []


class _WaitHandler(logging.Handler):
    """Tells that the library waits, and nothing else."""

    def __init__(self, narrate: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._narrate = narrate

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(("Rate limited", "Error while")):
            self._narrate(message.splitlines()[0][:160])
