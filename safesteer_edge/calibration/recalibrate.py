"""A bundle for another quantization of its model, or for a probe made elsewhere: a policy anew.

The probe is not refitted. What is decided anew: the line that turns its logits into chances, τ, λ,
and the refusal rule, from the model's own answers to requests of the train and calibration splits.
The result is measured on requests of the test split, which decide nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from safesteer_edge.bundle.bundle import GuardBundle, check_engine_canaries, load_bundle
from safesteer_edge.bundle.canaries import Canaries, EngineCanary, ProbeCanary
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.writer import BundleParts, VectorParts, check_replaceable, write_bundle
from safesteer_edge.calibration.assemble_bundle import measure_prompt_states
from safesteer_edge.calibration.policy_fit import AnswerScores, PolicyChoice, choose_policy
from safesteer_edge.calibration.probe_calibration import (
    Rescale,
    fit_rescale,
    rescale_probe,
)
from safesteer_edge.calibration.report import bundle_report
from safesteer_edge.calibration.settings import n_needed, smallest_ordinary
from safesteer_edge.calibration.steering_fit import (
    choose_openings,
    fit_look_ahead,
    with_steering,
)
from safesteer_edge.errors import BundleError, RequestDataError
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.formats.version import VERSION
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.harvest.replay import (
    FIGURES_KEY,
    N_TOKENS,
    FalseAlarmTargets,
    Replay,
    ScoredAnswer,
    replay_of,
    replay_to_json,
    score_own_answers,
    targets_of,
)
from safesteer_edge.harvest.run import Progress
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.requests.requests import LABELS, Request
from safesteer_edge.session.runtime import Runtime, last_state_of, open_runtime
from safesteer_edge.session.settings import SessionSettings

_ORIGINAL_KEY: Final = "original"
_MAX_KEPT_CHARACTERS: Final = 4000  # guard.json has room for one set of curves


@dataclass(frozen=True, slots=True)
class Recalibration:
    """What was decided from the answers. targets: the false alarms that were allowed."""

    rescale: Rescale
    choice: PolicyChoice
    targets: FalseAlarmTargets

    @property
    def policy(self) -> GuardPolicy:
        """Of rescaled scores."""
        return self.choice.policy


@dataclass(frozen=True, slots=True)
class RecalibrationSettings:
    """session: the model, in the quantization that will run. requests: what decides.

    replayed: what the result is measured on; no request is in both. name: of the new bundle.
    keeps_scores: the probe's file stays as it is, instead of being set right by a line.
    keeps_limits: so do the bundle's limits; only how answers are steered is decided.
    """

    bundle: Path
    session: SessionSettings
    info: ModelInfo
    requests: tuple[Request, ...]
    replayed: tuple[Request, ...]
    name: str
    n_tokens: int = N_TOKENS
    keeps_scores: bool = False
    keeps_limits: bool = False


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """A written bundle. before, after: of the same answers, under the old bundle and this one."""

    folder: Path
    recalibration: Recalibration
    before: Replay
    after: Replay
    old_threshold: float


def recalibrate(folder: Path, settings: RecalibrationSettings, progress: Progress) -> Recalibrated:
    """Make a bundle for this quantization from another one's; it is written whole or not at all.

    Cost: a decoding step for each token of some 500 answers, 5 minutes for the embedded default.
    Raises BundleError for a bundle of another model, ProbeFileError where the probe is of no use
    on this quantization, RequestDataError for requests that cannot decide.
    """
    check_replaceable(folder)
    if folder.exists() and folder.resolve() == settings.bundle.resolve():
        raise BundleError(
            f"the new bundle would replace {str(folder)!r}, which it is made from; name another "
            "folder with -o"
        )
    session, n_tokens = replace(settings.session, guard="off"), settings.n_tokens
    with load_bundle(settings.bundle, settings.info, device="cpu") as bundle:
        targets = targets_of(bundle.config.figures)
        check_requests(settings.requests, targets)
        layers = bundle.config.probe.layers
        with closing(open_runtime(session, layers=layers)) as runtime:
            check_engine_canaries(bundle, partial(last_state_of, runtime.engine, runtime.model))
            scored = partial(
                score_own_answers,
                runtime,
                bundle.probe,
                n_tokens=n_tokens,
                prompt_probe=bundle.prompt_probe,
            )
            answers = scored(settings.requests, progress)
            found = decide(
                answers,
                targets,
                keeps_scores=settings.keeps_scores or settings.keeps_limits,
                keeps_prompts=bundle.prompt_probe is not None,
                limits=bundle.policy if settings.keeps_limits else None,
                prompt_limit=bundle.policy.prompt_limit,
            )
            replayed = scored(settings.replayed, progress, what="test answers")
            before, after = (
                replay_of(
                    rows, settings.replayed, policy, settings.info.quantization, n_tokens=n_tokens
                )
                for rows, policy in (
                    (replayed, bundle.policy),
                    (found.rescale.answers(replayed), found.policy),
                )
            )
            data = _rescaled_probe(bundle, found.rescale)
            with OnnxProbe.from_bytes(data, name=settings.name, device="cpu") as probe:
                ahead = fit_look_ahead(runtime, probe, settings.requests, progress)
            policy = ahead.applied_to(found.policy)
            found = replace(found, choice=replace(found.choice, policy=policy))
            parts = _parts(bundle, settings, found, answers, after, runtime)
            parts = replace(parts, figures={**parts.figures, "look_ahead": ahead.to_json()})
        if not parts.openings:
            opened = choose_openings(session, settings.requests, progress)
            parts = replace(
                parts,
                openings=opened.openings,
                opening_tokens=opened.opening_tokens,
                figures={**parts.figures, "openings": opened.trial},
            )
        norms = measure_prompt_states(session, layers).residual_norms
        write_bundle(folder, replace(parts, residual_norms=norms, reports=bundle_report(parts)))
        return Recalibrated(folder, found, before, after, bundle.policy.alert_threshold)


def check_requests(requests: Sequence[Request], targets: FalseAlarmTargets) -> None:
    """Refuse requests that a guard cannot be set by, before minutes of work."""
    if any(request.split == "test" for request in requests):
        raise ValueError("test requests must not be calibrated on")
    n_ordinary = sum(request.label == "ordinary" for request in requests)
    _check_enough(n_ordinary, targets)
    if not any(request.label == "harmful" for request in requests):
        raise RequestDataError("there are no harmful requests; a guard cannot be set without them")


def decide(
    answers: Sequence[ScoredAnswer],
    targets: FalseAlarmTargets,
    *,
    keeps_scores: bool = False,
    keeps_prompts: bool = False,
    limits: GuardPolicy | None = None,
    prompt_limit: float = 1.0,
) -> Recalibration:
    """The line, and the policy of the scores that it gives.

    keeps_scores: the line changes none. keeps_prompts: it changes none of prompts.
    limits: those of this policy stay; None: they are chosen, but for prompt_limit, as prompts'
    scores stay.
    Raises RequestDataError or ProbeFileError where the answers decide nothing.
    """
    _check_enough(sum(answer.label == "ordinary" for answer in answers), targets)
    if not any(answer.complies for answer in answers):
        raise RequestDataError(
            "the model refuses every harmful request, so there is nothing to set a guard by; give "
            "others with --data"
        )
    rescale = Rescale(1.0, 0.0) if keeps_scores else fit_rescale(answers)
    rescale = replace(rescale, keeps_prompts=keeps_prompts)
    scores = AnswerScores.of(
        (answer.label, answer.complies, answer.trajectory) for answer in rescale.answers(answers)
    )
    choice = choose_policy(scores, targets, keeps=limits, prompt_limit=prompt_limit)
    choice = with_steering(choice, scores, targets)
    return Recalibration(rescale, choice, targets)


def _check_enough(n_ordinary: int, targets: FalseAlarmTargets) -> None:
    """Fewer leave no limit that so few answers exceed, and the guard would never act."""
    share = smallest_ordinary(targets)
    if n_ordinary < n_needed(share):
        raise RequestDataError(
            f"there are {n_ordinary} ordinary requests; false alarms in {100 * share:g} % of "
            f"answers can be told from {n_needed(share)} on: give more, or leave out --data"
        )


def _parts(
    bundle: GuardBundle,
    settings: RecalibrationSettings,
    found: Recalibration,
    answers: Sequence[ScoredAnswer],
    after: Replay,
    runtime: Runtime,
) -> BundleParts:
    config, line = bundle.config, found.rescale
    data = _rescaled_probe(bundle, line)
    return BundleParts(
        name=settings.name,
        created_by=f"safesteer-edge {VERSION}",
        model=fingerprint_model(settings.info),
        probe_onnx=data,
        probe_layers=config.probe.layers,
        policy=found.policy,
        residual_norms=config.residual_norms,
        canaries=_canaries(data, config.canaries, runtime),
        refusal_text=config.refusal_text,
        vector=_vector(bundle, line),
        openings=config.openings,
        opening_tokens=config.opening_tokens,
        prompt_probe_onnx=_prompt_probe(bundle),
        prompt_reads_message=config.prompt_reads_message,
        readings=config.readings,
        route_hint=runtime.route.name if runtime.route else None,
        figures=_figures(bundle, found, answers, after),
    )


def _rescaled_probe(bundle: GuardBundle, line: Rescale) -> bytes:
    path = bundle.folder / bundle.config.probe.file
    if (line.slope, line.intercept) == (1.0, 0.0):
        return path.read_bytes()
    return rescale_probe(path.read_bytes(), line.slope, line.intercept, name=str(path))


def _figures(
    bundle: GuardBundle, found: Recalibration, answers: Sequence[ScoredAnswer], after: Replay
) -> dict[str, object]:
    """Free JSON. What the first calibration said comes along under `original`, its tables aside."""
    old, line = bundle.config.figures, found.rescale
    small = {
        key: value
        for key, value in old.items()
        if key != FIGURES_KEY and len(json.dumps(value)) <= _MAX_KEPT_CHARACTERS
    }
    return {
        "recalibrated_from": {
            "bundle": bundle.config.name,
            "quantization": bundle.config.model.quantization,
            "probe_sha256": bundle.config.probe.sha256,
            "threshold": round(bundle.policy.alert_threshold, 6),
        },
        "splits": ["train", "calibration"],
        "n_answers": {label: sum(a.label == label for a in answers) for label in LABELS},
        "targets": asdict(found.targets),
        "rescale": {"slope": round(line.slope, 6), "intercept": round(line.intercept, 6)},
        "policy_choice": found.choice.to_json(),
        FIGURES_KEY: replay_to_json(after),
        _ORIGINAL_KEY: old.get(_ORIGINAL_KEY) or small,
    }


def _canaries(data: bytes, old: Canaries, runtime: Runtime) -> Canaries:
    """The old states and prompts; their scores, and what the prompts give, measured anew."""
    stored = np.stack([canary.state() for canary in old.probe])
    token_ids = [canary.token_ids for canary in old.engine]
    read = [last_state_of(runtime.engine, runtime.model, ids) for ids in token_ids]
    with OnnxProbe.from_bytes(data, name="the rescaled probe", device="cpu") as probe:
        probe_canaries = tuple(
            ProbeCanary(canary.hidden_state, float(score))
            for canary, score in zip(old.probe, probe.score(stored), strict=True)
        )
        engine_canaries = tuple(
            EngineCanary(
                state.astype("<f4").tobytes(), float(probe.score(state[np.newaxis])[0]), ids
            )
            for ids, state in zip(token_ids, read, strict=True)
        )
    return Canaries(probe_canaries, engine_canaries)


def _prompt_probe(bundle: GuardBundle) -> bytes | None:
    entry = bundle.config.prompt_probe
    return None if entry is None else (bundle.folder / entry.file).read_bytes()


def _vector(bundle: GuardBundle, line: Rescale) -> VectorParts | None:
    """The alignment vector as it was: its scale is checked against this quantization's norms.

    Its gate is a score of a prompt, and moves with them.
    """
    entry, vector = bundle.config.vector, bundle.unscaled_vector
    if entry is None or vector is None:
        return None
    gate = entry.gate
    if gate is not None and not line.keeps_prompts:
        gate = float(line.scores(np.array([gate]))[0])
    return VectorParts(
        vector, entry.scale, entry.max_scale, entry.layers, entry.modalities, entry.sign, gate
    )
