"""The catalogue of known models: names, where their files lie, which guard bundle is theirs.

Known are the entries of `models/catalogue.toml`, those of a `catalogue.toml` in the user's
configuration folder, and whatever was pulled or added by a name of its own (`library.index`).
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safesteer_edge.errors import ModelFileError, SettingsError
from safesteer_edge.formats.user_folders import user_config_folder
from safesteer_edge.library.index import InstalledModel, checked_path, read_index

# -- the form of `catalogue.toml`: which keys an entry has, checked one by one ---------------------
# An unknown key is an error that names the nearest known one: a misspelt key would otherwise be
# an option that is silently not there.

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # Python 3.10 alone

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REQUIRED = ("name", "title", "architecture", "licence")
_MODALITIES = ("images", "sound")


@dataclass(frozen=True, slots=True)
class QuantizedFile:
    """One file of a repository. size_bytes, sha256: None where only the hub knows."""

    quantization: str
    file: str
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """One entry as it is written. See the head of catalogue.toml for what the keys mean."""

    name: str
    title: str
    architecture: str
    licence: str
    package: str = ""
    install: str = ""
    file: str = ""
    mmproj: str = ""
    repository: str = ""
    quantization: str = ""
    files: tuple[QuantizedFile, ...] = ()
    projector: str = ""
    parameters_b: float | None = None
    context: int | None = None
    takes: tuple[str, ...] = ()
    bundle: str = ""
    source: Path = field(default=Path(), compare=False)


def read_catalogue_file(path: Path) -> tuple[CatalogueRow, ...]:
    """All entries of a catalogue file. Raises SettingsError naming file, entry and key."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise SettingsError(f"catalogue {str(path)!r} is larger than 1 MiB; make it smaller")
        table = tomllib.loads(raw.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"catalogue {str(path)!r} is not TOML: {error}; mend it") from error
    except OSError as error:
        raise SettingsError(
            f"cannot read the catalogue {str(path)!r}: {error.strerror or error}; "
            "check that it is there and readable"
        ) from error
    _check_keys(table, ("model",), f"catalogue {str(path)!r}")
    rows = table.get("model", [])
    if not isinstance(rows, list):
        raise SettingsError(f"catalogue {str(path)!r}: 'model' is not a list of [[model]] tables")
    parsed = tuple(_parse(row, number, path) for number, row in enumerate(rows, 1))
    seen: set[str] = set()
    for row in parsed:
        if row.name in seen:
            raise SettingsError(f"catalogue {str(path)!r} has {row.name!r} twice; rename one")
        seen.add(row.name)
    return parsed


def _parse(row: Any, number: int, path: Path) -> CatalogueRow:
    if not isinstance(row, dict):
        raise SettingsError(f"catalogue {str(path)!r}: entry {number} is not a table")
    what = f"catalogue {str(path)!r}, entry {row.get('name', number)!r}"
    known = tuple(key for key in CatalogueRow.__dataclass_fields__ if key != "source")
    _check_keys(row, known, what)
    for key in _REQUIRED:
        if not row.get(key):
            raise SettingsError(f"{what}: key {key!r} is missing or empty; add it")
    values: dict[str, Any] = {key: _value(row, key, what) for key in row}
    parsed = CatalogueRow(**values, source=path)
    _check_together(parsed, what)
    return parsed


def _value(row: dict[str, Any], key: str, what: str) -> Any:
    value = row[key]
    if key == "parameters_b":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e5:
            raise SettingsError(f"{what}: {key!r} is {value!r}; expected billions of parameters")
        return float(value)
    if key == "context":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise SettingsError(f"{what}: {key!r} is {value!r}; expected a number of tokens")
        return value
    if key == "takes":
        if not isinstance(value, list) or any(each not in _MODALITIES for each in value):
            raise SettingsError(f"{what}: {key!r} is {value!r}; expected some of {_MODALITIES}")
        return tuple(value)
    if key == "files":
        if not isinstance(value, dict):
            raise SettingsError(f"{what}: 'files' is {value!r}; expected a table per quantization")
        return tuple(_file(name, entry, what) for name, entry in value.items())
    if not isinstance(value, str):
        raise SettingsError(f"{what}: {key!r} is {value!r}; expected a text")
    return value


def _file(quantization: str, entry: Any, what: str) -> QuantizedFile:
    what = f"{what}, file of {quantization!r}"
    if isinstance(entry, str):
        entry = {"file": entry}
    if not isinstance(entry, dict):
        raise SettingsError(f"{what} is {entry!r}; expected a file name or a table")
    _check_keys(entry, ("file", "size_bytes", "sha256"), what)
    name, size, sha256 = entry.get("file"), entry.get("size_bytes"), entry.get("sha256")
    if not isinstance(name, str) or not name:
        raise SettingsError(f"{what}: 'file' is {name!r}; expected a file name")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size <= 0):
        raise SettingsError(f"{what}: 'size_bytes' is {size!r}; expected a number of bytes")
    if sha256 is not None and (not isinstance(sha256, str) or not _SHA256.fullmatch(sha256)):
        raise SettingsError(f"{what}: 'sha256' is {sha256!r}; expected 64 lower-case hex digits")
    return QuantizedFile(quantization, name, size, sha256)


def _check_together(row: CatalogueRow, what: str) -> None:
    if not _NAME.fullmatch(row.name):
        raise SettingsError(
            f"{what}: 'name' is {row.name!r}; expected lower-case letters, digits, '.', '_', '-'"
        )
    if bool(row.package) == bool(row.repository):
        raise SettingsError(f"{what}: give either 'package' or 'repository', and not both")
    if row.package and not row.file:
        raise SettingsError(f"{what}: key 'file' is missing beside 'package'; add it")
    if row.repository and not _REPOSITORY.fullmatch(row.repository):
        raise SettingsError(f"{what}: 'repository' is {row.repository!r}; expected OWNER/NAME")
    if row.repository and not row.quantization:
        raise SettingsError(f"{what}: key 'quantization' is missing beside 'repository'; add it")


def _check_keys(table: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in table:
        if key in known:
            continue
        near = get_close_matches(key, known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {known}"
        raise SettingsError(f"{what}: unknown key {key!r}; {hint}")


HUB_PREFIX = "hf:"  # before the names of models that were pulled by their repository
_FILE = "catalogue.toml"


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One known model. path, mmproj: where its files lie, None while they are not installed.

    package, install, file: of a model that a Python package carries. repository, quantization,
    files, projector: of a model on a hub; file names are what we expect there, the hub's own
    listing decides. parameters_b: billions, by its name. context: tokens; None: not known.
    takes: 'images', 'sound'. installed: its record, for a model that was pulled or added.
    """

    name: str
    title: str
    architecture: str
    licence: str
    package: str
    install: str
    file: str
    bundle: Path | None
    path: Path | None
    mmproj: Path | None = None
    repository: str = ""
    quantization: str = ""
    files: tuple[QuantizedFile, ...] = ()
    projector: str = ""
    parameters_b: float | None = None
    context: int | None = None
    takes: tuple[str, ...] = ()
    installed: InstalledModel | None = None

    @property
    def is_installed(self) -> bool:
        """True if the file is there."""
        return self.path is not None


def models_folder() -> Path:
    """The folder `models/`: inside the package in a wheel, beside it in a checkout."""
    spec = importlib.util.find_spec("safesteer_edge.models")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("safesteer_edge.models is missing; reinstall safesteer-edge")
    return Path(next(iter(spec.submodule_search_locations)))


def load_catalogue() -> tuple[CatalogueModel, ...]:
    """All known models, the default first; then the user's catalogue, then other installed ones.

    Raises SettingsError for a catalogue or an index that is not as it should be.
    """
    folder = models_folder()
    rows = read_catalogue_file(folder / _FILE)
    own = user_config_folder() / _FILE
    if own.is_file():
        rows += _new_rows(read_catalogue_file(own), rows)
    installed = {model.name: model for model in read_index().models}
    models = [_to_model(row, row.source.parent, installed.pop(row.name, None)) for row in rows]
    by_name = {model.name: model for model in models}
    models += [_from_index(record, by_name) for record in installed.values()]
    return tuple(models)


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
    if quantization and base in models and models[base].repository:
        raise ModelFileError(
            f"model {name!r} is not installed; run: safesteer-edge models pull {name}"
        )
    if name.startswith(HUB_PREFIX):
        raise ModelFileError(
            f"model {name!r} is not installed; run: safesteer-edge models pull {name}"
        )
    near = get_close_matches(name, models, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SettingsError(
        f"unknown model {name!r}; {hint}give a path to a .gguf file, or a name of "
        "'safesteer-edge models list'"
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
        return checked_path(model.installed, model.installed.model)
    return model.path


def installed_projector(model: CatalogueModel) -> Path | None:
    """Where its projector lies, checked likewise; None if it has none."""
    if model.installed is not None and model.installed.projector is not None:
        return checked_path(model.installed, model.installed.projector)
    return model.mmproj


def _new_rows(
    rows: tuple[CatalogueRow, ...], known: tuple[CatalogueRow, ...]
) -> tuple[CatalogueRow, ...]:
    taken = {row.name for row in known}
    for row in rows:
        if row.name in taken:
            raise SettingsError(
                f"catalogue {str(row.source)!r}: {row.name!r} is a model of safesteer-edge's own "
                "catalogue; choose another name"
            )
    return rows


def _to_model(row: CatalogueRow, folder: Path, record: InstalledModel | None) -> CatalogueModel:
    bundle = folder / row.bundle if row.bundle else None
    mmproj = folder / row.mmproj if row.mmproj else None
    model = CatalogueModel(
        name=row.name,
        title=row.title,
        architecture=row.architecture,
        licence=row.licence,
        package=row.package,
        install=row.install,
        file=row.file,
        bundle=bundle if bundle and bundle.is_dir() else None,
        path=_find_in_package(row.package, row.file) if row.package else None,
        mmproj=mmproj if mmproj and mmproj.is_file() else None,
        repository=row.repository,
        quantization=row.quantization,
        files=row.files,
        projector=row.projector,
        parameters_b=row.parameters_b,
        context=row.context,
        takes=row.takes if row.repository or mmproj is None or mmproj.is_file() else (),
    )
    return _with_record(model, record) if record is not None else model


def _with_record(model: CatalogueModel, record: InstalledModel) -> CatalogueModel:
    path, projector = record.model.path, record.projector
    return replace(
        model,
        path=path,
        mmproj=projector.path if projector else model.mmproj,
        installed=record,
    )


def _from_index(record: InstalledModel, by_name: dict[str, CatalogueModel]) -> CatalogueModel:
    """A model under a name of its own: added, pulled by repository, or another quantization."""
    base = by_name.get(record.name.partition(":")[0])
    if base is not None and base.repository:
        return _with_record(replace(base, name=record.name, files=()), record)
    model = CatalogueModel(
        name=record.name,
        title=record.title,
        architecture=record.architecture,
        licence="see its repository" if record.model.repository else "not recorded",
        package="",
        install="",
        file="",
        bundle=None,
        path=None,
        repository=record.model.repository,
        context=record.context,
        takes=record.takes,
    )
    return _with_record(model, record)


def _find_in_package(package: str, file: str) -> Path | None:
    # find_spec of a top-level name does not import it, and importing this one would pull in
    # another chat tool.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return path if path.is_file() else None
