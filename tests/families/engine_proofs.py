"""Proofs on a family's engine: each checks one thing and returns what the table says of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safesteer_edge.engine.hidden_states import RouteName, usable_routes
from safesteer_edge.engine.prompt_items import TextPrompt
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.formats.projector_file import check_projector
from safesteer_edge.guard.policy import SamplingSettings
from tests.engine.open_engine import (
    F32_TOLERANCE,
    N_EMBD,
    N_LAYER,
    Float32Array,
    OpenEngine,
    open_engine,
    random_vector,
)
from tests.engine.reranked_answers import LAYERS, TOP_K, Comparison, answer
from tests.families.family_files import FamilyFiles, random_tokens
from tests.native_llama import native_forward
from tests.numpy_llama import NumpyForward, NumpyLlama

# Longer than the windows of 16 tokens.
PROMPT = random_tokens(0, 40)
ANSWER = random_tokens(1, 4)
CANDIDATES = [60, 70, 300, 90]

_ROUTE_LAYERS: dict[RouteName, tuple[tuple[int, ...], ...]] = {
    "layer_input": ((0, 1, 2), (2, 0)),
    "eval_callback": ((0, 1, 2, 3), (3, 1), (N_LAYER,)),
    "final_norm": ((N_LAYER,),),
}


def prove_loading(files: FamilyFiles) -> str:
    """The product's own checks accept the files, and llama.cpp loads what they said."""
    info = check_language_model(files.model)
    mmproj = files.mmproj
    with open_engine(files.model, mmproj=mmproj) as opened:
        model = opened.model
        assert (info.n_layer, info.n_embd, info.n_vocab) == (
            model.n_layer,
            model.n_embd,
            model.n_vocab,
        )
        assert info.architecture == files.family.architecture
        if mmproj is None:
            return "text"
        projector = check_projector(mmproj)
        assert projector.projection_dim == model.n_embd
        assert projector.projector_types == (files.family.projector,)
        assert opened.projector is not None
        assert opened.projector.sees
    return f"text, images ({files.family.projector})"


def prove_hidden_states(files: FamilyFiles) -> str:
    """Each route gives the states that llama.cpp computes from the whole sequence at once.

    At the prompt's end, at decoding steps and of candidates, with logits beside them. For the
    llama architecture NumPy computes them too.
    """
    architecture = files.family.architecture
    sequences = [PROMPT + ANSWER, *([*PROMPT, *ANSWER, token_id] for token_id in CANDIDATES)]
    oracles = [[native_forward(files.model, tokens) for tokens in sequences]]
    if architecture == "llama":
        in_numpy = NumpyLlama(files.model)
        oracles.append([in_numpy.forward(tokens) for tokens in sequences])
    names: list[str] = []
    for name, layer_sets in _ROUTE_LAYERS.items():
        sets = [layers for layers in layer_sets if name in usable_routes(architecture, 4, layers)]
        for layers in sets:
            with open_engine(files.model, layers=layers, route_name=name) as opened:
                states, logits = read_everywhere(opened)
            for forwards in oracles:
                assert_close(states, _expected_states(forwards, layers))
                assert_close(logits, np.stack([f.logits[-1] for f in forwards[:1]]))
        names += [name] if sets else []
    return " = ".join([*names, "llama.cpp", *(["NumPy"] if len(oracles) > 1 else [])])


def read_everywhere(opened: OpenEngine) -> tuple[Float32Array, Float32Array]:
    prompt_state = opened.prefill(PROMPT).last_state
    answer_states = opened.feed(ANSWER)
    logits = opened.next_logits()
    candidate_states = opened.engine.evaluate_candidates(CANDIDATES)
    states = np.concatenate([prompt_state[None], answer_states, candidate_states])
    return states, logits[None]


def _expected_states(forwards: Sequence[NumpyForward], layers: tuple[int, ...]) -> Float32Array:
    answered, *candidates = forwards
    positions = range(len(PROMPT) - 1, len(PROMPT) + len(ANSWER))
    rows = [_states_at(answered, layers, position) for position in positions]
    return np.stack([*rows, *(_states_at(forward, layers, -1) for forward in candidates)])


def _states_at(forward: NumpyForward, layers: tuple[int, ...], position: int) -> Float32Array:
    if layers == (N_LAYER,):
        return forward.final_norm[position]
    return np.concatenate([forward.block_outputs[layer, position] for layer in layers])


def prove_roll_back(files: FamilyFiles) -> str:
    """Trying, accepting, taking back and appending tokens leaves what a straight run leaves."""
    kept: list[int] = []
    rng = np.random.default_rng(2)
    with open_engine(files.model, layers=(0, 2)) as opened:
        opened.prefill(PROMPT)
        for step in range(24):  # past a window's length, and back over it
            tokens = rng.choice(np.arange(8, 318), 6, replace=False).tolist()
            n_single = step % 2
            if n_single:
                opened.engine.evaluate(tokens[0])
            if step % 3:
                opened.engine.evaluate_candidates(tokens[n_single:])
            elif not n_single:
                opened.engine.evaluate(tokens[0])
            chosen = 0 if not step % 3 else step % len(tokens)
            kept.append(tokens[chosen])
            opened.engine.accept(kept[-1])
        assert_close(opened.next_logits(), _logits_after(files, PROMPT + kept))
        opened.engine.evaluate(50)
        opened.engine.evaluate_candidates([51, 52])
        opened.engine.take_back(20)
        opened.engine.append([100, 101])
        assert_close(opened.next_logits(), _logits_after(files, [*PROMPT, *kept[:4], 100, 101]))
        state = opened.feed([102])[0]
        has_recurrent_state = opened.model.has_recurrent_state
    forward = native_forward(files.model, [*PROMPT, *kept[:4], 100, 101, 102])
    assert_close(state, _states_at(forward, (0, 2), -1))
    return "evaluated again" if has_recurrent_state else "cells removed"


def prove_shorter_prompts(files: FamilyFiles) -> str:
    """A prompt that leaves the one before early, late or not at all is as a first one."""
    long = random_tokens(3, 90)
    prompts = [long, [*long[:70], *random_tokens(4, 9)], long[:30], [*long[:10], 77], long]
    reused: list[int] = []
    with open_engine(files.model, n_batch=16) as opened:
        for prompt in prompts:
            reused.append(opened.prefill(prompt).n_reused_tokens)
            assert_close(opened.next_logits(), _logits_after(files, prompt))
        assert reused[0] == 0
        if not opened.model.has_recurrent_state:
            assert reused == [0, 70, 29, 10, 10]
            return "to the token"
    return "whole, else from a checkpoint" if any(reused) else "whole"


def _logits_after(files: FamilyFiles, tokens: Sequence[int]) -> Float32Array:
    return native_forward(files.model, tokens).logits[-1]


def prove_side_prompt(files: FamilyFiles) -> str:
    """A prompt on a side sequence has its states, and the main sequence goes on as it was."""
    other = random_tokens(5, 25)
    with open_engine(files.model, layers=(0, 2), n_batch=16) as opened:
        opened.prefill(PROMPT)
        opened.feed(ANSWER)
        state = opened.engine.side_prompt_states([TextPrompt(other)])[0, 0]
        assert_close(state, _states_at(native_forward(files.model, other), (0, 2), -1))
        longer = [*PROMPT, *ANSWER, 77]
        assert opened.prefill(longer).n_reused_tokens == len(PROMPT) + len(ANSWER)
        assert_close(opened.next_logits(), _logits_after(files, longer))
    return "leaves nothing"


def prove_control_vector(files: FamilyFiles) -> str:
    """direction.L is added to the output of block L, and no earlier block changes."""
    vector = random_vector()
    blocks = tuple(range(N_LAYER))
    with open_engine(files.model, layers=blocks, route_name="eval_callback") as opened:

        def states_under(directions: Float32Array | None) -> Float32Array:
            stats = opened.prefill(PROMPT, control_vector=directions)
            return stats.last_state.reshape(N_LAYER, N_EMBD)

        plain = states_under(None)
        for layer in range(1, N_LAYER):
            alone = np.zeros_like(vector)
            alone[layer] = vector[layer]
            # The prompt's last token is the first that is steered: what it attends to is not.
            steered = states_under(alone)
            assert_close(steered[:layer], plain[:layer])
            assert_close(steered[layer], plain[layer] + vector[layer])
            if layer + 1 < N_LAYER:
                assert np.abs(steered[layer + 1] - plain[layer + 1]).max() > 0.01
        assert_close(states_under(None), plain)  # it is off again
    return "blocks 1 to n − 1"


def prove_reranking(files: FamilyFiles) -> str:
    """Lazy and eager re-ranking choose the same tokens at temperature 0."""
    compared = Comparison()
    greedy = SamplingSettings(temperature=0, top_k=TOP_K)
    n_prompts = 6
    with open_engine(files.model, layers=LAYERS, n_candidates=TOP_K) as opened:
        for seed in range(n_prompts):
            prompt = random_tokens(seed, 20)
            lazy = answer(opened, prompt, "lazy", greedy)
            compared.add_inplace(lazy, answer(opened, prompt, "eager", greedy))
    assert compared.gaps is not None
    assert compared.noise < 1e-3
    assert max(compared.gaps, default=0.0) <= 2 * compared.noise
    assert compared.n_same >= n_prompts - 1
    assert compared.n_interventions > 10
    return "same tokens"


def assert_close(actual: Float32Array, expected: Float32Array) -> None:
    """Equal but for rounding, which grows with the numbers themselves.

    ggml's GELU (Gemma) and conversions come from F16 tables: a step of those shows as 8e-4.
    """
    assert np.isfinite(actual).all()
    tolerance = F32_TOLERANCE * max(1.0, float(np.abs(expected).max()) / 2)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
