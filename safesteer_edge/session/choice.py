"""Which model file, guard bundle and projector a user means; and that the projector fits."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.errors import MediaError, ModelFileError
from safesteer_edge.formats.model_file import (
    ModelInfo,
    check_language_model,
    check_projector_fits,
    read_model,
)
from safesteer_edge.formats.projector_file import ProjectorInfo
from safesteer_edge.library.catalogue import (
    HUB_PREFIX,
    CatalogueModel,
    default_model,
    find_model,
    installed_path,
    installed_projector,
    load_catalogue,
)
from safesteer_edge.library.index import bundles_folder, installed_bundle
from safesteer_edge.library.memory_need import ModelShape, read_model_shape
from safesteer_edge.session.settings import SessionSettings

# A quick calibration on two cores, by what the default model (94 MiB) and one of 1.0 GiB took.
_FITTING_MINUTES = 2.0
_READING_MINUTES_PER_GIB = 28.0


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model file to run. name: the catalogue's, or the file's.

    bundle: the catalogue's, or the one that was installed last for this very file. mmproj: the
    projector; None where there is none, or it is not there. entry: of the catalogue; None for
    another file.
    """

    name: str
    path: Path
    bundle: Path | None = None
    mmproj: Path | None = None
    entry: CatalogueModel | None = None


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a session will be made of, each header read once. mmproj, projector: None without one.

    shape: what the model takes of memory.
    """

    choice: ModelChoice
    info: ModelInfo
    shape: ModelShape
    mmproj: Path | None
    projector: ProjectorInfo | None


def choose_model(name_or_path: str | None) -> ModelChoice:
    """Find the model that a user means. Raises SettingsError, ModelFileError.

    No file is read, but the header of one that has no bundle where any are installed.
    """
    if name_or_path is None or not _looks_like_path(name_or_path):
        entry = default_model() if name_or_path is None else find_model(name_or_path)
        # A path that is not there is an error that says how to get it.
        path = entry.path or installed_path(entry)
        return _chosen(entry, path)
    path = Path(name_or_path).expanduser()
    for entry in load_catalogue():
        if entry.path is not None and path.exists() and path.samefile(entry.path):
            return _chosen(entry, path)
    return ModelChoice(path.stem, path, _bundle_for(path))


def _chosen(entry: CatalogueModel, path: Path) -> ModelChoice:
    bundle = entry.bundle or _bundle_for(path)
    return ModelChoice(entry.name, path, bundle, entry.mmproj, entry)


def _bundle_for(path: Path) -> Path | None:
    with suppress(ModelFileError):  # as whoever loads it will say
        if bundles_folder().is_dir():
            return installed_bundle(check_language_model(path).tensor_table_sha256)
    return None


def must_be_pulled(name_or_path: str) -> bool:
    """Whether it is the name of a model on a hub that is not here. Raises SettingsError."""
    if _looks_like_path(name_or_path):
        return False
    try:
        entry = find_model(name_or_path)
    except ModelFileError:
        return True
    return entry.path is None and bool(entry.repository)


def read_model_files(settings: SessionSettings) -> ModelFiles:
    """Choose the model, and check its file and its projector's before native code sees them.

    Takes some 50 ms; a file of the library whose time has changed is hashed again, about a second a
    gigabyte. Raises SettingsError, ModelFileError.
    """
    choice = choose_model(settings.model)
    if choice.entry is not None:
        installed_path(choice.entry)  # or an error, if it is no longer the file that was recorded
        if settings.mmproj is None:
            installed_projector(choice.entry)
    header = read_model(choice.path)
    info, mmproj = check_language_model(header), settings.mmproj or choice.mmproj
    projector = check_projector_fits(mmproj, info) if mmproj is not None else None
    return ModelFiles(choice, info, read_model_shape(header), mmproj, projector)


def no_bundle_text(choice: ModelChoice, info: ModelInfo, *, n_cores: int) -> str:
    """What to say where a model has no guard bundle: how to make one, and how long that takes."""
    path = shlex.quote(str(choice.path))
    return (
        f"there is no guard bundle for {choice.name!r}; make one with: safesteer-edge calibrate "
        f"{path} ({calibration_time(info, n_cores=n_cores)}), give the folder of one with "
        "--bundle, or chat without a guard: --guard off"
    )


def calibration_time(info: ModelInfo, *, n_cores: int) -> str:
    """How long it takes to make a guard, in words.

    By the size of the file, as decoding reads all of it for each token.
    """
    reading = _READING_MINUTES_PER_GIB * info.size_bytes / (1 << 30)
    minutes = (_FITTING_MINUTES + reading) * 2 / n_cores
    how_long = f"{max(5, 5 * round(minutes / 5)):.0f} minutes"
    if minutes >= 90:
        how_long = f"{minutes / 60:.0f} hours"
    return f"about {how_long} on this machine's CPU"


def require_projector(
    settings: SessionSettings, *, images: bool, sounds: bool
) -> ModelFiles | None:
    """Check that the model can take what is to be attached, before anything is loaded.

    Reads headers, and no weights. None if nothing is attached.
    Raises MediaError that names what is missing, SettingsError, ModelFileError.
    """
    if not images and not sounds:
        return None
    files = read_model_files(settings)
    if files.projector is None:
        raise MediaError(
            f"model {files.choice.name!r} cannot take {'images' if images else 'sound'}: "
            f"{_missing_projector(files.choice)}"
        )
    info = files.projector
    for wanted, has, kind in ((images, info.has_vision, "see"), (sounds, info.has_audio, "hear")):
        if wanted and not has:
            raise MediaError(
                f"projector {str(files.mmproj)!r} cannot {kind}; remove the attachment, or choose "
                f"a model that can {kind}"
            )
    return files


def _missing_projector(choice: ModelChoice) -> str:
    """Which file is missing, and where to get it."""
    if choice.entry is not None and choice.entry.repository and choice.entry.projector:
        return (
            f"its projector {choice.entry.projector!r} is missing; run: "
            f"safesteer-edge models pull {choice.name}"
        )
    beside = sorted(choice.path.parent.glob("*mmproj*.gguf"))
    where = (
        f"{shlex.quote(str(beside[0]))} lies beside it: pass it with --mmproj if it is this model's"
        if beside
        else "get it from where the model is from and pass it with --mmproj FILE"
    )
    return (
        f"its projector (mmproj-….gguf) is missing; {where}, or choose a model that has one "
        "with --model"
    )


def _looks_like_path(name_or_path: str) -> bool:
    if name_or_path.startswith(HUB_PREFIX):
        return False
    return name_or_path.endswith(".gguf") or os.sep in name_or_path or "/" in name_or_path
