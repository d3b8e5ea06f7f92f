"""Pulling a model: ask the hub, look at what is here already, download, verify, then install.

Nothing gets its final name before its hash and its header were checked, model and projector
together; the index changes last, in one step. So a pull that is killed leaves what was installed
before as it was, and what has come for the next one.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.errors import DownloadError, HubError, ModelFileError
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.library.hub import (
    RemoteFile,
    ask_about,
    download,
    hub_session,
    list_repository,
)
from safesteer_edge.library.index import (
    InstalledModel,
    change_index,
    library_folder,
    read_index,
)
from safesteer_edge.library.install import (
    check_pair,
    delete_unused,
    files_replaced,
    link_in,
    modalities,
    move_in,
    place_for,
)
from safesteer_edge.library.other_stores import candidate_copies
from safesteer_edge.library.partial_file import PartialFile
from safesteer_edge.library.pull_request import PullRequest, choose_files, parse_pull
from safesteer_edge.library.stored_file import StoredFile, hash_file, looks_unchanged, record_file

_ROOM_LEFT_BYTES = 64 << 20
_MIB = 1 << 20
_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class PullReport:
    """How a pull tells what it does. Called from several threads.

    narrate: one line for people. expect: bytes that will be downloaded in all. advance: bytes
    that have come since the last call; negative where some are given up.
    """

    narrate: Callable[[str], None]
    expect: Callable[[int], None]
    advance: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Had:
    """A file that is here with the right content. is_new: its name in the library is to come.

    path: where it is now. is_owned: it lies, or will lie, in the library's folder.
    """

    remote: RemoteFile
    path: Path
    is_owned: bool
    sha256: str
    is_new: bool = False


def pull(spec: str, report: PullReport, *, with_projector: bool = True) -> InstalledModel:
    """Install the model that NAME[:QUANT] or hf:OWNER/NAME[:QUANT|FILE] means.

    Raises SettingsError, HubError and ModelFileError for what the user or the hub must mend,
    DownloadError for a transfer that was cut: then what has come is kept.
    """
    request = parse_pull(spec)
    library_folder(create=True)
    with hub_session(report.narrate):
        listing = list_repository(request.repository, request.revision)
        chosen = choose_files(request, listing, with_projector=with_projector)
        if chosen.projector is None and with_projector and request.entry and request.entry.takes:
            report.narrate("the repository has no projector: the model takes text alone")
        wanted = [chosen.model] if chosen.projector is None else [chosen.model, chosen.projector]
        remotes = [ask_about(listing, file) for file in wanted]
        _check_pins(request, remotes[0])
        with ExitStack() as locks:
            had = _get_all(request, remotes, report, locks)
            return _install(request, had, report)


def _get_all(
    request: PullRequest, remotes: list[RemoteFile], report: PullReport, locks: ExitStack
) -> list[_Had]:
    """Every file, from this machine or the hub, with its hash checked."""
    copies = [_find_here(request.name, remote, report) for remote in remotes]
    missing = [remote for remote, copy in zip(remotes, copies, strict=True) if copy is None]
    partials = {remote: _partial(remote) for remote in missing}
    for partial in partials.values():
        locks.enter_context(partial.locked())
    _check_room(partials)
    if partials:
        _download_all(partials, report)
    return [
        copy or _verified(remote, partials[remote], report)
        for remote, copy in zip(remotes, copies, strict=True)
    ]


def _partial(remote: RemoteFile) -> PartialFile:
    return PartialFile(library_folder() / ".partial" / f"{remote.checksum}.part")


def _find_here(name: str, remote: RemoteFile, report: PullReport) -> _Had | None:
    """A copy of the file on this machine: the library's own, or another program's."""
    place = place_for(name, remote.checksum, remote.name)
    for model in read_index().models:
        for file in model.files:
            if file.sha256 == remote.checksum and _is_unchanged(file):
                return _linked(name, remote, file.path, file.sha256, is_owned=file.is_owned)
    if place.is_file() and _has_checksum(place, remote):
        return _Had(remote, place, is_owned=True, sha256=_sha256_of(place, remote))
    for path in candidate_copies(remote.checksum, remote.size_bytes):
        try:
            is_same = _has_checksum(path, remote)
        except OSError:  # another user's file
            continue
        if is_same:
            report.narrate(f"{remote.name}: already on this machine, {path}")
            return _linked(name, remote, path, _sha256_of(path, remote), is_owned=False)
    return None


def _linked(name: str, remote: RemoteFile, path: Path, sha256: str, *, is_owned: bool) -> _Had:
    """A second name in the library for a file that is here; or the file where it is."""
    place = place_for(name, remote.checksum, remote.name)
    if path == place:
        return _Had(remote, path, is_owned=True, sha256=sha256)
    if link_in(path, place):
        return _Had(remote, place, is_owned=True, sha256=sha256)
    return _Had(remote, path, is_owned=is_owned, sha256=sha256)


def _is_unchanged(file: StoredFile) -> bool:
    try:
        return looks_unchanged(file)
    except OSError:
        return False


def _has_checksum(path: Path, remote: RemoteFile) -> bool:
    if path.stat().st_size != remote.size_bytes:
        return False
    if len(remote.checksum) == _SHA256_DIGITS:
        return hash_file(path) == remote.checksum
    # A file that the hub keeps in git itself: git's own hash of a blob.
    prefix = f"blob {remote.size_bytes}\0".encode()
    return hash_file(path, prefix=prefix, algorithm="sha1") == remote.checksum


def _sha256_of(path: Path, remote: RemoteFile) -> str:
    is_known = len(remote.checksum) == _SHA256_DIGITS
    return remote.checksum if is_known else hash_file(path)


def _check_pins(request: PullRequest, remote: RemoteFile) -> None:
    """What the catalogue says of size and hash must be so."""
    for file in request.entry.files if request.entry else ():
        if file.file != remote.name:
            continue
        for what, pinned, found in (
            ("size_bytes", file.size_bytes, remote.size_bytes),
            ("sha256", file.sha256, remote.checksum),
        ):
            if pinned is not None and pinned != found:
                raise HubError(
                    f"the hub has another {remote.name!r} than the catalogue: {what} is {found}, "
                    f"expected {pinned}; pull it by hf:{remote.repository} if you trust it"
                )


def _check_room(partials: dict[RemoteFile, PartialFile]) -> None:
    needed = sum(max(0, r.size_bytes - p.size_bytes) for r, p in partials.items())
    free = shutil.disk_usage(library_folder()).free
    if needed and needed + _ROOM_LEFT_BYTES > free:
        raise DownloadError(
            f"{str(library_folder())!r} has room for {free // _MIB} MiB, and {needed // _MIB} MiB "
            f"are to come ({_ROOM_LEFT_BYTES // _MIB} MiB stay free); make room, see "
            "'safesteer-edge models remove'"
        )


def _download_all(partials: dict[RemoteFile, PartialFile], report: PullReport) -> None:
    """Model and projector at the same time. An interrupt or an error of one stops the other."""
    stop = threading.Event()
    report.expect(sum(remote.size_bytes for remote in partials))
    report.advance(sum(partial.size_bytes for partial in partials.values()))

    def advance(n_bytes: int) -> None:
        if stop.is_set():
            raise DownloadError("the download was stopped; what has come is kept")
        report.advance(n_bytes)

    with ThreadPoolExecutor(len(partials), thread_name_prefix="pull") as pool:
        tasks = [
            pool.submit(download, remote, partial, report=advance, narrate=report.narrate)
            for remote, partial in partials.items()
        ]
        try:
            for task in tasks:
                task.result()
        except BaseException:  # an interrupt as well: the pool waits for its threads
            stop.set()
            raise


def _verified(remote: RemoteFile, partial: PartialFile, report: PullReport) -> _Had:
    report.narrate(f"{remote.name}: checking its hash")
    if not _has_checksum(partial.path, remote):
        partial.path.unlink()
        raise HubError(
            f"what the hub sent as '{remote.repository}/{remote.name}' does not have the hash that "
            "it says; nothing was installed, and it was deleted: try again, or another mirror"
        )
    sha256 = _sha256_of(partial.path, remote)
    return _Had(remote, partial.path, is_owned=True, sha256=sha256, is_new=True)


def _install(request: PullRequest, had: list[_Had], report: PullReport) -> InstalledModel:
    """Check the headers, give new files their names, and write the index."""
    model, projector = had[0], had[1] if len(had) > 1 else None
    try:
        info, projector_info = check_pair(model.path, projector.path if projector else None)
    except ModelFileError as error:
        for each in had:
            if each.is_new:
                each.path.unlink()
        raise _renamed(error, had) from error
    _warn_of_surprises(request, info, report)
    record = InstalledModel(
        name=request.name,
        title=request.entry.title if request.entry else info.name,
        architecture=info.architecture,
        quantization=info.quantization,
        context=info.n_ctx_train,
        model=_in_place(request.name, model),
        projector=_in_place(request.name, projector) if projector else None,
        takes=modalities(projector_info),
    )
    old = read_index().find(request.name)
    index = change_index(lambda index: index.with_model(record))
    delete_unused(files_replaced(old, record), index)
    return record


def _in_place(name: str, had: _Had) -> StoredFile:
    path = had.path
    if had.is_new:
        path = place_for(name, had.remote.checksum, had.remote.name)
        try:
            move_in(had.path, path)
        except OSError as error:
            raise DownloadError(
                f"cannot give the download its name {str(path)!r}: {error.strerror or error}; "
                "mend that, then run it again: what has come is kept"
            ) from error
    return record_file(
        path,
        is_owned=had.is_owned,
        sha256=had.sha256,
        repository=had.remote.repository,
        revision=had.remote.revision,
        repository_file=had.remote.name,
    )


def _renamed(error: ModelFileError, had: list[_Had]) -> HubError:
    """The error with the repository's names in the place of our temporary ones."""
    text = str(error)
    for each in had:
        for name in (str(each.path), each.path.name):
            text = text.replace(name, f"{each.remote.repository}/{each.remote.name}")
    return HubError(f"{text} (from the hub; nothing was installed)")


def _warn_of_surprises(request: PullRequest, info: ModelInfo, report: PullReport) -> None:
    entry = request.entry
    if entry is not None and info.architecture != entry.architecture:
        report.narrate(
            f"the file is for architecture {info.architecture!r}; the catalogue says "
            f"{entry.architecture!r}"
        )
