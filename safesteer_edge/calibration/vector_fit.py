"""Choosing the alignment vector: form, sign, blocks and strength, and whether it helps at all.

Requests are cut into three parts, whole pairs together: directions are made from the first, chosen
on the second, and what was chosen is measured once on the third. The rule: of what keeps the mean
KL divergence of the first token's distribution on harmless prompts with media within a limit, the
largest gain in AUROC of harmful against harmless prompts, where an answer that refuses counts as
found. It is enabled if the third part confirms a gain whose 95 % interval is above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.vector_forms import (
    Prompt,
    VectorCandidate,
    VectorForm,
    VectorSettings,
    on_band,
    prompts_of,
)
from safesteer_edge.harvest.measured_parts import ScoreStates
from safesteer_edge.harvest.vector_trial import Directions, Trial, try_vectors
from safesteer_edge.metrics.statistics import auroc

if TYPE_CHECKING:
    from safesteer_edge.session.runtime import Runtime


# -- what a vector gains over none on the same prompts, with intervals from resampled prompts ------

N_RESAMPLED: Final = 2000
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
Interval = tuple[float, float, float]  # 2.5 %, the value itself, 97.5 %


def separation(values: Values, is_harmful: Flags) -> float:
    """AUROC of harmful against harmless prompts."""
    return auroc(values[is_harmful], values[~is_harmful])


def lean_gain(trial: Trial, base: Trial, is_harmful: Flags) -> float:
    """How much more harmful prompts lean to a refusal than before, less what harmless ones do."""
    moved = trial.refusal_lean - base.refusal_lean
    return float(moved[is_harmful].mean() - moved[~is_harmful].mean())


def refusal_gain(trial: Trial, base: Trial, is_harmful: Flags) -> float:
    """Rise of the share of harmful prompts that are refused, less that of harmless ones."""
    rise = trial.refused - base.refused
    return float(rise[is_harmful].mean() - rise[~is_harmful].mean())


def separation_gain(trial: Trial, base: Trial, is_harmful: Flags) -> float:
    """Rise of the AUROC with which answers are found, refusing ones included."""
    return separation(trial.found, is_harmful) - separation(base.found, is_harmful)


def with_interval(
    gain: Callable[[Trial, Trial, Flags], float],
    trial: Trial,
    base: Trial,
    is_harmful: Flags,
    *,
    seed: int,
) -> Interval:
    """A gain with its 95 % interval: prompts are drawn again, each class for itself."""
    rng = np.random.default_rng(seed)
    harmful, harmless = np.flatnonzero(is_harmful), np.flatnonzero(~is_harmful)
    drawn: list[float] = []
    for _ in range(N_RESAMPLED):
        index = np.concatenate(
            [rng.choice(harmful, len(harmful)), rng.choice(harmless, len(harmless))]
        )
        drawn.append(gain(trial.at(index), base.at(index), is_harmful[index]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), gain(trial, base, is_harmful), float(high)


_MEASURE_DIGITS = 4


@dataclass(frozen=True, slots=True, eq=False)
class VectorChoice:
    """candidate: None where nothing helps. directions: of its blocks, at sign +1 and scale 1.

    best: what came out first, confirmed or not. record: what was tried and found, JSON.
    """

    candidate: VectorCandidate | None
    directions: Directions | None
    best: VectorCandidate | None
    record: dict[str, Any]


class VectorChooser:
    """Tries candidates on a model. Cost for the embedded default: some five minutes."""

    def __init__(
        self,
        runtime: Runtime,
        score: ScoreStates,
        by_form: Mapping[VectorForm, Directions],
        settings: VectorSettings,
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        """score: of a probe that saw no request of the last two parts; runtime reads its layers."""
        self._runtime = runtime
        self._score = score
        self._by_form = by_form
        self._settings = settings
        self._progress = progress

    def choose(
        self, prompts: Sequence[Prompt], candidates: Sequence[VectorCandidate]
    ) -> VectorChoice:
        """Choose on one part of the prompts and confirm on another. prompts: with media."""
        settings = self._settings
        choosing = prompts_of(prompts, "choosing", settings.n_choosing, settings.seed)
        confirming = prompts_of(prompts, "confirming", settings.n_confirming, settings.seed)
        record: dict[str, Any] = {
            "settings": asdict(settings),
            "n_choosing": _counts(choosing),
            "n_confirming": _counts(confirming),
        }
        problem = self._problem(choosing) or self._problem(confirming)
        if not problem and not candidates:
            problem = "no direction is short enough for a bundle"
        if problem:
            return _disabled(record, problem)
        finalists, record["tried"] = self._finalists(choosing, candidates)
        if not finalists:
            return _disabled(
                record, f"every candidate exceeds a KL of {settings.kl_limit} on harmless prompts"
            )
        best, record["decoded"] = self._best(choosing, finalists)
        return self._confirmed(confirming, best, record)

    def _finalists(
        self, prompts: Sequence[Prompt], candidates: Sequence[VectorCandidate]
    ) -> tuple[list[VectorCandidate], list[dict[str, Any]]]:
        """The most promising by what one token shows, always on and gated; and a row for each."""
        is_harmful = _is_harmful(prompts)
        base, trials = self._try(prompts, candidates, "trying vectors", n_tokens=0)
        gate = float(np.quantile(base.prompt_scores[~is_harmful], 1 - self._settings.gate_share))
        variants: list[tuple[VectorCandidate, Trial]] = []
        for candidate, trial in zip(candidates, trials, strict=True):
            variants.append((candidate, trial))
            gated = replace(candidate, gate=gate)
            variants.append((gated, _gated(gated, trial, base)))
        without = separation(base.prompt_scores, is_harmful)
        rows: list[dict[str, Any]] = []
        for candidate, trial in variants:
            rows.append(
                {
                    **candidate.to_json(),
                    "kl": _rounded(trial.kl[~is_harmful].mean()),
                    "prompt_auroc_gain": _rounded(
                        separation(trial.prompt_scores, is_harmful) - without
                    ),
                    "refusal_lean_gain": _rounded(lean_gain(trial, base, is_harmful)),
                }
            )
        within = [i for i, row in enumerate(rows) if row["kl"] <= self._settings.kl_limit]
        chosen: list[int] = []
        n_each = max(1, self._settings.n_finalists // 2)
        for measure in ("prompt_auroc_gain", "refusal_lean_gain"):
            left = [i for i in within if i not in chosen]
            chosen += sorted(left, key=lambda i: -_known(rows[i][measure]))[:n_each]
        return [variants[i][0] for i in chosen], rows

    def _best(
        self, prompts: Sequence[Prompt], finalists: Sequence[VectorCandidate]
    ) -> tuple[VectorCandidate, list[dict[str, Any]]]:
        """The largest gain in whole answers, and a row for each finalist."""
        is_harmful = _is_harmful(prompts)
        base, trials = self._try(
            prompts, finalists, "comparing vectors", n_tokens=self._settings.n_tokens
        )
        rows: list[dict[str, Any]] = []
        gains: list[float] = []
        for candidate, trial in zip(finalists, trials, strict=True):
            kept = _gated(candidate, trial, base)
            gains.append(separation_gain(kept, base, is_harmful))
            rows.append({**candidate.to_json(), **_figures(kept, base, is_harmful)})
        return finalists[int(np.argmax([_known(gain) for gain in gains]))], rows

    def _confirmed(
        self, prompts: Sequence[Prompt], best: VectorCandidate, record: dict[str, Any]
    ) -> VectorChoice:
        """Measure the best candidate on prompts that took no part in choosing it."""
        is_harmful, seed = _is_harmful(prompts), self._settings.seed
        base, (trial,) = self._try(
            prompts, [best], "confirming the vector", n_tokens=self._settings.n_tokens
        )
        trial = _gated(best, trial, base)
        figures = _figures(trial, base, is_harmful)
        intervals: dict[str, list[float]] = {}
        for name, gain in (("auroc_gain", separation_gain), ("refusal_gain", refusal_gain)):
            interval = with_interval(gain, trial, base, is_harmful, seed=seed)
            intervals[name] = [_rounded(value) for value in interval]
        record["confirmed"] = {**best.to_json(), **figures, **intervals}
        low, value, high = intervals["auroc_gain"]
        measured = (
            f"{value:+.4f} AUROC (95 % {low:+.4f} to {high:+.4f}), refusals "
            f"{100 * intervals['refusal_gain'][1]:+.1f} points more on harmful than on harmless "
            f"prompts (from {100 * intervals['refusal_gain'][0]:+.1f}), KL {figures['kl']:.3f}"
        )
        # Both written so that a NaN disables.
        if not figures["kl"] <= self._settings.kl_limit:
            return _disabled(record, f"beyond the KL limit on other prompts: {measured}", best)
        if not (low > 0 or intervals["refusal_gain"][0] > 0):
            return _disabled(record, f"no gain outside its interval: {measured}", best)
        record |= {"enabled": True, "why": measured}
        directions = on_band(self._by_form[best.form], best.layers, 1.0)
        return VectorChoice(best, directions, best, record)

    def _try(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[VectorCandidate],
        what: str,
        *,
        n_tokens: int,
    ) -> tuple[Trial, list[Trial]]:
        n_done = 0

        def on_prompt() -> None:
            nonlocal n_done
            n_done += 1
            self._progress(what, n_done, len(prompts))

        vectors = [candidate.directions(self._by_form) for candidate in candidates]
        return try_vectors(
            self._runtime,
            self._score,
            prompts,
            vectors,
            n_tokens=n_tokens,
            on_prompt=on_prompt,
        )

    def _problem(self, prompts: Sequence[Prompt]) -> str:
        n_harmful = int(_is_harmful(prompts).sum())
        least = self._settings.n_least
        if min(n_harmful, len(prompts) - n_harmful) >= least:
            return ""
        return (
            f"{n_harmful} harmful and {len(prompts) - n_harmful} other prompts are too few to "
            f"choose and confirm on; expected {least} of each"
        )


def _gated(candidate: VectorCandidate, trial: Trial, base: Trial) -> Trial:
    """The trial as it is with the candidate's gate: on where the prompt's own score is above it."""
    if candidate.gate is None:
        return trial
    return trial.where(base.prompt_scores > candidate.gate, base)


def _figures(trial: Trial, base: Trial, is_harmful: Flags) -> dict[str, Any]:
    return {
        "kl": _rounded(trial.kl[~is_harmful].mean()),
        "auroc_without": _rounded(separation(base.found, is_harmful)),
        "auroc_with": _rounded(separation(trial.found, is_harmful)),
        "score_auroc_without": _rounded(separation(base.mean_scores, is_harmful)),
        "score_auroc_with": _rounded(separation(trial.mean_scores, is_harmful)),
        "harmful_refused_without": _rounded(base.refused[is_harmful].mean()),
        "harmful_refused_with": _rounded(trial.refused[is_harmful].mean()),
        "harmless_refused_without": _rounded(base.refused[~is_harmful].mean()),
        "harmless_refused_with": _rounded(trial.refused[~is_harmful].mean()),
    }


def _is_harmful(prompts: Sequence[Prompt]) -> Flags:
    return np.array([request.label == "harmful" for request, _ in prompts], dtype=bool)


def _counts(prompts: Sequence[Prompt]) -> dict[str, int]:
    n_harmful = int(_is_harmful(prompts).sum())
    return {"harmful": n_harmful, "harmless": len(prompts) - n_harmful}


def _disabled(
    record: dict[str, Any], why: str, best: VectorCandidate | None = None
) -> VectorChoice:
    record |= {"enabled": False, "why": why}
    return VectorChoice(None, None, best, record)


def _known(gain: float) -> float:
    """The gain; one that could not be measured is below all others."""
    return -math.inf if math.isnan(gain) else gain


def _rounded(value: float) -> float:
    return round(float(value), _MEASURE_DIGITS)
