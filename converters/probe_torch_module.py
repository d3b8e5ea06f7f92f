"""PyTorch modules as probes, by the classes of their parts; PyTorch itself is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from safesteer_edge.converters.probe_arrays import state_dict_source
from safesteer_edge.converters.tensor_files import (
    Array,
    TensorFile,
)
from safesteer_edge.formats.probe_graph import refused
from safesteer_edge.formats.probe_onnx import (
    GraphSource,
    SourceOptions,
    States,
)

_ACTIVATIONS: Final = {
    "ReLU": "relu",
    "SiLU": "silu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
}
_NOTHING = ("Dropout", "Identity")  # once trained


def module_source(module: Any, *, name: str = "module") -> GraphSource:
    """Return the probe of a Linear, or a Sequential of the layers that a probe may have.

    Its last activation may be a sigmoid or softmax; without one, it gives logits.
    Raises ProbeFileError for other modules, and for two activations in a row.
    """
    tensors: dict[str, Array] = {}
    activations: list[str] = []
    epsilons: set[float] = set()
    for part in _parts(module, name):
        kind = type(part).__name__
        if kind in ("Linear", "LayerNorm"):
            tensors |= _parameters(part, f"layers.{len(activations)}")
            activations.append("none")
            epsilons |= {float(part.eps)} if kind == "LayerNorm" else set()
        elif kind not in _NOTHING:
            if not activations or activations[-1] != "none":
                raise refused(name, f"{kind} follows no layer", "give each layer one activation")
            activations[-1] = _activation(part, name)
    if len(epsilons) > 1:
        raise refused(name, f"its layer norms have epsilons {sorted(epsilons)}", "use one")
    options = SourceOptions(
        activations=tuple(activations),
        layer_norm_epsilon=epsilons.pop() if epsilons else None,
    )
    source = state_dict_source(TensorFile(tensors), options, name=name)
    return GraphSource("PyTorch module", source.graph, source.harmful_hint, _reference(module))


def _parts(module: Any, name: str) -> Iterator[Any]:
    kind = type(module)
    if not kind.__module__.startswith("torch.nn.modules."):
        raise refused(
            name,
            f"{kind.__qualname__} is a class of its own, whose forward() could do anything",
            "pass the Sequential in it, or save its state_dict() and name the --activations",
        )
    if kind.__name__ == "Sequential":
        for child in module:
            yield from _parts(child, name)
    else:
        yield module


def _parameters(part: Any, prefix: str) -> dict[str, Array]:
    named = dict(part.named_parameters())
    tensors = {
        f"{prefix}.{key}": np.asarray(value.detach().cpu().double().numpy())
        for key, value in named.items()
    }
    if not tensors:  # a LayerNorm without weights of its own
        width = int(np.prod(part.normalized_shape))
        tensors = {f"{prefix}.weight": np.ones(width), f"{prefix}.bias": np.zeros(width)}
    return tensors


def _activation(part: Any, name: str) -> str:
    kind = type(part).__name__
    if kind == "GELU":
        return "gelu_tanh" if part.approximate == "tanh" else "gelu"
    if kind not in _ACTIVATIONS:
        raise refused(
            name,
            f"{kind} is not translated",
            f"supported are Linear, LayerNorm, Dropout, GELU, {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[kind]


def _reference(module: Any) -> Any:
    def scores(states: States) -> Any:
        import torch

        ends_in = type(list(module.modules())[-1]).__name__
        was_training = module.training
        module.eval()
        with torch.no_grad():
            example = next(iter(module.parameters()))
            values = module(torch.as_tensor(np.asarray(states)).to(example)).double().cpu()
        module.train(was_training)
        if values.shape[1] == 2:
            values = values if ends_in == "Softmax" else torch.softmax(values, dim=1)
        elif ends_in != "Sigmoid":
            values = torch.sigmoid(values)
        return values[:, -1].numpy()

    return scores
