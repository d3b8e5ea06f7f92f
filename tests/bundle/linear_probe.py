"""Small ONNX graphs: a linear probe as a calibration makes it, and variations that are wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def weights_for(n_features: int, seed: int = 0) -> NDArray[np.float32]:
    """Weights that give states of deviation 1 logits of deviation 2, float32 (n_features,)."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(n_features) * 2 / n_features**0.5).astype(np.float32)


def probe_onnx(
    weights: NDArray[np.float32],
    bias: float = 0.0,
    *,
    activation: str = "Sigmoid",
    input_name: str = "hidden_state",
    output_name: str = "harmful_score",
    n_states: int | str = "n",
    n_outputs: int = 1,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """Return the file of a probe: activation(state · weights + bias)."""
    matrix = np.repeat(weights.reshape(-1, 1), n_outputs, axis=1).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", [input_name, "weights", "bias"], ["logit"]),
        helper.make_node(activation, ["logit"], [output_name]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [_float_tensor(input_name, [n_states, len(weights)])],
        [_float_tensor(output_name, [n_states, n_outputs])],
        [
            numpy_helper.from_array(matrix, "weights"),
            numpy_helper.from_array(np.full(n_outputs, bias, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    return model.SerializeToString()


def linear_scores(
    states: NDArray[np.float32], weights: NDArray[np.float32], bias: float = 0.0
) -> NDArray[np.float64]:
    """Return what the probe should give, worked out in float64: the oracle, float64 (n,)."""
    logits = states.astype(np.float64) @ weights.astype(np.float64) + bias
    return 0.5 * (1.0 + np.tanh(0.5 * logits))  # the sigmoid, without its overflow


def _float_tensor(name: str, dims: Sequence[int | str]):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
