"""A bundle's guard replayed on a model file, against what it did in its own quantization."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safesteer_edge.bundle.bundle import CONFIG_NAME, GuardBundle, load_bundle, read_config
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.schema import format_guard_json
from safesteer_edge.errors import BundleError, SafeSteerError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.harvest.drift import Drift, measure_drift
from safesteer_edge.harvest.replay import (
    FIGURES_KEY,
    N_TOKENS,
    Replay,
    replay_from_json,
    replay_of,
    replay_to_json,
    score_own_answers,
    targets_of,
)
from safesteer_edge.harvest.run import Progress
from safesteer_edge.requests.requests import Request, replay_requests, requests_sha256
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.runtime import open_runtime
from safesteer_edge.session.settings import SessionSettings


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """session: of the model to check. limit: requests of each label at most.

    reference: a file of the bundle's own quantization, where the bundle does not say what the guard
    did there. record: let it say so from now on; the model must be of the bundle's quantization.
    """

    session: SessionSettings
    limit: int | None = None
    reference: Path | None = None
    record: bool = False
    n_tokens: int = N_TOKENS

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"--limit is {self.limit}; expected at least 1")
        if self.record and self.limit is not None:
            raise SettingsError("--record keeps the whole replay; leave out --limit")


def verify_drift(
    folder: Path, info: ModelInfo, settings: DriftSettings, progress: Progress
) -> Drift:
    """Replay the fixed requests, twice where the reference has to be measured too.

    Cost: a decoding step for each token of 160 answers, some 2 minutes for the embedded default.
    Raises BundleError for another model, and to record what is not the bundle's own quantization.
    """
    requests = replay_requests(settings.limit)
    reference = _reference_file(folder, settings)
    with load_bundle(folder, info, device="cpu") as bundle:
        if settings.record and bundle.match != "exact":
            raise BundleError(
                f"cannot record what {info.path.name!r} ({info.quantization}) does: the bundle is "
                f"for {bundle.config.model.quantization}; name that file with --model"
            )
        here = _replay(bundle, info, requests, settings, progress, "answers")
        known = here if settings.record else _recorded(bundle)
        if known is None and bundle.match == "exact":
            known = here
    if known is None and reference is not None:
        with load_bundle(folder, reference, device="cpu") as own:
            known = _replay(own, reference, requests, settings, progress, "reference answers")
    if settings.record:
        record_replay(folder, here)
    return measure_drift(
        here,
        known,
        threshold=bundle.policy.threshold,
        touched_target=targets_of(bundle.config.figures).touched,
    )


def record_replay(folder: Path, replay: Replay) -> None:
    """Keep a replay in the bundle's figures; guard.json is replaced whole."""
    config = read_config(folder)
    figures = {**config.figures, FIGURES_KEY: replay_to_json(replay)}
    text = format_guard_json(replace(config, figures=figures))
    with atomic_write(folder / CONFIG_NAME, "w") as file:
        file.write(text)


def _recorded(bundle: GuardBundle) -> Replay | None:
    """What the bundle says that it did, if that was on the requests of this program's version."""
    replay = replay_from_json(bundle.config.figures.get(FIGURES_KEY))
    if replay is None or replay.requests_sha256 != requests_sha256(replay_requests()):
        return None
    return replay if replay.n_tokens == N_TOKENS else None


def _reference_file(folder: Path, settings: DriftSettings) -> ModelInfo | None:
    """The file that was named; else the embedded default's, if the bundle is made for it."""
    made_for = read_config(folder).model
    if settings.reference is not None:
        info = check_language_model(settings.reference)
        if fingerprint_model(info) != made_for:
            raise BundleError(
                f"the reference {info.path.name!r} ({info.quantization}) is not the file that the "
                f"bundle was calibrated on ({made_for.quantization}); name that one"
            )
        return info
    with contextlib.suppress(SafeSteerError):  # it need not be installed
        info = check_language_model(choose_model(None).path)
        if fingerprint_model(info) == made_for:
            return info
    return None


def _replay(
    bundle: GuardBundle,
    info: ModelInfo,
    requests: Sequence[Request],
    settings: DriftSettings,
    progress: Progress,
    what: str,
) -> Replay:
    session = replace(settings.session, model=str(info.path), guard="off", bundle=None)
    runtime = open_runtime(session, layers=bundle.config.probe.layers)
    try:
        answers = score_own_answers(
            runtime, bundle.probe, requests, progress, what=what, n_tokens=settings.n_tokens
        )
    finally:
        runtime.close()
    return replay_of(
        answers, requests, bundle.policy, info.quantization, n_tokens=settings.n_tokens
    )
