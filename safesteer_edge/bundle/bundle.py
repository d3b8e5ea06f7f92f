"""Guard bundles: the folder with probe.onnx, vector.gguf and guard.json, loaded and checked.

llama.cpp and onnxruntime check little more than widths: a probe or vector of another model,
layer, sign or scale loads and runs, and guards badly. Whatever can be checked is checked here,
before the first token.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.canaries import check_canaries_on_engine, check_probe_canaries
from safesteer_edge.bundle.fingerprint import (
    Match,
    ModelFingerprint,
    compare,
    fingerprint_model,
    require,
)
from safesteer_edge.bundle.schema import (
    MAX_CONFIG_BYTES,
    GuardConfig,
    ProbeEntry,
    RecordedEffect,
    VectorEntry,
    is_plain_name,
    measured_languages,
    parse_guard_json,
    recorded_effect,
    recorded_effort,
)
from safesteer_edge.errors import BundleError, os_errors_as
from safesteer_edge.formats.control_vector_file import ControlVector, read_control_vector
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.probe.sessions import Device

CONFIG_NAME = "guard.json"
MAX_PROBE_BYTES = 64 * 1024 * 1024
MAX_VECTOR_BYTES = 64 * 1024 * 1024
_GUARDED_SUFFIXES = (".onnx", ".gguf")
# What is added may be as long as the state that it is added to, and no longer: useful steering
# stays well below that, and beyond it the model's own computation is lost, whatever the intent.
MAX_VECTOR_RATIO = 1.0


@dataclass(frozen=True, slots=True)
class GuardBundle:
    """A loaded guard bundle. Owns the probe's session: close it, or use it in a `with`.

    match: how the model relates to the one that the bundle was calibrated on.
    unscaled_vector: the vector file's directions; None if the bundle has no vector.
    warnings: one line each, for the user to see.
    sha256: of guard.json, which lists those of the other files: it tells this bundle from others.
    is_calibrated: its figures say that this policy acts on harmful answers.
    """

    folder: Path
    config: GuardConfig
    match: Match
    probe: OnnxProbe
    unscaled_vector: ControlVector | None
    warnings: tuple[str, ...]
    sha256: str
    is_calibrated: bool
    prompt_probe: OnnxProbe | None = None

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: str | os.PathLike[str] | ModelInfo,
        *,
        device: Device = "auto",
        allow_negative_scale: bool = False,
    ) -> GuardBundle:
        """Load the bundle in a folder, for the model in a file; see `load_bundle`."""
        info = model if isinstance(model, ModelInfo) else check_language_model(Path(model))
        negative = allow_negative_scale
        return load_bundle(Path(folder), info, device=device, allow_negative_scale=negative)

    @property
    def policy(self) -> GuardPolicy:
        """The calibrated policy."""
        return self.config.policy

    @property
    def control_vector(self) -> ControlVector | None:
        """The vector at the bundle's own scale: sign · α applied, zero on unsteered layers."""
        entry = self.config.vector
        return None if entry is None else self._scaled(entry.scale)

    def vector_for(self, modality: Literal["image", "audio"]) -> ControlVector | None:
        """Return the vector at this modality's scale; None: it is not steered for that one."""
        entry = self.config.vector
        if entry is None:
            return None
        scale = entry.modalities.image if modality == "image" else entry.modalities.audio
        return None if scale is None else self._scaled(scale)

    @property
    def vector_gate(self) -> float | None:
        """The prompt's harmful score above which the vector is on; None: whenever there is one."""
        return None if self.config.vector is None else self.config.vector.gate

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that it was measured on, BCP 47; empty: its figures do not say."""
        return measured_languages(self.config.figures)

    @property
    def is_quick(self) -> bool:
        """By its figures, a calibration of more effort would read more than its own has read."""
        return recorded_effort(self.config.figures) == "quick"

    def require_calibrated(self) -> None:
        """Refuse to answer under a guard that nobody has measured. Raises BundleError."""
        require(
            self.is_calibrated,
            f"guard bundle {self.config.name!r} is UNCALIBRATED: nobody knows which answers it "
            "stops, so none is given under it; set its numbers with 'safesteer-edge calibrate "
            f"MODEL --from {shlex.quote(str(self.folder))} -o DIR', or only watch its scores: "
            "--guard monitor",
        )

    def close(self) -> None:
        """Free the probes' sessions. Closing twice is safe."""
        self.probe.close()
        if self.prompt_probe is not None:
            self.prompt_probe.close()

    def __enter__(self) -> GuardBundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scaled(self, scale: float) -> ControlVector | None:
        if self.unscaled_vector is None or self.config.vector is None:
            return None
        return scaled_vector(self.unscaled_vector, self.config.vector, scale)


def load_bundle(
    folder: Path,
    model: ModelInfo,
    *,
    device: Device = "auto",
    allow_negative_scale: bool = False,
) -> GuardBundle:
    """Load the guard bundle in a folder and check everything that it claims.

    model: the model that will run. device: where the probe runs, see OnnxProbe.from_bytes.
    allow_negative_scale: accept a vector that is applied against its direction.
    Takes some 20 ms. Nothing stays open if it raises.
    Raises BundleError if the bundle is missing, incomplete, damaged, contradicts itself, can never
    act or is made for another model; ProbeFileError and VectorFileError for the files inside;
    GuardError if the demanded device cannot be used.
    """
    bundle = open_bundle(
        folder,
        fingerprint_model(model),
        device=device,
        allow_negative_scale=allow_negative_scale,
    )
    return bundle if bundle.match == "exact" else _with_quantization_warning(bundle, model)


def open_bundle(
    folder: Path,
    model_fp: ModelFingerprint,
    *,
    device: Device = "auto",
    allow_negative_scale: bool = False,
) -> GuardBundle:
    """Load a bundle for the model with this fingerprint; as `load_bundle`, without its warning."""
    data = _read_config_file(folder)
    config = _parse_config(data, folder)
    match = compare(config.model, model_fp)
    check_nothing_unlisted(folder, config)
    effect = recorded_effect(config.policy, config.figures)
    _check_policy_acts(config.policy, effect)
    with ExitStack() as undo:
        probe = undo.enter_context(_open_probe(folder, config.probe, device))
        check_probe_canaries(probe, config.canaries)
        prompt_probe = None
        if config.prompt_probe is not None:
            prompt_probe = undo.enter_context(_open_probe(folder, config.prompt_probe, device))
        vector = _read_vector(folder, config, allow_negative_scale=allow_negative_scale)
        bundle = GuardBundle(
            folder=folder,
            config=config,
            match=match,
            probe=probe,
            unscaled_vector=vector,
            warnings=_warnings(config, effect),
            sha256=hashlib.sha256(data).hexdigest(),
            is_calibrated=effect == "acts",
            prompt_probe=prompt_probe,
        )
        undo.pop_all()
    return bundle


def read_config(folder: Path) -> GuardConfig:
    """Return what a bundle's guard.json says, without opening its other files.

    Raises BundleError if the folder or the file is missing or not a valid configuration.
    """
    return _parse_config(_read_config_file(folder), folder)


def _read_config_file(folder: Path) -> bytes:
    if not folder.is_dir():
        raise BundleError(
            f"there is no guard bundle at {str(folder)!r}; expected a folder with {CONFIG_NAME}, "
            "such as 'safesteer-edge calibrate' makes"
        )
    return read_bundle_file(folder, CONFIG_NAME, max_bytes=MAX_CONFIG_BYTES)


def _parse_config(data: bytes, folder: Path) -> GuardConfig:
    path = folder / CONFIG_NAME
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"cannot read {str(path)!r}: not UTF-8 text ({error.reason})") from error
    return parse_guard_json(text, source=str(path))


def check_engine_canaries(
    bundle: GuardBundle, states_of: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    """Check that the running engine yields the states that the bundle's probe was made for.

    states_of: returns float32 (n_features,), the joined states of the last of these token ids,
    read on the decode path with the vector off. Costs one short prompt per stored canary.
    Raises BundleError if a state or score is off: a wrong layer, or a broken backend.
    """
    check_canaries_on_engine(
        bundle.probe,
        bundle.config.canaries,
        states_of,
        n_embd=bundle.config.model.n_embd,
        match=bundle.match,
    )


def _open_probe(folder: Path, entry: ProbeEntry, device: Device) -> OnnxProbe:
    """Read, check and load a probe: the bytes that were hashed are the bytes that run."""
    path = folder / entry.file
    data = read_bundle_file(folder, entry.file, max_bytes=MAX_PROBE_BYTES)
    check_sha256(data, entry.sha256, path)
    probe = OnnxProbe.from_bytes(data, name=str(path), device=device)
    if probe.n_features != entry.n_features:
        probe.close()
        raise BundleError(
            f"{entry.file!r} reads states of {probe.n_features} values; guard.json says "
            f"{entry.n_features}: get the bundle again, or run 'safesteer-edge calibrate'"
        )
    return probe


def _read_vector(
    folder: Path, config: GuardConfig, *, allow_negative_scale: bool
) -> ControlVector | None:
    entry = config.vector
    if entry is None:
        return None
    check_polarity(entry, allow_negative_scale=allow_negative_scale)
    path = folder / entry.file
    data = read_bundle_file(folder, entry.file, max_bytes=MAX_VECTOR_BYTES)
    check_sha256(data, entry.sha256, path)
    vector = read_control_vector(path, data)
    check_vector(vector, config, entry)
    return vector


def _check_policy_acts(policy: GuardPolicy, effect: RecordedEffect) -> None:
    """Refuse a guard that looks like one and does nothing."""
    numbers = (
        f"strength {policy.strength:g}, threshold {policy.threshold:g}, hard_threshold "
        f"{policy.hard_threshold:g}, hard_patience {policy.hard_patience}, risk_limit "
        f"{policy.risk_limit:g}, risk_min_steps {policy.risk_min_steps}"
    )
    remedy = "get the bundle again, or run 'safesteer-edge calibrate'"
    require(
        policy.refuses,
        f"the policy in {CONFIG_NAME!r} has refuses false: it would let an answer go on after its "
        f"last retry, which is for comparisons alone; {remedy}",
    )
    require(
        policy.can_steer or policy.can_refuse,
        f"the policy in {CONFIG_NAME!r} can never act, whatever is said: {numbers}; {remedy}",
    )
    require(
        effect != "never_acts",
        f"the policy in {CONFIG_NAME!r} acts on none of the harmful answers that the bundle's own "
        f"figures record: {numbers}; {remedy}",
    )


def _warnings(config: GuardConfig, effect: RecordedEffect) -> tuple[str, ...]:
    """List what is allowed but worth a line on the screen."""
    warnings: list[str] = []
    if effect == "unknown":
        warnings.append(
            f"guard bundle {config.name!r} is UNCALIBRATED: it has no figures of what its policy "
            "does, so nobody knows which answers it stops; run 'safesteer-edge calibrate' to make "
            "one that was measured"
        )
    if not config.canaries.engine:
        warnings.append(
            f"guard bundle {config.name!r} has no engine self-test, so a state read from the "
            "wrong layer would go unnoticed; run 'safesteer-edge calibrate' to make one"
        )
    if config.vector is not None and is_reversed(config.vector):
        warnings.append(f"guard bundle {config.name!r} applies its vector backwards, as allowed")
    return tuple(warnings)


def _with_quantization_warning(bundle: GuardBundle, model: ModelInfo) -> GuardBundle:
    calibrated, running = bundle.config.model.quantization, model.quantization
    difference = (
        f"is {running}"
        if running != calibrated
        else f"is another {running} file of the same model (its tensors are stored differently)"
    )
    warning = (
        f"guard bundle {bundle.config.name!r} was calibrated on {calibrated}, and "
        f"{model.path.name!r} {difference}: its scores may be off: 'safesteer-edge "
        "verify' measures how far, and 'safesteer-edge calibrate --from' sets it right"
    )
    return replace(bundle, warnings=(warning, *bundle.warnings))


# -- the files in the folder --------------------------------------------------------------------


def read_bundle_file(folder: Path, name: str, *, max_bytes: int) -> bytes:
    """Return the content of a regular file that lies in the bundle's own folder.

    Raises BundleError if it is missing, leads out of the folder (a path, a link), is no regular
    file (a pipe would hang the reader), is larger than max_bytes, or cannot be read.
    """
    path = inner_path(folder, name)
    problem = f"cannot read {str(path)!r}"
    with os_errors_as(BundleError, problem, "make it readable"), path.open("rb") as file:
        data = file.read(max_bytes + 1)
    require(len(data) <= max_bytes, f"{problem}: too large; expected at most {max_bytes} bytes")
    return data


def inner_path(folder: Path, name: str) -> Path:
    """Return the path of a bundle's file after checking that it is inside and regular."""
    require(is_plain_name(name), f"{name!r} is not a plain file name")
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
        is_regular = stat.S_ISREG(resolved.stat().st_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleError(
            f"guard bundle {str(folder)!r} has no file {name!r}; get the bundle again, or make "
            "one with 'safesteer-edge calibrate'"
        ) from error
    require(
        resolved.parent == folder.resolve(),
        f"{str(path)!r} is a link out of the bundle's folder; put the file itself there",
    )
    require(is_regular, f"{str(path)!r} is not a regular file")
    return path


def check_sha256(data: bytes, expected: str, path: Path) -> None:
    """Raise BundleError unless this is the content that guard.json lists."""
    found = hashlib.sha256(data).hexdigest()
    require(
        found == expected,
        f"{str(path)!r} is damaged or exchanged: its SHA-256 is {found}, guard.json lists "
        f"{expected}; get the bundle again",
    )


def listed_files(config: GuardConfig) -> dict[str, str]:
    """The SHA-256 of each file that guard.json names, by its name."""
    entries = [getattr(config, field.name) for field in fields(config)]
    return {entry.file: entry.sha256 for entry in entries if hasattr(entry, "file")}


def check_nothing_unlisted(folder: Path, config: GuardConfig) -> None:
    """Raise BundleError for a probe or vector in the folder that guard.json does not list."""
    listed = config.file_names
    unlisted = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name.lower().endswith(_GUARDED_SUFFIXES) and entry.name not in listed
    )
    require(
        not unlisted,
        f"guard bundle {str(folder)!r} holds {unlisted[0] if unlisted else ''!r}, which guard.json "
        "does not list; remove it",
    )


# -- the vector against the model ------------------------------------------------------------------


def scaled_vector(vector: ControlVector, entry: VectorEntry, scale: float) -> ControlVector:
    """Return sign · scale · vector on the layers that the bundle steers, zero on all others."""
    first, last = entry.layers
    directions = np.zeros_like(vector.directions)
    directions[first : last + 1] = vector.directions[first : last + 1] * np.float32(
        entry.sign * scale
    )
    return replace(vector, directions=directions)


def is_reversed(entry: VectorEntry) -> bool:
    """Tell whether the sign or any scale is negative; two negatives are no better explained."""
    return entry.sign < 0 or any(scale < 0 for scale in entry.scales())


def check_polarity(entry: VectorEntry, *, allow_negative_scale: bool) -> None:
    """Refuse a vector that is applied against its direction, unless the user asks for it.

    Subtracting a safety vector is an attack (arXiv 2603.24543), and looks like any other file.
    Raises BundleError.
    """
    require(
        allow_negative_scale or not is_reversed(entry),
        f"the bundle applies its vector backwards (sign {entry.sign}, scales "
        f"{list(entry.scales())}), which would weaken the model's safety; load it only if that is "
        "what you want, with allow_negative_scale",
    )


def check_vector(vector: ControlVector, config: GuardConfig, entry: VectorEntry) -> None:
    """Check a vector's shape, origin and length against the model that the bundle is for.

    Raises BundleError if the shape is not (n_layer, n_embd), if it was made for another
    architecture, or if a layer would be moved by more than MAX_VECTOR_RATIO of its own norm.
    """
    expected_shape = (config.model.n_layer, config.model.n_embd)
    require(
        vector.directions.shape == expected_shape,
        f"{entry.file!r} has shape {vector.directions.shape}; expected {expected_shape} "
        "(n_layer, n_embd); get the bundle again",
    )
    require(
        vector.model_hint == config.model.architecture,
        f"{entry.file!r} is made for {vector.model_hint!r} models; this bundle is for "
        f"{config.model.architecture!r}",
    )
    require(
        vector.layer_convention == entry.layer_convention,
        f"{entry.file!r} has layer convention {vector.layer_convention!r}; guard.json says "
        f"{entry.layer_convention!r}",
    )
    largest = max(entry.scales(), key=abs)
    ratios = _norms(scaled_vector(vector, entry, largest)) / np.array(config.residual_norms)
    worst = int(np.nan_to_num(ratios, nan=np.inf).argmax())
    # Written so that a NaN fails.
    require(
        bool(ratios[worst] <= MAX_VECTOR_RATIO),
        f"{entry.file!r} at scale {largest} would move layer {worst} by {ratios[worst]:.3g} times "
        f"the norm of its state; expected at most {MAX_VECTOR_RATIO}: lower the scale",
    )


def _norms(vector: ControlVector) -> NDArray[np.float64]:
    """Return each layer's L2 norm, float64 (n_layer,)."""
    return np.linalg.norm(vector.directions.astype(np.float64), axis=1)
