"""One model in several quantizations, and a probe's scores of its answers in each, kept on disk.

A run that was stopped, or killed, goes on with the next answer: what is there is not made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from safesteer_edge.bundle.bundle import GuardBundle, load_bundle
from safesteer_edge.calibration.fixed_requests import requests_sha256
from safesteer_edge.calibration.harvest_run import Progress
from safesteer_edge.calibration.requests_data import Request
from safesteer_edge.calibration.scored_answers import N_TOKENS, ScoredAnswer, score_own_answers
from safesteer_edge.engine.requantize import TargetType, requantize
from safesteer_edge.formats.finite_json import load_finite
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.guard.risk import is_score
from safesteer_edge.runtime import open_runtime
from safesteer_edge.settings import SessionSettings
from safesteer_edge.usable_cores import n_usable_cores


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """session: of the source model; its own quantization is measured too. folder: what is kept."""

    session: SessionSettings
    source: Path
    bundle: Path
    folder: Path
    n_tokens: int = N_TOKENS


def requantized_model(settings: ScoringSettings, target_type: TargetType) -> Path:
    """The source in this quantization, made unless it is there."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    path = settings.folder / f"{settings.source.stem}-to-{target_type}.gguf"
    if not path.exists():
        n_threads = settings.session.n_threads or n_usable_cores()
        requantize(settings.source, path, target_type, n_threads=n_threads)
    return path


def scored_sets(
    settings: ScoringSettings,
    model: Path,
    sets: Sequence[tuple[str, Sequence[Request]]],
    progress: Progress,
) -> dict[str, list[ScoredAnswer]]:
    """Scored answers of this model file to each named set of requests."""
    info = check_language_model(model)
    with load_bundle(settings.bundle, info, device="cpu") as bundle:
        return {
            name: _scored_set(settings, bundle, info, name, requests, progress)
            for name, requests in sets
        }


def _scored_set(
    settings: ScoringSettings,
    bundle: GuardBundle,
    info: ModelInfo,
    name: str,
    requests: Sequence[Request],
    progress: Progress,
) -> list[ScoredAnswer]:
    path = _place(settings, bundle, info, name, requests)
    found = {answer.request_id: answer for answer in _kept(path, requests)}
    missing = [request for request in requests if request.id not in found]
    if missing:
        for answer in _made(settings, bundle, info, missing):
            _keep(path, answer)
            found[answer.request_id] = answer
            progress(f"{info.quantization} {name}", len(found), len(requests))
    return [found[request.id] for request in requests]


def _made(
    settings: ScoringSettings, bundle: GuardBundle, info: ModelInfo, requests: Sequence[Request]
) -> Iterator[ScoredAnswer]:
    session = replace(settings.session, model=str(info.path), guard="off", bundle=None)
    runtime = open_runtime(session, layers=bundle.config.probe.layers)
    try:
        for request in requests:
            yield from score_own_answers(
                runtime, bundle.probe, [request], lambda *_: None, n_tokens=settings.n_tokens
            )
    finally:
        runtime.close()


def _place(
    settings: ScoringSettings,
    bundle: GuardBundle,
    info: ModelInfo,
    name: str,
    requests: Sequence[Request],
) -> Path:
    """A file named for all that its scores depend on."""
    parts = (
        bundle.config.probe.sha256,
        info.tensor_table_sha256,
        requests_sha256(requests),
        str(settings.n_tokens),
    )
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return settings.folder / f"scores-{info.quantization}-{name}-{key}.jsonl"


def _kept(path: Path, requests: Sequence[Request]) -> Iterator[ScoredAnswer]:
    """The answers of whole lines; what is half written, or no score, is asked again."""
    if not path.exists():
        return
    request_of_id = {request.id: request for request in requests}
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = cast("dict[str, Any]", load_finite(line))
            request = request_of_id[row["id"]]
            scores = np.array(row["scores"], dtype=np.float64)
            answer = ScoredAnswer(
                request.id, request.label, bool(row["complies"]), scores, float(row["prompt_score"])
            )
            if all(map(is_score, answer.trajectory.tolist())):
                yield answer


def _keep(path: Path, answer: ScoredAnswer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {
        "id": answer.request_id,
        "complies": answer.complies,
        "prompt_score": answer.prompt_score,
        "scores": answer.scores.tolist(),  # whole: rounding moves a figure now and then
    }
    with path.open("a", encoding="utf-8") as file:
        # The line end comes first: a half line before it stays alone.
        file.write("\n" + json.dumps(row))
