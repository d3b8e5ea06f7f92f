"""What requantizing a model does to its guard, and what a recalibration gives back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.bundle.bundle import read_config
from safesteer_edge.bundle.schema import GuardConfig
from safesteer_edge.calibration.fixed_requests import held_out_requests, recalibration_requests
from safesteer_edge.calibration.harvest_run import Progress
from safesteer_edge.calibration.recalibrate import decide
from safesteer_edge.calibration.recalibration_figures import Recalibration
from safesteer_edge.calibration.replay import Replay, ReplayFigures, replay_figures, replay_of
from safesteer_edge.calibration.requests_data import Request
from safesteer_edge.calibration.scored_answers import ScoredAnswer
from safesteer_edge.calibration.targets import targets_of
from safesteer_edge.engine.requantize import TargetType
from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.drift import Drift, measure_drift
from safesteer_edge.evaluation.quantization_scores import (
    ScoringSettings,
    requantized_model,
    scored_sets,
)
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.guard.policy import GuardPolicy


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


@dataclass(frozen=True, slots=True)
class RequestSets:
    """deciding: what a recalibration is set by. held_out: what everything is measured on."""

    deciding: tuple[Request, ...]
    held_out: tuple[Request, ...]


def request_sets(limit: int | None) -> RequestSets:
    """The package's own requests. limit: held-out ones of each label at most; None: all."""
    return RequestSets(recalibration_requests(), held_out_requests(limit))


def measure_quantizations(
    settings: ScoringSettings,
    target_types: Sequence[TargetType],
    sets: RequestSets,
    progress: Progress,
) -> list[QuantizationRow]:
    """The source file first, then each quantization of it.

    Cost: for each file, a decoding step for each token of every answer; what `settings.folder`
    already holds costs nothing. Raises SafeSteerError.
    """
    config = read_config(settings.bundle)
    models = [settings.source, *(requantized_model(settings, kind) for kind in target_types)]
    rows: list[QuantizationRow] = []
    reference: Replay | None = None
    for model in models:
        scored = scored_sets(
            settings,
            model,
            [("held-out", sets.held_out), ("deciding", sets.deciding)],
            progress,
        )
        row, replay = _row(settings, config, model, sets, scored, reference)
        reference = reference or replay
        rows.append(row)
    return rows


def _row(
    settings: ScoringSettings,
    config: GuardConfig,
    model: Path,
    sets: RequestSets,
    scored: Mapping[str, Sequence[ScoredAnswer]],
    reference: Replay | None,
) -> tuple[QuantizationRow, Replay]:
    info = check_language_model(model)
    targets = targets_of(config.figures)

    def replayed(answers: Sequence[ScoredAnswer], policy: GuardPolicy) -> Replay:
        n_tokens = settings.n_tokens
        return replay_of(answers, sets.held_out, policy, info.quantization, n_tokens=n_tokens)

    found, after, problem = None, None, ""
    held_out = scored["held-out"]
    before = replayed(held_out, config.policy)
    try:
        found = decide(scored["deciding"], targets)
        rows = replayed(found.rescale.answers(held_out), found.policy).rows
        after = replay_figures(rows, found.policy.threshold)
    except InputError as error:  # a finding about this file; the others are still to be measured
        problem = str(error)
    row = QuantizationRow(
        quantization=info.quantization,
        size_bytes=info.size_bytes,
        bytes_by_type=_bytes_by_type(model),
        drift=measure_drift(
            before,
            reference or before,
            threshold=config.policy.threshold,
            touched_target=targets.touched,
        ),
        recalibration=found,
        after=after,
        problem=problem,
    )
    return row, before


def _bytes_by_type(model: Path) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for tensor in read_gguf(model).tensors:
        sizes[tensor.type_name] += tensor.size_bytes
    return dict(sizes.most_common())
