"""A guard bundle whose probe gives NaN for some of the states that the tiny model really has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.guard.events import PrefillDone, Step
from safesteer_edge.session.session import open_session
from tests.guarded_tiny import QUIET, WAVERING, GuardedTiny


def write_brittle_bundle(tiny: GuardedTiny, folder: Path, *, limit: float) -> Path:
    """Write a bundle whose probe gives ~0, and NaN for states whose logit is below `limit`."""
    nodes = [
        helper.make_node("Gemm", ["hidden_state", "weights", "offset"], ["logit"]),
        helper.make_node("Sub", ["logit", "limit"], ["room"]),
        helper.make_node("Sqrt", ["room"], ["root"]),  # of a negative number: NaN
        helper.make_node("Mul", ["root", "zero"], ["nothing"]),
        helper.make_node("Add", ["logit", "bias"], ["shifted"]),
        helper.make_node("Add", ["shifted", "nothing"], ["judged"]),
        helper.make_node("Sigmoid", ["judged"], ["harmful_score"]),
    ]
    constants = {"offset": [tiny.offset], "limit": limit, "zero": 0.0, "bias": QUIET}
    initializers = [numpy_helper.from_array(tiny.weights.reshape(-1, 1), "weights")]
    for name, value in constants.items():
        initializers.append(numpy_helper.from_array(np.array(value, np.float32), name))
    n_features = len(tiny.weights)
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("hidden_state", TensorProto.FLOAT, ["n", n_features])],
        [helper.make_tensor_value_info("harmful_score", TensorProto.FLOAT, ["n", 1])],
        initializers,
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    parts = replace(tiny.parts(bias=QUIET), probe_onnx=model.SerializeToString())
    return write_bundle(folder, parts)


def answer_logits(tiny: GuardedTiny, prompt: str, *, n_tokens: int) -> tuple[float, list[float]]:
    """The probe's logits at the prompt's end, and at each token of the unsteered greedy answer."""
    settings = tiny.settings(tiny.bundle(WAVERING), guard="monitor", max_tokens=n_tokens)
    scores: list[float | None] = []
    with open_session(settings) as session:
        for event in session.ask(prompt):
            if isinstance(event, PrefillDone):
                scores.append(event.prompt_score)
            elif isinstance(event, Step):
                scores.append(event.score)
    values = np.array(scores, dtype=np.float64)
    first, *rest = (np.log(values) - np.log1p(-values)).tolist()
    return first, rest


def limit_within_answer(tiny: GuardedTiny, prompt: str, *, n_tokens: int) -> tuple[float, int]:
    """A limit that one token of the answer is below, and how many tokens come before it.

    Raises ValueError where the prompt, or a prompt of the bundle's self-test, is below it too.
    """
    prompt_logit, logits = answer_logits(tiny, prompt, n_tokens=n_tokens)
    limit = float(np.mean(sorted(logits)[:2]))
    self_test = tiny.logits(np.stack(list(tiny.states_by_tokens.values())[:2]))
    if min(prompt_logit, *self_test) <= limit:
        raise ValueError("the answer has no state as far out as the prompts'; ask another question")
    return limit, int(np.argmin(logits))
