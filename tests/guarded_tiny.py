"""A guarded tiny model: real files and a real bundle, so that whole sessions run in milliseconds.

The probe is linear in the joined outputs of two blocks. Its weights are drawn from a seed and set
to the states that the model really has, so that a bias of 0 finds about half of them harmful.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.canaries import Canaries, EngineCanary, ProbeCanary
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.schema import ModalityScales
from safesteer_edge.bundle.writer import BundleParts, VectorParts, write_bundle
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.guard.policy import GuardPolicy, SamplingSettings
from safesteer_edge.session.runtime import last_state_of, open_runtime
from safesteer_edge.session.settings import SessionSettings
from tests.bundle.linear_probe import linear_scores, probe_onnx
from tests.bundle.sample_parts import figures_of
from tests.tiny_models import CHATML, FIRST_BYTE_ID, write_tiny_llama, write_tiny_projector

PROBE_LAYERS = (1, 2)
REFUSAL_TEXT = "I can't help with that."
# Biases on logits of mean 0 and deviation 2.
QUIET, WAVERING, ALARMED = -30.0, 0.0, 30.0
POLICY = GuardPolicy(
    strength=8.0,
    threshold=0.5,
    hard_threshold=0.9,
    hard_patience=4,
    risk_limit=0.8,
    risk_decay=0.9,
    risk_min_steps=4,
    risk_gain=1.0,
    conversation_carry=0.25,
)
# Steers wherever it can, and never refuses.
PATIENT_POLICY = replace(POLICY, hard_patience=1024, risk_limit=1.0, risk_min_steps=1024)
GREEDY = SamplingSettings(temperature=0.0, top_k=8)
DRAWN = SamplingSettings(temperature=0.8, top_k=8, seed=7)

_N_VOCAB = 320
_N_CALIBRATED_PROMPTS = 24
_LOGIT_DEVIATION = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class GuardedTiny:
    """A tiny llama on disk and what a bundle for it is made from.

    folder: where its files lie; the bundles that `bundle` makes are below it.
    states_by_tokens: states of the probe's layers, float32 (n_features,), read from the engine.
    weights, offset: of the probe whose logits over these states have mean 0 and deviation 2.
    """

    folder: Path
    model: Path
    projector: Path
    info: ModelInfo
    states_by_tokens: dict[tuple[int, ...], NDArray[np.float32]]
    residual_norms: tuple[float, ...]
    weights: NDArray[np.float32]
    offset: float

    def parts(
        self, *, bias: float = WAVERING, policy: GuardPolicy = POLICY, has_vector: bool = False
    ) -> BundleParts:
        """The parts of a good bundle; bias: see QUIET, WAVERING and ALARMED."""
        return BundleParts(
            name=f"tiny{bias:+.0f}",
            created_by="tests",
            created="2026-11-22",
            model=fingerprint_model(self.info),
            probe_onnx=probe_onnx(self.weights, self.offset + bias),
            probe_layers=PROBE_LAYERS,
            policy=policy,
            residual_norms=self.residual_norms,
            canaries=self._canaries(self.offset + bias),
            refusal_text=REFUSAL_TEXT,
            vector=self._vector() if has_vector else None,
            route_hint="layer_input",
            figures=figures_of(policy),
        )

    def bundle(
        self,
        bias: float = WAVERING,
        policy: GuardPolicy = POLICY,
        *,
        has_vector: bool = False,
        languages: tuple[str, ...] = (),
    ) -> Path:
        """The folder of a good bundle, written at the first call. Not to be changed.

        languages: that its figures say it was measured on; none: they do not say.
        """
        name = f"{bias:+.0f}-{hash(policy) & 0xFFFFFFFF:08x}-{'vector' if has_vector else 'plain'}"
        folder = self.folder / f"bundles-{self.model.stem}" / "-".join((name, *languages))
        if not folder.exists():
            parts = self.parts(bias=bias, policy=policy, has_vector=has_vector)
            if languages:
                covers = {"prompt_probe": {"covers": list(languages)}}
                parts = replace(parts, figures={**parts.figures, **covers})
            write_bundle(folder, parts)
        return folder

    def settings(self, bundle: Path | None, **changes: Any) -> SessionSettings:
        """Settings of a short greedy answer on one thread; bundle None: the guard is off."""
        values: dict[str, Any] = {
            "model": str(self.model),
            "bundle": bundle,
            "guard": "steer" if bundle else "off",
            "sampling": GREEDY,
            "max_tokens": 12,
            "n_ctx": 512,
            "n_threads": 1,
            "probe_device": "cpu",
        }
        return SessionSettings(**{**values, **changes})

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """The probe's logits without a bias: float64 (n,)."""
        return states.astype(np.float64) @ self.weights.astype(np.float64) + self.offset

    def _canaries(self, bias: float) -> Canaries:
        along = self.weights / float(self.weights @ self.weights)
        states = np.stack([along * (logit - bias) for logit in (-3.0, 0.5, 3.0)])
        states = states.astype(np.float32)
        probe = tuple(
            ProbeCanary(state.astype("<f4").tobytes(), float(score))
            for state, score in zip(states, linear_scores(states, self.weights, bias), strict=True)
        )
        engine = tuple(
            EngineCanary(
                state.astype("<f4").tobytes(),
                float(linear_scores(state[np.newaxis], self.weights, bias)[0]),
                token_ids,
            )
            for token_ids, state in list(self.states_by_tokens.items())[:2]
        )
        return Canaries(probe, engine)

    def _vector(self) -> VectorParts:
        """A vector on blocks 1 to 3 of a third of each block's norm, for images alone."""
        directions = np.random.default_rng(7).standard_normal((self.info.n_layer, self.info.n_embd))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        directions *= np.array(self.residual_norms)[:, np.newaxis] / 3
        directions[0] = 0.0
        return VectorParts(
            vector=ControlVector(directions.astype(np.float32), self.info.architecture),
            scale=1.0,
            max_scale=2.0,
            layers=(1, 3),
            modalities=ModalityScales(image=1.0, audio=None),
        )


def make_guarded_tiny(
    folder: Path, *, seed: int = 0, n_embd: int = 64, chat_template: str = CHATML
) -> GuardedTiny:
    """Write a tiny model and projector, and read from the model what a bundle needs."""
    path = folder / f"tiny-{seed}-{n_embd}.gguf"
    model = write_tiny_llama(path, seed=seed, n_embd=n_embd, chat_template=chat_template)
    rng = np.random.default_rng(seed)
    prompts = [
        tuple(rng.integers(FIRST_BYTE_ID, _N_VOCAB, 6).tolist())
        for _ in range(_N_CALIBRATED_PROMPTS)
    ]
    info, states = _read_states(model, PROBE_LAYERS, prompts)
    _, all_states = _read_states(model, tuple(range(info.n_layer)), prompts[:4])
    norms = np.linalg.norm(all_states.reshape(len(all_states), info.n_layer, -1), axis=2)
    weights = rng.standard_normal(states.shape[1])
    weights *= _LOGIT_DEVIATION / (states @ weights).std()
    return GuardedTiny(
        folder=folder,
        model=model,
        projector=write_tiny_projector(folder / f"mmproj-{n_embd}.gguf", n_embd=n_embd),
        info=info,
        states_by_tokens=dict(zip(prompts, states, strict=True)),
        residual_norms=tuple(float(norm) for norm in norms.mean(axis=0)),
        weights=weights.astype(np.float32),
        offset=-float((states @ weights).mean()),
    )


def _read_states(
    model: Path, layers: tuple[int, ...], prompts: list[tuple[int, ...]]
) -> tuple[ModelInfo, NDArray[np.float32]]:
    settings = SessionSettings(model=str(model), guard="off", n_ctx=256, n_threads=1)
    runtime = open_runtime(settings, layers=layers)
    try:
        read = functools.partial(last_state_of, runtime.engine, runtime.model)
        return runtime.info, np.stack([read(token_ids) for token_ids in prompts])
    finally:
        runtime.close()
