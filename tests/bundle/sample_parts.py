"""The parts of a good guard bundle for a given model."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.canaries import Canaries, EngineCanary, ProbeCanary
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.schema import ModalityScales
from safesteer_edge.bundle.writer import BundleParts, VectorParts
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.guard.policy import GuardPolicy
from tests.bundle.linear_probe import linear_scores, probe_onnx, weights_for

PROBE_LAYERS = (1, 2)
RESIDUAL_NORM = 10.0
CANARY_TOKENS = (5, 2, 3)  # the probe scores their state 0.51: there it moves most
POLICY = GuardPolicy(
    strength=8.0,
    threshold=0.4,
    hard_threshold=0.9,
    hard_patience=4,
    risk_limit=0.8,
    risk_decay=0.9,
    risk_min_steps=8,
    risk_gain=2.0,
    conversation_carry=0.5,
)


def sample_parts(model: ModelInfo) -> BundleParts:
    """Return the parts of a bundle with a probe on blocks 1 and 2 and a vector on 1 to 3."""
    weights = weights_for(model.n_embd * len(PROBE_LAYERS))
    return BundleParts(
        name="tiny",
        created_by="tests",
        created="2026-11-22",
        model=fingerprint_model(model),
        probe_onnx=probe_onnx(weights),
        probe_layers=PROBE_LAYERS,
        policy=POLICY,
        residual_norms=(RESIDUAL_NORM,) * model.n_layer,
        canaries=sample_canaries(weights),
        refusal_text="I can't help with that.",
        vector=VectorParts(
            vector=sample_vector(model, norm=2.0),
            scale=1.0,
            max_scale=4.0,
            layers=(1, 3),
            modalities=ModalityScales(image=1.5, audio=None),
        ),
        route_hint="eval_callback",
        figures={
            "auroc": {"candidate": 0.95},
            "notes": ["measured on τ", 3],
            **figures_of(POLICY),
        },
    )


def figures_of(policy: GuardPolicy, *, acts_on: float = 0.7) -> dict[str, object]:
    """Return what a calibration records of a policy that refuses this share of harmful answers."""
    shares = {"ordinary": 0.0, "borderline": 0.01, "harmless_twins": 0.1, "harmful": acts_on}
    return {
        "policy_choice": {"policy": asdict(policy), "refused": shares, "touched": {"harmful": 0.0}}
    }


def sample_canaries(weights: NDArray[np.float32]) -> Canaries:
    """Return canaries on both sides of the probe's boundary, with the oracle's scores."""
    along = weights / np.linalg.norm(weights)
    states = np.stack([along * size for size in (-2.0, 0.5, 2.0)]).astype(np.float32)
    scores = linear_scores(states, weights)
    probe = tuple(
        ProbeCanary(state.astype("<f4").tobytes(), float(score))
        for state, score in zip(states, scores, strict=True)
    )
    engine_state = engine_state_of(CANARY_TOKENS, len(weights))
    (engine_score,) = linear_scores(engine_state[np.newaxis], weights)
    engine = EngineCanary(engine_state.astype("<f4").tobytes(), float(engine_score), CANARY_TOKENS)
    return Canaries(probe, (engine,))


def engine_state_of(token_ids: tuple[int, ...], n_features: int) -> NDArray[np.float32]:
    """Return what stands for an engine's joined states: fixed values for each token sequence."""
    rng = np.random.default_rng(list(token_ids))
    return rng.standard_normal(n_features).astype(np.float32)


def sample_vector(model: ModelInfo, *, norm: float) -> ControlVector:
    """Return a vector whose rows 1 … n_layer − 1 have this norm."""
    directions = np.random.default_rng(7).standard_normal((model.n_layer, model.n_embd))
    directions *= norm / np.linalg.norm(directions, axis=1, keepdims=True)
    directions[0] = 0.0
    return ControlVector(
        directions=directions.astype(np.float32),
        model_hint=model.architecture,
        layer_convention="block_output_0based",
        metadata={},
    )
