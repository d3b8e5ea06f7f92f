"""guard.json, schema versions 1 and 2: what a guard bundle says about itself.

Version 2 adds safe openings, a probe for prompts, and a policy whose steering depends on the risk.

The dataclasses are the schema. An object that breaks a range or contradicts itself cannot be
made, so a config is good whether it was read from a file or put together by a calibration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, cast

from safesteer_edge.bundle.canaries import Canaries
from safesteer_edge.bundle.fingerprint import ModelFingerprint, is_sha256, require
from safesteer_edge.errors import BundleError
from safesteer_edge.formats.json_values import (
    BadValueError,
    format_json,
    from_json,
    load_json,
    refuse_control_characters,
)
from safesteer_edge.guard.policy import MAX_OPENINGS, GuardPolicy
from safesteer_edge.guard.readings import ReadingCurves

SCHEMA_VERSION = 2
_KNOWN_VERSIONS = (1, SCHEMA_VERSION)
_MAX_OPENING_CHARACTERS = 80
_MAX_OPENING_TOKENS = 256
MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_FIGURES_BYTES = 256 * 1024

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_LABEL_CHARACTERS = 200
_MAX_REFUSAL_CHARACTERS = 2000
# Where `calibrate` keeps the policy that it chose with the shares that it acts on, and where
# `calibrate --from` does.
_CHOICES = (("calibration", "policy"), ("policy_choice",))
_ACTS = ("refused", "touched")
_ROUNDING = 5e-6  # of a replay's scores

RecordedEffect = Literal["acts", "never_acts", "unknown"]


@dataclass(frozen=True, slots=True)
class ProbeEntry:
    """The probe's file and what to feed it.

    layers: the states to join, in this order: block outputs 0 … n_layer − 1, or n_layer for the
    state after the final norm. route_hint: how the states were read when it was fitted.
    """

    file: str
    sha256: str
    layers: tuple[int, ...]
    n_features: int
    positive_class: Literal["harmful"] = "harmful"
    route_hint: Literal["layer_input", "final_norm", "eval_callback"] | None = None

    def __post_init__(self) -> None:
        _check_file(self.file, self.sha256, ".onnx")
        require(bool(self.layers), "layers is empty; expected at least one layer")
        require(len(set(self.layers)) == len(self.layers), f"layers {self.layers} repeats one")


@dataclass(frozen=True, slots=True)
class ModalityScales:
    """The scale α for each kind of media; None: the vector is off while only that is there."""

    image: float | None
    audio: float | None = None


@dataclass(frozen=True, slots=True)
class VectorEntry:
    """The alignment vector's file and how to apply it.

    What is added to the output of block L, for first <= L <= last, is sign · α · direction L.
    scale: α where no modality decides. max_scale: the largest |α| that calibration allows.
    layers: (first, last), both included, 0-based; block 0 cannot be steered by llama.cpp.
    gate: it is on only where the prompt's harmful score without it is above this; None: always.
    """

    file: str
    sha256: str
    layer_convention: Literal["block_output_0based"]
    sign: Literal[1, -1]
    scale: float
    max_scale: float
    layers: tuple[int, int]
    modalities: ModalityScales
    gate: float | None = None

    def __post_init__(self) -> None:
        _check_file(self.file, self.sha256, ".gguf")
        if self.gate is not None:
            require(0 <= self.gate <= 1, f"gate is {self.gate}; expected 0 to 1")
        require(self.max_scale > 0, f"max_scale is {self.max_scale}; expected more than 0")
        for scale in self.scales():
            require(
                abs(scale) <= self.max_scale,
                f"a scale of {scale} is above max_scale ({self.max_scale})",
            )
        first, last = self.layers
        require(1 <= first <= last, f"layers is [{first}, {last}]; expected 1 <= first <= last")

    def scales(self) -> tuple[float, ...]:
        """Return every α that can be applied."""
        wanted = (self.scale, self.modalities.image, self.modalities.audio)
        return tuple(scale for scale in wanted if scale is not None)


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """The whole of guard.json.

    created: ISO date. residual_norms: mean L2 norm of each block's output, n_layer values.
    figures: the measured figures of the calibration, free JSON.
    openings: safe beginnings of an answer, the preferred one first, that join the candidates where
    an answer is steered anew. opening_tokens: behind one, the answer ends with the first sentence
    that has so many; 0: it goes on as the model likes. prompt_probe: judges prompts by the same
    layers as the probe, the last state's or, of twice as many features, those of the mean state of
    the message's words behind them; None: the probe judges the last state. readings: how rare its
    scores are among benign texts that are read in other ways; None: as they were typed alone.
    """

    name: str
    created: str
    created_by: str
    model: ModelFingerprint
    probe: ProbeEntry
    policy: GuardPolicy
    residual_norms: tuple[float, ...]
    canaries: Canaries
    refusal_text: str
    vector: VectorEntry | None = None
    figures: Mapping[str, object] = field(default_factory=dict[str, object])
    schema_version: int = SCHEMA_VERSION
    openings: tuple[str, ...] = ()
    opening_tokens: int = 0
    prompt_probe: ProbeEntry | None = None
    readings: ReadingCurves | None = None

    def __post_init__(self) -> None:
        for label in ("name", "created_by"):
            text = cast(str, getattr(self, label))
            good = 0 < len(text) <= _MAX_LABEL_CHARACTERS and text.isprintable()
            require(good, f"{label} is {text[:60]!r}; expected one line of printable characters")
        require(_is_iso_date(self.created), f"created is {self.created!r}; expected YYYY-MM-DD")
        require(
            bool(self.refusal_text.strip()) and len(self.refusal_text) <= _MAX_REFUSAL_CHARACTERS,
            f"refusal_text has {len(self.refusal_text)} characters; "
            f"expected 1 to {_MAX_REFUSAL_CHARACTERS}",
        )
        figures_bytes = len(_json_text(self.figures).encode())
        require(
            figures_bytes <= MAX_FIGURES_BYTES,
            f"figures takes {figures_bytes} bytes; expected at most {MAX_FIGURES_BYTES}",
        )
        require(
            self.policy.threshold < 1,
            "policy.threshold is 1, above which there is no score; expected less",
        )
        require(
            len(set(self.openings)) == len(self.openings) <= MAX_OPENINGS,
            f"openings has {len(self.openings)}; expected up to {MAX_OPENINGS}, all different",
        )
        require(
            0 <= self.opening_tokens <= _MAX_OPENING_TOKENS,
            f"opening_tokens is {self.opening_tokens}; expected 0 to {_MAX_OPENING_TOKENS}",
        )
        for text in self.openings:
            good = 0 < len(text) <= _MAX_OPENING_CHARACTERS and text.isprintable()
            require(good, f"an opening is {text[:60]!r}; expected one short line of text")
        self._check_layers()
        self._check_canaries()

    @property
    def probes(self) -> tuple[ProbeEntry, ...]:
        """The probe, and that of prompts where there is one."""
        return (self.probe,) if self.prompt_probe is None else (self.probe, self.prompt_probe)

    @property
    def prompt_reads_message(self) -> bool:
        """Whether prompts are judged by the mean state of the message's words, too."""
        entry = self.prompt_probe
        return entry is not None and entry.n_features > self.probe.n_features

    @property
    def file_names(self) -> frozenset[str]:
        """The files that it names, each with its hash."""
        vector = () if self.vector is None else (self.vector.file,)
        return frozenset((*(entry.file for entry in self.probes), *vector))

    def _check_layers(self) -> None:
        n_layer, n_embd = self.model.n_layer, self.model.n_embd
        layers = self.probe.layers
        require(
            all(0 <= layer <= n_layer for layer in layers),
            f"probe.layers is {list(layers)}; expected 0 to {n_layer} (n_layer)",
        )
        require(
            self.probe.n_features == n_embd * len(layers),
            f"probe.n_features is {self.probe.n_features}; expected {n_embd} × {len(layers)}",
        )
        if self.prompt_probe is not None:
            width = self.probe.n_features
            require(
                self.prompt_probe.layers == layers
                and self.prompt_probe.n_features in (width, 2 * width),
                "prompt_probe reads other layers than probe; expected the same",
            )
            require(
                self.prompt_probe.file != self.probe.file, "prompt_probe and probe are one file"
            )
        require(
            len(self.residual_norms) == n_layer
            and all(math.isfinite(norm) and norm > 0 for norm in self.residual_norms),
            f"residual_norms has {len(self.residual_norms)} values; "
            f"expected {n_layer}, all above 0",
        )
        if self.vector is not None:
            last = self.vector.layers[1]
            require(last < n_layer, f"vector.layers ends at {last}; expected {n_layer - 1} or less")

    def _check_canaries(self) -> None:
        size_bytes = 4 * self.probe.n_features
        for canary in (*self.canaries.probe, *self.canaries.engine):
            require(
                len(canary.hidden_state) == size_bytes,
                f"a canary's state has {len(canary.hidden_state)} bytes; expected {size_bytes}",
            )
        for canary in self.canaries.engine:
            require(
                all(0 <= token_id < self.model.n_vocab for token_id in canary.token_ids),
                f"a canary's token ids are not all in 0 to {self.model.n_vocab - 1}",
            )


def parse_guard_json(text: str, *, source: str) -> GuardConfig:
    """Return the content of a guard.json.

    source: what messages call the file, usually its path.
    Raises BundleError for anything that is not a complete, known and consistent configuration.
    """
    try:
        value = load_json(text)
        _check_version(value)
        refuse_control_characters(value)
        return from_json(GuardConfig, value)
    except (BadValueError, BundleError) as error:
        raise BundleError(
            f"cannot read {source!r}: {error}; get the bundle again, or make one with "
            "'safesteer-edge calibrate'"
        ) from error


def format_guard_json(config: GuardConfig) -> str:
    """Return a configuration as the text of a guard.json; `parse_guard_json` reads it back."""
    text = _json_text(config)
    size_bytes = len(text.encode())
    require(
        size_bytes <= MAX_CONFIG_BYTES,
        f"guard.json would take {size_bytes} bytes; expected at most {MAX_CONFIG_BYTES}: "
        "keep fewer canaries or figures",
    )
    return text


def recorded_effect(policy: GuardPolicy, figures: Mapping[str, object]) -> RecordedEffect:
    """Tell whether a policy acts on any harmful answer that was measured for the bundle.

    'unknown': the figures hold no such measurement, or one of another policy. They are free JSON:
    then they count for nothing in its favour, and only what they rule out is believed.
    """
    for keys in _CHOICES:
        choice = _at(figures, *keys)
        if _is_of(choice, policy):
            refused, touched = (_share(_at(choice, what, "harmful")) for what in _ACTS)
            if refused is None or touched is None:
                return "unknown"
            return "acts" if refused > 0 or (touched > 0 and policy.can_steer) else "never_acts"
    largest = _largest_replayed_score(figures)
    return "unknown" if largest is None or _may_act(policy, largest) else "never_acts"


def measured_languages(figures: Mapping[str, object]) -> tuple[str, ...]:
    """Those in which the prompt probe was measured to find harm; empty: the figures say nothing."""
    covers = _at(figures, "prompt_probe", "covers")
    codes = cast("list[object]", covers) if isinstance(covers, list) else []
    return tuple(code for code in codes if isinstance(code, str))


def recorded_effort(figures: Mapping[str, object]) -> object:
    """The effort of the calibration that made a bundle; None where the figures hold none."""
    return _at(figures, "calibration", "effort", "name")


def is_plain_name(name: str) -> bool:
    """Tell whether this names a file in the bundle's own folder and nothing else."""
    return _PLAIN_NAME.fullmatch(name) is not None


def _check_version(value: object) -> None:
    """Refuse a version that this program does not know, before its keys look merely unknown."""
    given = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    version = given.get("schema_version")
    require(type(version) is int and version > 0, "it has no schema_version (a whole number)")
    require(
        version in _KNOWN_VERSIONS,
        f"schema_version is {version!r}; this program reads versions 1 to {SCHEMA_VERSION}: "
        "upgrade safesteer-edge",
    )


def _json_text(value: object) -> str:
    try:
        return format_json(value)
    except BadValueError as error:
        raise BundleError(str(error)) from error


def _check_file(name: str, sha256: str, suffix: str) -> None:
    require(
        is_plain_name(name) and name.endswith(suffix),
        f"file is {name[:120]!r}; expected a plain name in the bundle's folder, ending {suffix!r}",
    )
    require(is_sha256(sha256), f"sha256 is {sha256[:80]!r}; expected 64 hex digits")


def _is_iso_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _may_act(policy: GuardPolicy, largest: float) -> bool:
    """Whether a policy may act on answers with no token's score above this one."""
    if policy.can_steer and largest > policy.threshold:
        return True
    # A prompt's score, which a replay does not keep, may be higher than any token's.
    reached = largest if policy.prompt_weight == 0 else 1.0
    by_run = largest > policy.hard_threshold
    by_risk = reached > policy.risk_limit or policy.prompt_limit < 1
    return policy.can_refuse and (by_run or by_risk)


def _largest_replayed_score(figures: Mapping[str, object]) -> float | None:
    """Of the complying answers to harmful requests; None: there are none, or not whole."""
    complies, scores = (_at(figures, "replay", key) for key in ("complies", "max_score"))
    if not isinstance(complies, list) or not isinstance(scores, list):
        return None
    flags, values = cast("list[object]", complies), cast("list[object]", scores)
    if len(flags) != len(values):
        return None
    shares = [_share(value) for flag, value in zip(flags, values, strict=True) if flag is True]
    known = [share for share in shares if share is not None]
    return max(known) + _ROUNDING if known and len(known) == len(shares) else None


def _is_of(choice: object, policy: GuardPolicy) -> bool:
    try:
        return from_json(GuardPolicy, _at(choice, "policy")) == policy
    except BadValueError:
        return False


def _at(value: object, *keys: str) -> object:
    """What free JSON holds at the end of these keys; None: nothing."""
    for key in keys:
        value = cast("Mapping[str, object]", value).get(key) if isinstance(value, Mapping) else None
    return value


def _share(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(cast(float, value)) if is_number and 0 <= cast(float, value) <= 1 else None
