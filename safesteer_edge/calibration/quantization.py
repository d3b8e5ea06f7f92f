"""What requantizing a model does to its guard, and what a recalibration gives back."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from safesteer_edge.bundle.bundle import GuardBundle, load_bundle
from safesteer_edge.calibration.recalibrate import Recalibration, decide
from safesteer_edge.engine.model import TargetType, requantize
from safesteer_edge.errors import InputError
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.formats.model_file import ModelInfo, check_language_model, read_model
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.risk import is_score
from safesteer_edge.harvest.drift import Drift, measure_drift
from safesteer_edge.harvest.replay import (
    N_TOKENS,
    Replay,
    ReplayFigures,
    ScoredAnswer,
    replay_figures,
    replay_of,
    score_own_answers,
    targets_of,
)
from safesteer_edge.harvest.run import Progress
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.requests.requests import Request, requests_sha256
from safesteer_edge.session.runtime import open_runtime
from safesteer_edge.session.settings import SessionSettings


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """session: of the source model; its own quantization is measured too. folder: what is kept.

    deciding: what a recalibration is set by. held_out: what everything is measured on.
    """

    session: SessionSettings
    source: Path
    bundle: Path
    folder: Path
    deciding: tuple[Request, ...]
    held_out: tuple[Request, ...]
    n_tokens: int = N_TOKENS


@dataclass(frozen=True, slots=True)
class QuantizationRow:
    """One file. bytes_by_type: of its tensors, as llama.cpp really stored them, largest first.

    drift: under the bundle as it is, against the source file. after: under the bundle that a
    recalibration makes, on the same answers; None where the probe is of no use: see `problem`.
    """

    quantization: str
    size_bytes: int
    bytes_by_type: Mapping[str, int]
    drift: Drift
    recalibration: Recalibration | None
    after: ReplayFigures | None
    problem: str = ""


def measure_quantizations(
    settings: QuantizationSettings, target_types: Sequence[TargetType], progress: Progress
) -> list[QuantizationRow]:
    """The source file first, then each quantization of it.

    Cost: for each file, a decoding step for each token of every answer; what `settings.folder`
    already holds costs nothing. Raises SafeSteerError.
    """
    models = [settings.source, *(_requantized(settings, kind) for kind in target_types)]
    rows: list[QuantizationRow] = []
    reference: Replay | None = None
    for model in models:
        row, replay = _measure(settings, model, reference, progress)
        reference = reference or replay
        rows.append(row)
    return rows


def _requantized(settings: QuantizationSettings, target_type: TargetType) -> Path:
    """The source in this quantization, made unless it is there."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    path = settings.folder / f"{settings.source.stem}-to-{target_type}.gguf"
    if not path.exists():
        n_threads = settings.session.n_threads or n_usable_cores()
        requantize(settings.source, path, target_type, n_threads=n_threads)
    return path


def _measure(
    settings: QuantizationSettings, model: Path, reference: Replay | None, progress: Progress
) -> tuple[QuantizationRow, Replay]:
    """One file's row, and what the bundle as it is makes of its held-out answers."""
    info = check_language_model(model)
    with load_bundle(settings.bundle, info, device="cpu") as bundle:
        scored = partial(_scored, settings, bundle, info, progress)
        held_out = scored("held-out", settings.held_out)
        deciding = scored("deciding", settings.deciding)
        policy, targets = bundle.config.policy, targets_of(bundle.config.figures)

    def replayed(answers: Sequence[ScoredAnswer], policy: GuardPolicy) -> Replay:
        asked, n_tokens = settings.held_out, settings.n_tokens
        return replay_of(answers, asked, policy, info.quantization, n_tokens=n_tokens)

    found, after, problem = None, None, ""
    before = replayed(held_out, policy)
    try:
        found = decide(deciding, targets)
        rows = replayed(found.rescale.answers(held_out), found.policy).rows
        after = replay_figures(rows, found.policy.alert_threshold)
    except InputError as error:  # a finding about this file; the others are still to be measured
        problem = str(error)
    row = QuantizationRow(
        quantization=info.quantization,
        size_bytes=info.size_bytes,
        bytes_by_type=_bytes_by_type(model),
        drift=measure_drift(
            before,
            reference or before,
            threshold=policy.alert_threshold,
            touched_target=targets.touched,
        ),
        recalibration=found,
        after=after,
        problem=problem,
    )
    return row, before


def _bytes_by_type(model: Path) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in read_model(model).tensors:
        sizes[tensor.type_name] += tensor.size_bytes
    return dict(sizes.most_common())


# -- a probe's scores of a model's answers, kept on disk -------------------------------------------
# A run that was stopped, or killed, goes on with the next answer: what is there is not made
# again.


def _scored(
    settings: QuantizationSettings,
    bundle: GuardBundle,
    info: ModelInfo,
    progress: Progress,
    name: str,
    requests: Sequence[Request],
) -> list[ScoredAnswer]:
    """Scored answers of this model file to a named set of requests."""
    parts = (  # all that the scores depend on
        *sorted(entry.sha256 for entry in bundle.config.probes),
        info.tensor_table_sha256,
        requests_sha256(requests),
        str(settings.n_tokens),
    )
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = settings.folder / f"scores-{info.quantization}-{name}-{key}.jsonl"
    found = {answer.request_id: answer for answer in _kept(path, requests)}
    missing = [request for request in requests if request.id not in found]
    if missing:
        session = replace(settings.session, model=str(info.path), guard="off", bundle=None)
        with closing(open_runtime(session, layers=bundle.config.probe.layers)) as runtime:
            for request in missing:
                (answer,) = score_own_answers(
                    runtime,
                    bundle.probe,
                    [request],
                    lambda *_: None,
                    n_tokens=settings.n_tokens,
                    prompt_probe=bundle.prompt_probe,
                )
                _keep(path, answer)
                found[answer.request_id] = answer
                progress(f"{info.quantization} {name}", len(found), len(requests))
    return [found[request.id] for request in requests]


def _kept(path: Path, requests: Sequence[Request]) -> Iterator[ScoredAnswer]:
    """The answers of whole lines; what is half written, or no score, is asked again."""
    if not path.exists():
        return
    request_of_id = {request.id: request for request in requests}
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = cast("dict[str, Any]", load_json(line))
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
