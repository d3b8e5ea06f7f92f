"""Any ONNX classifier of one state: its output found and turned into one harmful score.

The graph is kept as it is; nodes are added behind its output, and its input is renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.onnx_file import OnnxInfo, check_onnx
from safesteer_edge.formats.probe_graph import refused
from safesteer_edge.formats.probe_onnx import (
    INPUT_NAME,
    OUTPUT_NAME,
    Quantization,
    SourceOptions,
    States,
    StoredWeight,
    import_onnx,
    serialise_probe,
    store_weight,
)

_SHAPE_ONLY = ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Cast", "Clip")
_PROBABILITIES = ("Sigmoid", "Softmax")
_OURS = "safesteer_"  # in front of the names that are added
_N_TRIED = 3
_TWO_OUTPUTS = "it has two outputs; say which is harmful: --harmful-class 0 or 1"
_FROM_SKLEARN = (
    "save the estimator itself with skops.io.dump(estimator, 'probe.skops') and convert that"
)
_FLOAT_TYPES: Final = ("float32", "float16", "float64")


@dataclass(frozen=True, slots=True)
class OnnxSource:
    """A checked graph, and where its score is. n_outputs: 1, or 2 for two classes."""

    model: Any
    input_name: str
    output_name: str
    n_features: int
    n_outputs: int
    is_probability: bool
    kind: str = "ONNX graph"

    @property
    def harmful_hint(self) -> str:
        """Why class 1 may not be the harmful one."""
        return _TWO_OUTPUTS if self.n_outputs == 2 else ""

    def reference_scores(self, states: States) -> NDArray[np.float64]:
        """Return (n,) scores of class 1 by ONNX's reference implementation of the graph."""
        values = _run(self.model, self.input_name, self.output_name, states)
        values = values.reshape(len(states), self.n_outputs).astype(np.float64)
        if self.is_probability:
            return values[:, -1]
        margin = values[:, 0] if self.n_outputs == 1 else values[:, 1] - values[:, 0]
        return np.exp(-np.logaddexp(0.0, -margin))

    def encode(
        self,
        metadata: Mapping[str, str],
        *,
        name: str,
        harmful_class: int = 1,
        quantization: Quantization = "none",
    ) -> bytes:
        """Return probe.onnx, which scores the harmful class. Raises ProbeFileError."""
        onnx = import_onnx()
        weights: list[StoredWeight] = []
        for tensor in self.model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            kept = quantization if array.dtype == np.float32 else "none"
            weights.append(store_weight(self._renamed(tensor.name), array, kept))
        nodes: list[Any] = []
        for node in self.model.graph.node:
            nodes.append(type(node)())
            nodes[-1].CopyFrom(node)
            nodes[-1].input[:] = map(self._renamed, node.input)
            nodes[-1].output[:] = map(self._renamed, node.output)
        score_nodes, constants = self._score(onnx, harmful_class)
        try:
            return serialise_probe(
                nodes + score_nodes,
                [*weights, StoredWeight("", constants, "none")],
                self.n_features,
                metadata,
                name=name,
                opsets=self.model.opset_import,
                ir_version=self.model.ir_version,
            )
        except ProbeFileError:
            raise
        except Exception as error:  # onnx.checker's own errors share no useful base class
            raise refused(
                name,
                f"onnx.checker refuses the result ({str(error).splitlines()[0][:200]})",
                "export it again with opset 17",
            ) from error

    def _renamed(self, value: str) -> str:
        if value == self.input_name:
            return INPUT_NAME
        return f"{_OURS}source_{value}" if value in (INPUT_NAME, OUTPUT_NAME) else value

    def _score(self, onnx: Any, harmful_class: int) -> tuple[list[Any], Mapping[str, NDArray[Any]]]:
        """Return what makes one probability of the output: nodes, and the constants they use."""
        constants: dict[str, NDArray[Any]] = {}

        def constant(name: str, value: Any) -> str:
            constants[f"{_OURS}{name}"] = np.asarray(value)
            return f"{_OURS}{name}"

        steps: list[tuple[str, ...]] = [
            ("Reshape", constant("shape", np.array([-1, self.n_outputs], np.int64)))
        ]
        harmful = np.eye(2, dtype=np.float32)[:, [harmful_class]]
        if self.n_outputs == 2:
            # the class's own probability, or its logit less the other's
            choice = harmful if self.is_probability else 2 * harmful - 1
            steps.append(("MatMul", constant("choice", choice)))
        elif harmful_class == 0:
            # 1 - p for a probability, -x for a logit
            steps.append(("Mul", constant("sign", np.array([-1.0], np.float32))))
            one = np.array([float(self.is_probability)], np.float32)
            steps.append(("Add", constant("one", one)))
        if self.is_probability:  # what rounding added goes
            bounds = [constant("low", np.float32(0.0)), constant("high", np.float32(1.0))]
            steps.append(("Clip", *bounds))
        else:
            steps.append(("Sigmoid",))
        make_node, value = onnx.helper.make_node, f"{_OURS}float"
        output = self._renamed(self.output_name)
        nodes = [make_node("Cast", [output], [value], to=onnx.TensorProto.FLOAT)]
        for index, (operator, *inputs) in enumerate(steps):
            output = OUTPUT_NAME if index == len(steps) - 1 else f"{_OURS}step_{index}"
            nodes.append(make_node(operator, [value, *inputs], [output]))
            value = output
        return nodes, constants


def onnx_source(path: Path, data: bytes, options: SourceOptions) -> OnnxSource:
    """Return the classifier in an ONNX file.

    Raises ProbeFileError for operators that are not on the list, an input that is not one state
    a row, and an output that cannot be told: options.output, .output_kind and .n_features do.
    """
    name = str(path)
    onnx = import_onnx()
    try:
        info = check_onnx(data, name=name)
    except ProbeFileError as error:
        if "ai.onnx.ml" in str(error):
            problem = "it uses operators of domain 'ai.onnx.ml'"
            raise refused(name, problem, _FROM_SKLEARN) from error
        problem = str(error).removeprefix(f"cannot use probe {name!r}: ").rpartition("; ")[0]
        raise refused(name, problem, "export it again, as one file with opset 17") from error
    model = onnx.load_model_from_string(data)
    input_name, n_features = _input(model, info, options, name)
    output_name = _output(info, options, name)
    states = np.random.default_rng(0).standard_normal((_N_TRIED, n_features)).astype(np.float32)
    try:
        values = _run(model, input_name, output_name, states)
    except Exception as error:  # whatever a graph for one state makes of three
        problem = str(error).splitlines() or [type(error).__name__]
        raise refused(
            name,
            f"it does not run on {_N_TRIED} states of {n_features} numbers ({problem[0][:150]})",
            "export it with a dynamic first axis",
        ) from error
    if values.shape not in ((_N_TRIED,), (_N_TRIED, 1), (_N_TRIED, 2)):
        raise refused(
            name,
            f"its output {output_name!r} has shape {values.shape} for {_N_TRIED} states",
            "expected one number for each, or two; name another output with --onnx-output",
        )
    is_probability = _is_probability(model, output_name, options, name)
    n_outputs = values.size // _N_TRIED
    return OnnxSource(model, input_name, output_name, n_features, n_outputs, is_probability)


def _input(model: Any, info: OnnxInfo, options: SourceOptions, name: str) -> tuple[str, int]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in info.inputs if value.name not in weights]
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].dims) != 2:
        shown = [(value.name, value.dtype, value.dims) for value in inputs]
        raise refused(name, f"its inputs are {shown}", "expected one, float32 (n, n_features)")
    width = inputs[0].dims[1]
    if not isinstance(width, int):
        if options.n_features is None:
            raise refused(name, "it does not say how wide a state is", "give --n-features N")
        width = options.n_features
    return inputs[0].name, width


def _output(info: OnnxInfo, options: SourceOptions, name: str) -> str:
    outputs = [value.name for value in info.outputs]
    if options.output is not None:
        if options.output not in outputs:
            raise refused(name, f"it has no output {options.output!r}", f"it has {outputs}")
        return options.output
    likely = [value.name for value in info.outputs if value.dtype in _FLOAT_TYPES]
    if len(likely) != 1:
        raise refused(name, f"it has the outputs {outputs}", "name the score's: --onnx-output NAME")
    return likely[0]


def _is_probability(model: Any, output_name: str, options: SourceOptions, name: str) -> bool:
    """Tell a probability from a logit by the operator that makes it."""
    if options.output_kind != "auto":
        return options.output_kind == "probability"
    if output_name == OUTPUT_NAME:
        return True
    makers = {value: node for node in model.graph.node for value in node.output}
    node = makers.get(output_name)
    while node is not None and node.op_type in _SHAPE_ONLY:
        node = makers.get(node.input[0])
    operator = node.op_type if node is not None else "nothing"
    if operator in _PROBABILITIES:
        return True
    before = makers.get(node.input[0]) if node is not None else None
    is_bias = operator == "Add" and before is not None and before.op_type == "MatMul"
    if operator in ("Gemm", "MatMul") or is_bias:
        return False
    raise refused(
        name,
        f"its output {output_name!r} is made by {operator}, which may be a probability or a logit",
        "say which: --output-kind probability or logit",
    )


def _run(model: Any, input_name: str, output_name: str, states: States) -> NDArray[Any]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    with np.errstate(all="ignore"):
        (values,) = evaluator.run([output_name], {input_name: states.astype(np.float32)})  # type: ignore[misc]
    return np.asarray(values)
