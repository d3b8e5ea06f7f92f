"""The alignment vector: its forms, made of pairs of prompt states, and the choice among them.

Each pair is one request, as text and carried in media; its difference h_text − h_media says where
the text-borne prompt lies. All forms have the length of the mean difference, so that a scale of 1
means the whole drift; over several blocks each gets its share, as what one adds reaches the next.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import MAX_VECTOR_RATIO
from safesteer_edge.harvest.carriers import Carrier
from safesteer_edge.harvest.run import Progress
from safesteer_edge.harvest.vector_trial import Directions, ScoreStates, Trial, known, try_vectors
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.requests.requests import Request

if TYPE_CHECKING:
    from safesteer_edge.session.runtime import Runtime


VectorForm = Literal["mean", "drift-removed", "principal"]
VECTOR_FORMS: Final[tuple[VectorForm, ...]] = ("mean", "drift-removed", "principal")
_TINY: Final = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class StatePairs:
    """Last prompt positions: float32 (n_pairs, n_layers, n_embd) each; row for row one request.

    layers: whose block outputs these are. is_harmful: bool (n_pairs,).
    """

    layers: tuple[int, ...]
    text: NDArray[np.float32]
    media: NDArray[np.float32]
    is_harmful: NDArray[np.bool_]

    @property
    def differences(self) -> NDArray[np.float64]:
        """Text less media: float64 (n_pairs, n_layers, n_embd)."""
        return self.text.astype(np.float64) - self.media


def make_directions(pairs: StatePairs, form: VectorForm, n_layer: int) -> NDArray[np.float32]:
    """A direction for each block: float32 (n_layer, n_embd), zero where there is no state.

    mean: the mean difference. drift-removed: that of the harmful pairs less that of the others, so
    that ordinary picture chat is not moved. principal: the first principal direction of the
    differences, turned the mean's way.
    """
    differences = pairs.differences
    mean = differences.mean(axis=0)
    if form == "mean":
        rows = mean
    elif form == "drift-removed":
        harmful = differences[pairs.is_harmful].mean(axis=0)
        rows = _with_length(harmful - differences[~pairs.is_harmful].mean(axis=0), mean)
    else:
        rows = _with_length(_principal(differences, mean), mean)
    directions = np.zeros((n_layer, mean.shape[1]), dtype=np.float32)
    for layer, row in zip(pairs.layers, rows, strict=True):
        if layer > 0:  # llama.cpp cannot steer the first block
            directions[layer] = row
    return directions


def on_band(
    directions: NDArray[np.float32], band: tuple[int, int], scale: float
) -> NDArray[np.float32]:
    """The directions of blocks first … last, each times its share of `scale`; zero elsewhere."""
    first, last = band
    steered = np.zeros_like(directions)
    n_steered = max(1, int(np.count_nonzero(directions[first : last + 1].any(axis=1))))
    steered[first : last + 1] = directions[first : last + 1] * np.float32(scale / n_steered)
    return steered


def bands_for(layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Ranges of blocks to try, both ends included: before the middle, after it, and both."""
    steerable = [layer for layer in layers if layer > 0]
    if not steerable:
        return ()
    top = steerable[-1]

    def block(share: float) -> int:
        return min(top, max(steerable[0], round(share * (top + 1))))

    bands = [(block(a), block(b)) for a, b in ((0.2, 0.45), (0.45, 0.75), (0.2, 0.75))]
    return tuple(dict.fromkeys(bands))


def _with_length(rows: NDArray[np.float64], like: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row, as long as the same row of `like`."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = np.linalg.norm(like, axis=1, keepdims=True)
    return np.where(lengths > _TINY, rows * (wanted / np.maximum(lengths, _TINY)), 0.0)


def _principal(differences: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.empty_like(mean)
    for layer in range(differences.shape[1]):
        # Not centred: what all pairs share is the drift that the vector is to undo.
        _, _, right = np.linalg.svd(differences[:, layer], full_matrices=False)
        rows[layer] = right[0] * (1.0 if right[0] @ mean[layer] >= 0 else -1.0)
    return rows


# -- ways to steer that a calibration tries, and which requests it tries them on -------------------

Part = Literal["making", "choosing", "confirming"]
Prompt = tuple[Request, Carrier]


@dataclass(frozen=True, slots=True)
class VectorSettings:
    """kl_limit: nats, mean over harmless prompts with media. scales: α to try.

    gate_share: where the vector is on for flagged prompts alone, the share of harmless ones that
    may be flagged. n_choosing, n_confirming: prompts of each class at most; n_least: at least, and
    of the requests that directions are made from.
    """

    kl_limit: float = 0.1
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    gate_share: float = 0.1
    n_choosing: int = 36
    n_confirming: int = 60
    n_least: int = 8
    n_tokens: int = 16
    n_finalists: int = 6
    seed: int = 0


@dataclass(frozen=True, slots=True)
class VectorCandidate:
    """One way to steer. gate: the prompt's score above which it is on; None: always."""

    form: VectorForm
    sign: Literal[1, -1]
    layers: tuple[int, int]
    scale: float
    gate: float | None = None

    def directions(self, by_form: Mapping[VectorForm, Directions]) -> Directions:
        """What is added to the blocks' outputs, float32 (n_layer, n_embd)."""
        return on_band(by_form[self.form], self.layers, self.sign * self.scale)

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        gate = None if self.gate is None else round(self.gate, 6)
        return {**asdict(self), "layers": list(self.layers), "gate": gate}


def part_of(request: Request, seed: int = 0) -> Part:
    """Which part a request belongs to; both of a pair to the same: 60, 20 and 20 %."""
    share = _share_of(request, f"vector {seed}")
    return "making" if share < 0.6 else "choosing" if share < 0.8 else "confirming"


def prompts_of(prompts: Sequence[Prompt], part: Part, n: int, seed: int) -> list[Prompt]:
    """At most n harmful and n harmless or ordinary prompts of a part, drawn by their names.

    The n others are harmless twins as far as there are any, and at least a third ordinary ones.
    """
    mixed = sorted(prompts, key=lambda prompt: _share_of(prompt[0], f"order {seed}"))
    own = [prompt for prompt in mixed if part_of(prompt[0], seed) == part]
    harmful = [prompt for prompt in own if prompt[0].label == "harmful"][:n]
    ordinary = [prompt for prompt in own if prompt[0].label == "ordinary"][: max(1, n // 3)]
    twins = [prompt for prompt in own if prompt[0].label == "harmless"][: n - len(ordinary)]
    return [*harmful, *twins, *ordinary]


def vector_candidates(
    by_form: Mapping[VectorForm, Directions],
    layers: tuple[int, ...],
    residual_norms: Sequence[float],
    settings: VectorSettings,
) -> list[VectorCandidate]:
    """Every form, sign, range of blocks and scale that a bundle may hold; without a gate."""
    norms = np.asarray(residual_norms)
    found: list[VectorCandidate] = []
    for form, band, sign, scale in itertools.product(
        by_form, bands_for(layers), (1, -1), settings.scales
    ):
        candidate = VectorCandidate(form, sign, band, scale)
        lengths = np.linalg.norm(candidate.directions(by_form), axis=1)
        if lengths.any() and bool((lengths <= MAX_VECTOR_RATIO * norms).all()):
            found.append(candidate)
    return found


def _share_of(request: Request, purpose: str) -> float:
    name = request.pair_id or request.id
    digest = hashlib.sha256(f"{purpose} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


# -- choosing: form, sign, blocks and strength, and whether it helps at all ------------------------
# Requests are cut into three parts, whole pairs together: directions are made from the first,
# chosen on the second, and what was chosen is measured once on the third. The rule: of what keeps
# the mean KL divergence of the first token's distribution on harmless prompts with media within a
# limit, the largest gain in AUROC of harmful against harmless prompts, where an answer that refuses
# counts as found. It is enabled if the third part confirms a gain whose 95 % interval is above 0.

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


@dataclass(frozen=True, slots=True, eq=False)
class VectorChooser:
    """Tries candidates on a model. Cost for the embedded default: some five minutes.

    score: of a probe that saw no request of the last two parts; runtime reads its layers.
    """

    runtime: Runtime
    score: ScoreStates
    by_form: Mapping[VectorForm, Directions]
    settings: VectorSettings
    progress: Progress = lambda *_: None

    def choose(
        self, prompts: Sequence[Prompt], candidates: Sequence[VectorCandidate]
    ) -> VectorChoice:
        """Choose on one part of the prompts and confirm on another. prompts: with media."""
        settings = self.settings
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
        gate = float(np.quantile(base.prompt_scores[~is_harmful], 1 - self.settings.gate_share))
        variants: list[tuple[VectorCandidate, Trial]] = []
        for candidate, trial in zip(candidates, trials, strict=True):
            gated = replace(candidate, gate=gate)
            variants += [(candidate, trial), (gated, _gated(gated, trial, base))]
        without = separation(base.prompt_scores, is_harmful)
        rows = [
            {
                **candidate.to_json(),
                "kl": _rounded(trial.kl[~is_harmful].mean()),
                "prompt_auroc_gain": _rounded(
                    separation(trial.prompt_scores, is_harmful) - without
                ),
                "refusal_lean_gain": _rounded(lean_gain(trial, base, is_harmful)),
            }
            for candidate, trial in variants
        ]
        within = [i for i, row in enumerate(rows) if row["kl"] <= self.settings.kl_limit]
        chosen: list[int] = []
        n_each = max(1, self.settings.n_finalists // 2)
        for measure in ("prompt_auroc_gain", "refusal_lean_gain"):
            left = [i for i in within if i not in chosen]
            chosen += sorted(left, key=lambda i: -known(rows[i][measure]))[:n_each]
        return [variants[i][0] for i in chosen], rows

    def _best(
        self, prompts: Sequence[Prompt], finalists: Sequence[VectorCandidate]
    ) -> tuple[VectorCandidate, list[dict[str, Any]]]:
        """The largest gain in whole answers, and a row for each finalist."""
        is_harmful = _is_harmful(prompts)
        base, trials = self._try(
            prompts, finalists, "comparing vectors", n_tokens=self.settings.n_tokens
        )
        kept = [_gated(*pair, base) for pair in zip(finalists, trials, strict=True)]
        gains = [known(separation_gain(trial, base, is_harmful)) for trial in kept]
        rows = [
            {**candidate.to_json(), **_figures(trial, base, is_harmful)}
            for candidate, trial in zip(finalists, kept, strict=True)
        ]
        return finalists[int(np.argmax(gains))], rows

    def _confirmed(
        self, prompts: Sequence[Prompt], best: VectorCandidate, record: dict[str, Any]
    ) -> VectorChoice:
        """Measure the best candidate on prompts that took no part in choosing it."""
        is_harmful, seed = _is_harmful(prompts), self.settings.seed
        base, (trial,) = self._try(
            prompts, [best], "confirming the vector", n_tokens=self.settings.n_tokens
        )
        trial = _gated(best, trial, base)
        figures = _figures(trial, base, is_harmful)
        intervals = {
            name: list(map(_rounded, with_interval(gain, trial, base, is_harmful, seed=seed)))
            for name, gain in (("auroc_gain", separation_gain), ("refusal_gain", refusal_gain))
        }
        record["confirmed"] = {**best.to_json(), **figures, **intervals}
        low, value, high = intervals["auroc_gain"]
        measured = (
            f"{value:+.4f} AUROC (95 % {low:+.4f} to {high:+.4f}), refusals "
            f"{100 * intervals['refusal_gain'][1]:+.1f} points more on harmful than on harmless "
            f"prompts (from {100 * intervals['refusal_gain'][0]:+.1f}), KL {figures['kl']:.3f}"
        )
        # Both written so that a NaN disables.
        if not figures["kl"] <= self.settings.kl_limit:
            return _disabled(record, f"beyond the KL limit on other prompts: {measured}", best)
        if not (low > 0 or intervals["refusal_gain"][0] > 0):
            return _disabled(record, f"no gain outside its interval: {measured}", best)
        record |= {"enabled": True, "why": measured}
        directions = on_band(self.by_form[best.form], best.layers, 1.0)
        return VectorChoice(best, directions, best, record)

    def _try(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[VectorCandidate],
        what: str,
        *,
        n_tokens: int,
    ) -> tuple[Trial, list[Trial]]:
        n_done = itertools.count(1)
        return try_vectors(
            self.runtime,
            self.score,
            prompts,
            [candidate.directions(self.by_form) for candidate in candidates],
            n_tokens=n_tokens,
            on_prompt=lambda: self.progress(what, next(n_done), len(prompts)),
        )

    def _problem(self, prompts: Sequence[Prompt]) -> str:
        n_harmful = int(_is_harmful(prompts).sum())
        least = self.settings.n_least
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
    """KL on harmless prompts; and what is found and refused without the vector and with it."""
    figures: dict[str, Any] = {"kl": _rounded(trial.kl[~is_harmful].mean())}
    sides = (("without", base), ("with", trial))
    for name, measure in (
        ("auroc", lambda of: separation(of.found, is_harmful)),
        ("score_auroc", lambda of: separation(of.mean_scores, is_harmful)),
        ("harmful_refused", lambda of: of.refused[is_harmful].mean()),
        ("harmless_refused", lambda of: of.refused[~is_harmful].mean()),
    ):
        figures |= {f"{name}_{side}": _rounded(measure(of)) for side, of in sides}
    return figures


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


def _rounded(value: float) -> float:
    return round(float(value), _MEASURE_DIGITS)
