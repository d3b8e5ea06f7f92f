"""Guard configurations of every kind, for property tests."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from safesteer_edge.bundle.canaries import Canaries, CanaryTolerances, EngineCanary, ProbeCanary
from safesteer_edge.bundle.fingerprint import ModelFingerprint
from safesteer_edge.bundle.schema import GuardConfig, ModalityScales, ProbeEntry, VectorEntry
from safesteer_edge.guard.policy import GuardPolicy

labels = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")), min_size=1, max_size=20)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
unit = st.floats(0, 1)


@st.composite
def policies(draw: st.DrawFn) -> GuardPolicy:
    threshold = draw(st.floats(0, 0.99))
    return GuardPolicy(
        strength=draw(st.floats(0.01, 100)),
        threshold=threshold,
        hard_threshold=draw(st.floats(threshold, 1)),
        hard_patience=draw(st.integers(1, 100)),
        risk_limit=draw(unit),
        risk_decay=draw(st.floats(0, 0.99)),
        risk_min_steps=draw(st.integers(1, 100)),
        risk_gain=draw(st.floats(0, 100)),
        conversation_carry=draw(unit),
    )


@st.composite
def vectors(draw: st.DrawFn, n_layer: int) -> VectorEntry | None:
    if n_layer < 2 or draw(st.booleans()):
        return None
    first = draw(st.integers(1, n_layer - 1))
    max_scale = draw(st.floats(0.1, 10))
    scale = st.floats(-max_scale, max_scale)
    return VectorEntry(
        file="vector.gguf",
        sha256=draw(hashes),
        layer_convention="block_output_0based",
        sign=draw(st.sampled_from([1, -1])),
        scale=draw(scale),
        max_scale=max_scale,
        layers=(first, draw(st.integers(first, n_layer - 1))),
        modalities=ModalityScales(draw(st.none() | scale), draw(st.none() | scale)),
        gate=draw(st.none() | unit),
    )


@st.composite
def canaries(draw: st.DrawFn, n_features: int, n_vocab: int) -> Canaries:
    state = st.lists(floats32, min_size=n_features, max_size=n_features).map(
        lambda values: struct.pack(f"<{n_features}f", *values)
    )
    token_ids = st.lists(st.integers(0, n_vocab - 1), min_size=1, max_size=5).map(tuple)
    probe = (
        ProbeCanary(draw(state), draw(st.floats(0, 0.4))),
        ProbeCanary(draw(state), draw(st.floats(0.6, 1))),
    )
    engine = draw(st.lists(st.builds(EngineCanary, state, unit, token_ids), max_size=2).map(tuple))
    tolerances = CanaryTolerances(
        draw(st.floats(1e-5, 0.02)),
        draw(st.floats(0.8, 1)),
        draw(st.floats(0.01, 0.5)),
        draw(st.floats(0.01, 0.5)),
    )
    return Canaries(probe, engine, tolerances)


@st.composite
def configs(draw: st.DrawFn) -> GuardConfig:
    n_layer, n_embd, n_vocab = (draw(st.integers(1, high)) for high in (6, 4, 100))
    layers = draw(st.lists(st.integers(0, n_layer), min_size=1, max_size=3, unique=True))
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | labels,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(labels, inner, max_size=3),
        max_leaves=6,
    )
    return GuardConfig(
        name=draw(labels),
        created=draw(st.dates()).isoformat(),
        created_by=draw(labels),
        model=ModelFingerprint(
            draw(labels), n_layer, n_embd, n_vocab, draw(hashes), draw(labels), draw(hashes)
        ),
        probe=ProbeEntry(
            file="probe.onnx",
            sha256=draw(hashes),
            layers=tuple(layers),
            n_features=n_embd * len(layers),
            route_hint=draw(st.sampled_from(["layer_input", "final_norm", "eval_callback", None])),
        ),
        policy=draw(policies()),
        residual_norms=tuple(draw(st.floats(1e-3, 1e6)) for _ in range(n_layer)),
        canaries=draw(canaries(n_embd * len(layers), n_vocab)),
        refusal_text=draw(labels),
        vector=draw(vectors(n_layer)),
        figures=draw(st.dictionaries(labels, json_values, max_size=3)),
    )
