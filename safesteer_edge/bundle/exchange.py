"""Guard bundles that travel: pulled from a hub, packed and unpacked, installed by model file.

What comes from elsewhere is held in memory until all of it is known to be a bundle: nothing but
the files that its guard.json names, each with the hash that stands there, loaded once as a session
would. Then it is written beside its place and moved there by one rename. Pages, which may carry
scripts, are left behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.bundle.bundle import (
    CONFIG_NAME,
    MAX_PROBE_BYTES,
    listed_files,
    open_bundle,
    read_config,
)
from safesteer_edge.bundle.fingerprint import Match, ModelFingerprint, compare, fingerprint_model
from safesteer_edge.bundle.schema import (
    MAX_CONFIG_BYTES,
    GuardConfig,
    is_plain_name,
    parse_guard_json,
)
from safesteer_edge.bundle.signature import (
    SIGNATURE_NAME,
    public_key,
    read_key,
    signed,
    signer_of,
)
from safesteer_edge.errors import (
    BundleError,
    ModelFileError,
    ProbeFileError,
    SettingsError,
    VectorFileError,
    os_errors_as,
)
from safesteer_edge.formats.atomic_write import atomic_write, write_whole
from safesteer_edge.library.catalogue import CatalogueModel, load_catalogue
from safesteer_edge.library.hub import RemoteFile, ask_about, list_repository
from safesteer_edge.library.index import bundle_place, bundles_folder, locked
from safesteer_edge.library.pull import PullReport, downloaded, hub_and_disk

_REPORT = "report.json"
_LEFT_BEHIND = re.compile(r"report\.html|\.gitattributes|(README|LICENSE|NOTICE)(\.md|\.txt)?")
_HUB_SPEC = re.compile(
    r"hf:(?P<repository>[^/:@]+/[^/:@]+)(?:@(?P<revision>[^:]+))?(?::(?P<folder>[\w./-]+))?"
)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_INCOMING = ".incoming-"
_MAX_FILES = 20
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # so that a bundle always gives the same archive
_AGAIN = "get it again, or from somebody else"


@dataclass(frozen=True, slots=True)
class BundleFiles:
    """The content of a bundle's files by name, guard.json among them. source: where it is from."""

    source: str
    content: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class KnownBundle:
    """A bundle on this machine. name: what commands take. is_installed: it is in the library."""

    name: str
    folder: Path
    is_installed: bool = False


# -- which bundles there are -----------------------------------------------------------------------


def known_bundles() -> list[KnownBundle]:
    """Those that the catalogue's models came with, then installed ones, the last first."""
    installed = [path for path in bundles_folder().glob("[!.]*/*") if path.is_dir()]
    installed.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    came_with = [
        KnownBundle(model.name, model.bundle)
        for model in load_catalogue()
        if model.bundle is not None and model.bundle not in installed
    ]
    return [*came_with, *(KnownBundle(path.name, path, is_installed=True) for path in installed)]


def find_bundle(name: str) -> KnownBundle:
    """The bundle of this name, of the only name that begins so, or in this folder.

    Raises BundleError.
    """
    known = known_bundles()
    found = [each for each in known if each.name == name]
    found = found or [each for each in known if each.name.startswith(name)]
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise BundleError(f"{name!r} is several guard bundles; name one: {names}")
    folder = Path(name).expanduser()
    if not found and not folder.is_dir():
        raise BundleError(
            f"there is no guard bundle {name!r}; give a name of 'safesteer-edge bundles list', or "
            "a bundle's folder"
        )
    return found[0] if found else KnownBundle(str(folder), folder)


def models_of(config: GuardConfig) -> list[tuple[CatalogueModel, Match]]:
    """The models on this machine that a bundle is for. Reads their headers, 0.1 s each."""
    found: list[tuple[CatalogueModel, Match]] = []
    for model in load_catalogue():
        try:
            if model.path is not None:
                found.append((model, compare(config.model, fingerprint_model(model.path))))
        except (BundleError, ModelFileError):  # another model, or none any more
            continue
    return found


def check_bundle(folder: Path, model: ModelFingerprint | None = None) -> GuardConfig:
    """Load a bundle with all its checks: hashes and the probe's self-tests.

    model: the one that it must be for. Raises BundleError, ProbeFileError, VectorFileError.
    """
    config = read_config(folder)
    open_bundle(folder, model or config.model, device="cpu").close()
    signer_in(folder)
    return config


# -- who signed it ---------------------------------------------------------------------------------


def signer_in(folder: Path) -> str | None:
    """See `signer_of`. Raises BundleError."""
    if not (folder / SIGNATURE_NAME).exists():
        return None
    return signer_of(read_bundle_folder(folder).content, str(folder))


def sign_bundle(folder: Path, key_path: Path) -> str:
    """Sign a bundle that is checked, in place of an earlier signature; returns the public key.

    Raises BundleError, SettingsError, OSError.
    """
    key = read_key(key_path)
    (folder / SIGNATURE_NAME).unlink(missing_ok=True)
    check_bundle(folder)
    write_whole(folder / SIGNATURE_NAME, signed(read_bundle_folder(folder).content, key))
    return public_key(key)


# -- out: one archive, the same bytes for the same bundle ------------------------------------------


def export_bundle(folder: Path, path: Path) -> None:
    """Write a bundle that was checked as a ZIP archive. Raises BundleError, OSError."""
    check_bundle(folder)
    files = read_bundle_folder(folder)
    with atomic_write(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(files.content):
            member = zipfile.ZipInfo(name, _ZIP_DATE)
            member.external_attr = 0o100644 << 16  # a regular file
            archive.writestr(member, files.content[name], zipfile.ZIP_DEFLATED)


# -- in: from a folder, an archive or a hub --------------------------------------------------------


def read_bundle(path: Path) -> BundleFiles:
    """The files in a folder or an archive. Raises BundleError."""
    return read_bundle_folder(path) if path.is_dir() else _read_bundle_zip(path)


def read_bundle_folder(folder: Path) -> BundleFiles:
    """A bundle's files, read. Raises BundleError for what is no part of one, and for links."""
    source, content = str(folder), dict[str, bytes]()
    with os_errors_as(BundleError, f"cannot read {source!r}", "make it readable"):
        names = sorted(entry.name for entry in folder.iterdir())
        for name in _wanted(names, source):
            _require_regular((folder / name).lstat().st_mode, name, source)
            with (folder / name).open("rb") as stream:
                content[name] = stream.read(_limit(name) + 1)
    return BundleFiles(source, content)


def _read_bundle_zip(path: Path) -> BundleFiles:
    source, content = str(path), dict[str, bytes]()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for name in _wanted([each.filename for each in members], source):
                member = archive.getinfo(name)
                _require_regular(member.external_attr >> 16, name, source)
                with archive.open(member) as stream:  # whatever size it claims
                    content[name] = stream.read(_limit(name) + 1)
    except OSError as error:
        raise BundleError(f"cannot read {source!r}: {error.strerror or error}") from error
    # RuntimeError: it wants a password. NotImplementedError: a compression that is not Python's.
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        NotImplementedError,
        EOFError,
        ValueError,
    ) as error:
        raise BundleError(
            f"cannot read {source!r}: it is no whole ZIP archive ({error}); {_AGAIN}"
        ) from error
    return BundleFiles(source, content)


def pull_bundle(
    spec: str, report: PullReport, *, sha256: str = "", model: ModelFingerprint | None = None
) -> Path:
    """Install the bundle that hf:OWNER/NAME[@REVISION][:FOLDER] means; returns its folder.

    sha256: of its guard.json, where that is known. model: the one that it must be for. Goes on
    where an earlier pull stopped. Raises BundleError, and what `pull` raises.
    """
    match = _HUB_SPEC.fullmatch(spec)
    if match is None:
        raise SettingsError(f"cannot read {spec!r}; expected hf:OWNER/NAME[@REVISION][:FOLDER]")
    below = f"{match['folder'].strip('/')}/" if match["folder"] else ""
    with hub_and_disk(), ExitStack() as locks:
        listing = list_repository(match["repository"], match["revision"], report.narrate)
        found = {f.name.removeprefix(below): f for f in listing if f.name.startswith(below)}
        wanted = {name: found[name] for name in _wanted(list(found), spec)}
        # 1. guard.json alone: it says which model this is for, and what else there must be.
        paths = _downloaded(spec, [wanted.pop(CONFIG_NAME)], report, locks)
        config_data = paths[0].read_bytes()
        config = _checked_config(config_data, spec, sha256, model)
        for name in (*listed_files(config), *wanted):
            if name not in wanted or name not in _files_of(config):
                raise _not_a_part(name, spec, is_missing=name not in wanted)
        # 2. The rest.
        paths += _downloaded(spec, list(wanted.values()), report, locks)
        rest = {name: path.read_bytes() for name, path in zip(wanted, paths[1:], strict=True)}
        folder = install_bundle(BundleFiles(spec, {CONFIG_NAME: config_data, **rest}), model)
        for path in paths:
            path.unlink()
    return folder


def _downloaded(
    source: str, remotes: list[RemoteFile], report: PullReport, locks: ExitStack
) -> list[Path]:
    asked = [ask_about(remote, report.narrate) for remote in remotes]
    for remote in asked:
        _require_size(remote.size_bytes, Path(remote.name).name, source)
    paths = downloaded(asked, report, locks)
    return [paths[remote] for remote in asked]


def install_bundle(files: BundleFiles, model: ModelFingerprint | None = None) -> Path:
    """Check a bundle from elsewhere and put it where sessions find it; returns its folder.

    It becomes the one of the model file that it was calibrated on. model: the one that it must be
    for, in any quantization. Raises BundleError, ProbeFileError, VectorFileError; OSError.
    """
    source, data = files.source, files.content[CONFIG_NAME]
    config = _checked_config(data, source, "", model)
    listed = listed_files(config)
    for name in (*listed, *files.content):
        if name not in files.content or name not in _files_of(config):
            raise _not_a_part(name, source, is_missing=name not in files.content)
    for name, content in files.content.items():
        _require_size(len(content), name, source)
        if name in listed and hashlib.sha256(content).hexdigest() != listed[name]:
            raise BundleError(
                f"{name!r} of guard bundle {source!r} does not have the hash that its guard.json "
                f"lists; nothing was installed: {_AGAIN}"
            )
    signer_of(files.content, source)
    name = _UNSAFE.sub("-", config.name).strip(".-")[:60] or "guard"
    place = bundle_place(config.model.tensor_table_sha256)
    place /= f"{name}-{hashlib.sha256(data).hexdigest()[:8]}"
    folder = bundles_folder(create=True)
    with locked(folder):
        for stale in folder.glob(f"{_INCOMING}*"):  # of an import that was killed
            shutil.rmtree(stale, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=folder))
        try:
            for file, content in files.content.items():
                write_whole(new / file, content)
            _load_once(new, config, source)
            place.parent.mkdir(exist_ok=True)
            if not _holds(place, files):
                if place.exists():  # damaged, for its guard.json was the same
                    place.replace(Path(tempfile.mkdtemp(prefix=_INCOMING, dir=folder)) / "old")
                new.replace(place)
            os.utime(place)  # the last that was installed is the one that is used
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return place


def _holds(folder: Path, files: BundleFiles) -> bool:
    paths = {folder / name: content for name, content in files.content.items()}
    return all(path.is_file() and path.read_bytes() == paths[path] for path in paths)


def _load_once(folder: Path, config: GuardConfig, source: str) -> None:
    try:
        open_bundle(folder, config.model, device="cpu").close()
    except (BundleError, ProbeFileError, VectorFileError) as error:
        raise type(error)(str(error).replace(str(folder), source)) from error


def _checked_config(
    data: bytes, source: str, sha256: str, model: ModelFingerprint | None
) -> GuardConfig:
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise BundleError(
            f"guard bundle {source!r} is another than the one that is wanted: the SHA-256 of its "
            f"{CONFIG_NAME} is {found}, expected {sha256}; pull it by its own name if you trust it"
        )
    try:
        config = parse_guard_json(data.decode("utf-8"), source=f"{source}/{CONFIG_NAME}")
    except UnicodeDecodeError as error:
        raise BundleError(f"{CONFIG_NAME} of guard bundle {source!r} is no text") from error
    if model is not None:
        compare(config.model, model)
    return config


def _files_of(config: GuardConfig) -> Collection[str]:
    return {CONFIG_NAME, _REPORT, SIGNATURE_NAME, *listed_files(config)}


def _wanted(names: Collection[str], source: str) -> list[str]:
    """What is to be read, by the names alone. Raises BundleError for what no bundle holds."""
    for name in names:
        is_known = is_plain_name(name) and name.endswith((".json", ".onnx", ".gguf"))
        if not is_known and not _LEFT_BEHIND.fullmatch(name):
            raise _not_a_part(name, source)
    if CONFIG_NAME not in names:
        raise BundleError(f"{source!r} is no guard bundle: it has no {CONFIG_NAME}")
    wanted = [name for name in names if not _LEFT_BEHIND.fullmatch(name)]
    if len(set(wanted)) < len(wanted) or len(wanted) > _MAX_FILES:
        raise BundleError(f"{source!r} is no guard bundle: it has one file twice, or too many")
    return wanted


def _not_a_part(name: str, source: str, *, is_missing: bool = False) -> BundleError:
    problem = "lacks" if is_missing else "holds"
    what = "which its guard.json names" if is_missing else "which is no part of one"
    return BundleError(f"guard bundle {source!r} {problem} {name[:80]!r}, {what}; {_AGAIN}")


def _require_regular(mode: int, name: str, source: str) -> None:
    # An archive need not say what a member is: then it is a file.
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise BundleError(
            f"guard bundle {source!r} holds {name!r}, which is a link or a folder; {_AGAIN}"
        )


def _require_size(size_bytes: int, name: str, source: str) -> None:
    if size_bytes > _limit(name):
        raise BundleError(
            f"{name!r} of guard bundle {source!r} is too large; expected at most "
            f"{_limit(name) >> 20} MiB"
        )


def _limit(name: str) -> int:
    return MAX_PROBE_BYTES if name.endswith((".onnx", ".gguf")) else MAX_CONFIG_BYTES


def remove_bundle(bundle: KnownBundle) -> None:
    """Delete an installed bundle. Raises BundleError for others, OSError."""
    if not bundle.is_installed:
        raise BundleError(f"{bundle.name!r} was not pulled or imported; delete its folder yourself")
    with locked(bundles_folder()):
        gone = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=bundles_folder()))
        bundle.folder.replace(gone / "old")
        shutil.rmtree(gone)
