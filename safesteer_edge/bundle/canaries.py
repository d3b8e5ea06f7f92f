"""Self-tests that travel in a guard bundle.

A probe whose sign was flipped, a state read from the wrong layer, a broken provider: none of
them raises an error, each makes the guard judge wrongly. Known states with known scores find
them before the first answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.fingerprint import Match, require, require_range
from safesteer_edge.errors import BundleError, GuardError
from safesteer_edge.guard.protocols import Probe

MAX_PROBE_TOLERANCE = 0.02
MIN_CANARY_SPREAD = 0.1

_MAX_CANARIES = 256
_MAX_CANARY_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class ProbeCanary:
    """A state and the score that the probe gave it when the bundle was made.

    hidden_state: n_features float32, little endian.
    """

    hidden_state: bytes
    harmful_score: float

    def __post_init__(self) -> None:
        _check_canary(self.hidden_state, self.harmful_score)

    def state(self) -> NDArray[np.float32]:
        """Return the state, float32 (n_features,), read-only."""
        return np.frombuffer(self.hidden_state, dtype="<f4").astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class EngineCanary(ProbeCanary):
    """Token ids, and the state and score of their last position on the decode path."""

    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_canary(self.hidden_state, self.harmful_score)
        require(
            1 <= len(self.token_ids) <= _MAX_CANARY_TOKENS,
            f"a canary has {len(self.token_ids)} tokens; expected 1 to {_MAX_CANARY_TOKENS}",
        )


@dataclass(frozen=True, slots=True)
class CanaryTolerances:
    """How far a canary may be off; bounded, so that a bundle cannot switch its tests off.

    probe_score: absolute. engine_cosine: the least cosine. engine_norm: relative difference of
    norms. engine_score: absolute. Measured on SmolLM2-135M Q4_1: the states of neighbouring blocks
    have cosines of 0.71 to 0.989 and norms up to 1.6 apart; a KV cache in Q8_0 in place of F16
    leaves 0.9995.
    """

    probe_score: float = 0.001
    engine_cosine: float = 0.995
    engine_norm: float = 0.03
    engine_score: float = 0.1

    def __post_init__(self) -> None:
        require_range("probe_score", self.probe_score, 1e-6, MAX_PROBE_TOLERANCE)
        require_range("engine_cosine", self.engine_cosine, 0.8, 1.0)
        require_range("engine_norm", self.engine_norm, 1e-6, 0.5)
        require_range("engine_score", self.engine_score, 1e-6, 0.5)


# Requantizing moves states and scores by right; what goes beyond this is another cause.
OTHER_QUANTIZATION_TOLERANCES = CanaryTolerances(
    probe_score=MAX_PROBE_TOLERANCE, engine_cosine=0.8, engine_norm=0.5, engine_score=0.5
)


@dataclass(frozen=True, slots=True)
class Canaries:
    """The bundle's self-tests: of the probe alone, and of engine and probe together."""

    probe: tuple[ProbeCanary, ...]
    engine: tuple[EngineCanary, ...] = ()
    tolerances: CanaryTolerances = CanaryTolerances()

    def __post_init__(self) -> None:
        require(len(self.probe) + len(self.engine) <= _MAX_CANARIES, "there are too many canaries")
        scores = [canary.harmful_score for canary in self.probe]
        # Without a spread, a probe whose sign was flipped could give the same scores.
        require(
            bool(scores) and max(scores) - min(scores) >= MIN_CANARY_SPREAD,
            f"the probe canaries' scores are {scores[:8]}; expected a high and a low one, "
            f"at least {MIN_CANARY_SPREAD} apart",
        )


def check_probe_canaries(probe: Probe, canaries: Canaries) -> None:
    """Check that the probe still gives the stored states their stored scores.

    Raises BundleError for the first that is off by more than the tolerance.
    """
    stored = (*canaries.probe, *canaries.engine)
    expected = np.array([canary.harmful_score for canary in stored], dtype=np.float32)
    try:
        scores = probe.score(np.stack([canary.state() for canary in stored]))
    except GuardError as error:
        raise BundleError(f"the probe's self-test failed: {error}") from error
    errors = np.abs(scores - expected)
    worst = int(errors.argmax())
    require(
        bool(errors[worst] <= canaries.tolerances.probe_score),
        f"the probe's self-test failed: it scores a stored state {scores[worst]:.4f}; expected "
        f"{expected[worst]:.4f} ± {canaries.tolerances.probe_score:g}: is its sign flipped, or "
        "its provider broken? get the bundle again, or run 'safesteer-edge calibrate'",
    )


def check_canaries_on_engine(
    probe: Probe,
    canaries: Canaries,
    states_of: Callable[[Sequence[int]], NDArray[np.float32]],
    *,
    n_embd: int,
    match: Match,
) -> None:
    """Check that the engine gives the stored token ids the stored states and scores.

    states_of: returns the joined states, float32 (n_features,), of the last of these tokens.
    n_embd: the width of one layer's state; joined layers are compared one by one, since a late
    layer's larger norm would hide an early one that is wrong.
    match: with another quantization only what no quantization explains is refused.
    Raises BundleError for the first that is off.
    """
    tolerances = canaries.tolerances if match == "exact" else OTHER_QUANTIZATION_TOLERANCES
    for index, canary in enumerate(canaries.engine):
        state = states_of(canary.token_ids)
        problem = _state_problem(canary, state, n_embd, tolerances)
        problem = problem or _score_problem(probe, canary, state, tolerances)
        require(
            not problem,
            f"the guard's self-test {index + 1} of {len(canaries.engine)} failed: {problem}; the "
            "hidden states are not those that the probe was made for (another layer, or another "
            "way of running the model): run 'safesteer-edge calibrate'",
        )


def _state_problem(
    canary: EngineCanary, state: NDArray[np.float32], n_embd: int, tolerances: CanaryTolerances
) -> str:
    """Say how a joined state differs from the stored one; '' if it does not."""
    expected = canary.state()
    if state.shape != expected.shape:
        return f"the state has shape {state.shape}; expected {expected.shape}"
    for part, start in enumerate(range(0, len(expected), n_embd)):
        # float64: the square of a residual stream's outliers can leave float32's precision.
        found = state[start : start + n_embd].astype(np.float64)
        wanted = expected[start : start + n_embd].astype(np.float64)
        norm, wanted_norm = float(np.linalg.norm(found)), float(np.linalg.norm(wanted))
        # Written so that a NaN fails.
        if not abs(norm - wanted_norm) <= tolerances.engine_norm * wanted_norm:
            return f"the norm of layer {part} of the probe's is {norm:.4g}, not {wanted_norm:.4g}"
        cosine = float(found @ wanted) / max(norm * wanted_norm, 1e-30)
        if not cosine >= tolerances.engine_cosine:
            return f"layer {part} of the probe's has a cosine of {cosine:.4f} with the stored state"
    return ""


def _score_problem(
    probe: Probe, canary: EngineCanary, state: NDArray[np.float32], tolerances: CanaryTolerances
) -> str:
    """Say how the score of a state differs from the stored one; '' if it does not."""
    try:
        harmful_score = float(probe.score(state[np.newaxis])[0])
    except GuardError as error:
        return str(error)
    if abs(harmful_score - canary.harmful_score) > tolerances.engine_score:
        return f"its score is {harmful_score:.4f}, not {canary.harmful_score:.4f}"
    return ""


def _check_canary(hidden_state: bytes, harmful_score: float) -> None:
    require(0.0 <= harmful_score <= 1.0, f"harmful_score is {harmful_score}; expected 0 to 1")
    whole = bool(hidden_state) and len(hidden_state) % 4 == 0
    require(whole, "hidden_state is not a row of float32")
    finite = bool(np.isfinite(np.frombuffer(hidden_state, dtype="<f4")).all())
    require(finite, "hidden_state has values that are not finite")
