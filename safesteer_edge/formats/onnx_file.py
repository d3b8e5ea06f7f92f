"""ONNX probes, checked in pure Python before onnxruntime sees them.

A probe is a small feed-forward graph: dense arithmetic from a list of allowed operators, its
weights inside the file. What could reach outside (external data), run code (custom operators),
loop (subgraphs) or hide (unknown fields) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.protobuf_wire import (
    Field,
    FieldBudget,
    Kind,
    Message,
    ProtobufError,
    floats_of,
    read_message,
)

# -- the part of ONNX's protobuf schema that a probe may use; every other field is refused ---------
# Source: onnx/onnx.proto at v1.21, messages of the same names.

Schema = Mapping[int, Field]


def _one(name: str, kind: Kind = Kind.BYTES) -> Field:
    return Field(name, kind)


def _many(name: str, kind: Kind = Kind.BYTES) -> Field:
    return Field(name, kind, is_repeated=True)


MODEL: Final[Schema] = {
    1: _one("ir_version", Kind.INTEGER),
    2: _one("producer_name", Kind.TEXT),
    3: _one("producer_version", Kind.TEXT),
    4: _one("domain", Kind.TEXT),
    5: _one("model_version", Kind.INTEGER),
    6: _one("doc_string", Kind.TEXT),
    7: _one("graph"),
    8: _many("opset_import"),
    14: _many("metadata_props"),
    25: _many("functions"),  # read in order to be refused by name
}
OPERATOR_SET: Final[Schema] = {1: _one("domain", Kind.TEXT), 2: _one("version", Kind.INTEGER)}
STRING_PAIR: Final[Schema] = {1: _one("key", Kind.TEXT), 2: _one("value", Kind.TEXT)}
GRAPH: Final[Schema] = {
    1: _many("node"),
    2: _one("name", Kind.TEXT),
    5: _many("initializer"),
    10: _one("doc_string", Kind.TEXT),
    11: _many("input"),
    12: _many("output"),
    13: _many("value_info"),
    15: _many("sparse_initializer"),  # read in order to be refused by name
    16: _many("metadata_props"),
}
NODE: Final[Schema] = {
    1: _many("input", Kind.TEXT),
    2: _many("output", Kind.TEXT),
    3: _one("name", Kind.TEXT),
    4: _one("op_type", Kind.TEXT),
    5: _many("attribute"),
    6: _one("doc_string", Kind.TEXT),
    7: _one("domain", Kind.TEXT),
    9: _many("metadata_props"),
}
ATTRIBUTE: Final[Schema] = {
    1: _one("name", Kind.TEXT),
    2: _one("f", Kind.FLOAT),
    3: _one("i", Kind.INTEGER),
    4: _one("s"),
    5: _one("t"),
    6: _one("g"),  # read in order to be refused by name, with the next
    11: _many("graphs"),
    7: _many("floats", Kind.FLOAT),
    8: _many("ints", Kind.INTEGER),
    9: _many("strings"),
    13: _one("doc_string", Kind.TEXT),
    20: _one("type", Kind.INTEGER),
}
TENSOR: Final[Schema] = {
    1: _many("dims", Kind.INTEGER),
    2: _one("data_type", Kind.INTEGER),
    4: _many("float_data", Kind.FLOAT),
    5: _many("int32_data", Kind.INTEGER),
    7: _many("int64_data", Kind.INTEGER),
    8: _one("name", Kind.TEXT),
    9: _one("raw_data"),
    10: _many("double_data", Kind.DOUBLE),
    11: _many("uint64_data", Kind.INTEGER),
    12: _one("doc_string", Kind.TEXT),
    13: _many("external_data"),  # read in order to be refused by name, with the next
    14: _one("data_location", Kind.INTEGER),
}
VALUE_INFO: Final[Schema] = {
    1: _one("name", Kind.TEXT),
    2: _one("type"),
    3: _one("doc_string", Kind.TEXT),
    4: _many("metadata_props"),
}
TYPE: Final[Schema] = {1: _one("tensor_type"), 6: _one("denotation", Kind.TEXT)}
TENSOR_TYPE: Final[Schema] = {1: _one("elem_type", Kind.INTEGER), 2: _one("shape")}
SHAPE: Final[Schema] = {1: _many("dim")}
DIMENSION: Final[Schema] = {
    1: _one("dim_value", Kind.INTEGER),
    2: _one("dim_param", Kind.TEXT),
    3: _one("denotation", Kind.TEXT),
}


# -- the numbers of an ONNX tensor, wherever in the message they are -------------------------------

# TensorProto.DataType → NumPy. Text, complex numbers and the types below a byte are left out.
DATA_TYPES: Final = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
_RAW_TYPES: Final = {
    "float32": "<f4",
    "uint8": "<u1",
    "int8": "<i1",
    "uint16": "<u2",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "bool": "<u1",
    "float16": "<f2",
    "float64": "<f8",
    "uint32": "<u4",
    "uint64": "<u8",
}
# Where numbers are that are not in raw_data.
_TYPED_FIELDS: Final = {
    **dict.fromkeys(("uint8", "int8", "uint16", "int16", "int32", "bool", "float16"), "int32_data"),
    **dict.fromkeys(("uint32", "uint64"), "uint64_data"),
    "int64": "int64_data",
    "float32": "float_data",
    "float64": "double_data",
}
_CONTENT_FIELDS: Final = ("raw_data", *dict.fromkeys(_TYPED_FIELDS.values()))


@dataclass(frozen=True, slots=True)
class TensorContents:
    """A tensor: its shape, and its numbers in one row, as the type that they have in memory."""

    shape: tuple[int, ...]
    values: NDArray[Any]


def read_tensor(tensor: Message, where: str) -> TensorContents:
    """Return a tensor's numbers, without copying those in raw data.

    where: what error messages call the tensor.
    Raises ProtobufError if type, shape and numbers do not fit together.
    """
    type_id = tensor.integer("data_type")
    if type_id not in DATA_TYPES:
        raise ProtobufError(f"{where} has data type {type_id}")
    shape = tuple(tensor.integers.get("dims", []))
    if any(size < 0 for size in shape):
        raise ProtobufError(f"{where} has the shape {shape}")
    fields = [name for name in _CONTENT_FIELDS if name in tensor.bytes or name in tensor.integers]
    dtype = DATA_TYPES[type_id]
    if len(fields) != 1 or fields[0] not in ("raw_data", _TYPED_FIELDS[dtype]):
        raise ProtobufError(f"{where} of type {dtype} has its numbers in {fields}")
    values = _values(tensor, fields[0], dtype, where)
    if values.size != math.prod(shape):
        raise ProtobufError(f"{where} of shape {shape} has {values.size} numbers")
    return TensorContents(shape, values)


def _values(tensor: Message, field: str, dtype: str, where: str) -> NDArray[Any]:
    raw_type = np.dtype(_RAW_TYPES[dtype])
    if field in tensor.bytes:  # raw_data, float_data or double_data
        views = tensor.bytes[field]
        raw = views[0] if len(views) == 1 else b"".join(views)
        if len(raw) % raw_type.itemsize:
            raise ProtobufError(f"{where} has a part of a number at its end")
        return np.frombuffer(raw, raw_type)
    numbers = tensor.integers[field]
    stored_type = np.dtype("<u2") if dtype == "float16" else raw_type  # float16: its bits
    bounds = np.iinfo(stored_type)
    if any(not bounds.min <= number <= bounds.max for number in numbers):
        raise ProtobufError(f"{where} has a number that is no {dtype}")
    return np.frombuffer(np.array(numbers, stored_type).tobytes(), raw_type)


# fmt: off
ALLOWED_OPERATORS = frozenset({
    "Add", "Cast", "Clip", "Concat", "Constant", "DequantizeLinear", "Div", "DynamicQuantizeLinear",
    "Erf", "Exp", "Flatten", "Gather", "Gelu", "Gemm", "Greater", "Identity", "LayerNormalization",
    "LeakyRelu", "Less", "Log", "MatMul", "MatMulInteger", "Max", "Min", "Mul", "Neg", "Pow",
    "QuantizeLinear", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice",
    "Softmax", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
})
# fmt: on
_DEFAULT_DOMAINS = ("", "ai.onnx")
_OPSETS = range(13, 25)
_IR_VERSIONS = range(4, 14)
_ATTRIBUTE_TYPES = frozenset({0, 1, 2, 3, 4, 6, 7, 8})  # unset, float, int, string, tensor, lists
_SESSION_CONFIG_KEY = "ort_config"  # onnxruntime can be told to take its settings from there
_MAX_PROBLEM = 300
_RECONVERT = "make it again with 'safesteer-edge convert probe'"


@dataclass(frozen=True, slots=True)
class OnnxLimits:
    """How large a probe may be."""

    size_bytes: int = 64 << 20
    n_values: int = 200_000
    """Protobuf values: fields, and numbers outside raw data."""
    n_nodes: int = 256
    n_tensors: int = 256
    n_metadata: int = 64
    text_bytes: int = 65_536
    dimension: int = 65_536
    """Of a weight. Two vectors of this length can be broadcast to 16 GiB, not to more."""


class OnnxValue(NamedTuple):
    """An input or output of the graph.

    dtype: a NumPy name, e.g. 'float32'. dims: numbers, names of free dimensions, or '' for a
    free dimension without a name.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class OnnxInfo:
    """What a checked graph is. initializer_bytes: the size of its weights."""

    opset: int
    operators: frozenset[str]
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    metadata: Mapping[str, str]
    initializer_bytes: int


def check_onnx(data: bytes, *, name: str, limits: OnnxLimits | None = None) -> OnnxInfo:
    """Check a probe's bytes and return what the graph is.

    name: what error messages call it, usually the path. Takes 1 ms for a linear probe.
    Raises ProbeFileError with the reason and what to do about it.
    """
    return _Checker(name, limits or OnnxLimits()).check(data)


class _Checker:
    """One check of one file: its name for errors, its limits, and what is left of them."""

    def __init__(self, name: str, limits: OnnxLimits) -> None:
        self._name = name
        self._limits = limits
        self._budget = FieldBudget(limits.n_values)

    def check(self, data: bytes) -> OnnxInfo:
        if not 0 < len(data) <= self._limits.size_bytes:
            raise self._error(f"it has {len(data)} bytes; expected 1 to {self._limits.size_bytes}")
        try:
            return self._check_model(self._read(memoryview(data), MODEL))
        except ProtobufError as error:
            raise self._error(f"it is not an ONNX probe ({error})") from error

    def _error(self, problem: str, remedy: str = _RECONVERT) -> ProbeFileError:
        shortened = problem[:_MAX_PROBLEM]  # names in the file can be megabytes long
        return ProbeFileError(f"cannot use probe {self._name!r}: {shortened}; {remedy}")

    def _read(self, data: memoryview, kind: Schema) -> Message:
        return read_message(data, kind, self._budget)

    def _check_model(self, model: Message) -> OnnxInfo:
        if model.integer("ir_version") not in _IR_VERSIONS:
            raise self._error(f"its IR version is {model.integer('ir_version')}; expected 4 to 13")
        if "functions" in model.bytes:
            raise self._error("it defines functions of its own")
        opset = self._check_opsets(model.bytes.get("opset_import", []))
        graph = self._read(model.view("graph"), GRAPH)
        if "sparse_initializer" in graph.bytes:
            raise self._error("it has sparse weights")
        return OnnxInfo(
            opset=opset,
            operators=self._check_nodes(graph.bytes.get("node", [])),
            inputs=self._values(graph.bytes.get("input", [])),
            outputs=self._values(graph.bytes.get("output", [])),
            metadata=self._metadata(model.bytes.get("metadata_props", [])),
            initializer_bytes=self._check_initializers(graph.bytes.get("initializer", [])),
        )

    def _check_opsets(self, imports: Sequence[memoryview]) -> int:
        versions: list[int] = []
        for data in imports:
            operator_set = self._read(data, OPERATOR_SET)
            domain = operator_set.text("domain")
            if domain not in _DEFAULT_DOMAINS:
                raise self._error(
                    f"it uses operators of domain {domain!r}",
                    "convert it with 'safesteer-edge convert probe', which writes plain ones",
                )
            versions.append(operator_set.integer("version"))
        if len(versions) != 1 or versions[0] not in _OPSETS:
            raise self._error(f"its operator sets are {versions}; expected one from 13 to 24")
        return versions[0]

    def _check_nodes(self, nodes: Sequence[memoryview]) -> frozenset[str]:
        if not 0 < len(nodes) <= self._limits.n_nodes:
            raise self._error(f"it has {len(nodes)} nodes; expected 1 to {self._limits.n_nodes}")
        operators: set[str] = set()
        for data in nodes:
            node = self._read(data, NODE)
            operator = node.text("op_type")
            if operator not in ALLOWED_OPERATORS or node.text("domain") not in _DEFAULT_DOMAINS:
                raise self._error(f"it uses operator {operator!r}, which no probe needs")
            for attribute in node.bytes.get("attribute", []):
                self._check_attribute(operator, self._read(attribute, ATTRIBUTE))
            operators.add(operator)
        return frozenset(operators)

    def _check_attribute(self, operator: str, attribute: Message) -> None:
        where = f"attribute {attribute.text('name')!r} of {operator!r}"
        if "g" in attribute.bytes or "graphs" in attribute.bytes:
            raise self._error(f"{where} is a graph")
        if attribute.integer("type") not in _ATTRIBUTE_TYPES:
            raise self._error(f"{where} is of type {attribute.integer('type')}")
        for name in ("f", "floats"):
            for view in attribute.bytes.get(name, []):
                if not all(map(math.isfinite, floats_of(view))):
                    raise self._error(f"{where} is not finite")
        if "t" in attribute.bytes:
            self._check_tensor(attribute.view("t"), where)

    def _check_initializers(self, tensors: Sequence[memoryview]) -> int:
        """Check the weights and return their size in bytes."""
        if len(tensors) > self._limits.n_tensors:
            raise self._error(f"it has {len(tensors)} weights")
        return sum(self._check_tensor(data, "weight") for data in tensors)

    def _check_tensor(self, data: memoryview, where: str) -> int:
        tensor = self._read(data, TENSOR)
        where = f"{where} {tensor.text('name')!r}"
        if tensor.integer("data_location") or "external_data" in tensor.bytes:
            raise self._error(f"{where} lies in another file", "save the model as one file")
        contents: TensorContents = read_tensor(tensor, where)
        if not all(1 <= size <= self._limits.dimension for size in contents.shape):
            raise self._error(f"{where} has the shape {contents.shape}")
        if contents.values.dtype.kind == "f" and not np.isfinite(contents.values).all():
            raise self._error(f"{where} has numbers that are not finite")
        return contents.values.nbytes

    def _values(self, infos: Sequence[memoryview]) -> tuple[OnnxValue, ...]:
        return tuple(self._value(self._read(data, VALUE_INFO)) for data in infos)

    def _value(self, info: Message) -> OnnxValue:
        """Return an input or output; all of them are tensors of a known number of dimensions."""
        name = info.text("name")
        value_type = self._read(info.view("type"), TYPE)
        tensor_type = self._read(value_type.view("tensor_type"), TENSOR_TYPE)
        element_type = tensor_type.integer("elem_type")
        if element_type not in DATA_TYPES or "shape" not in tensor_type.bytes:
            raise self._error(f"value {name!r} is not a tensor of numbers with a shape")
        shape = self._read(tensor_type.view("shape"), SHAPE)
        dims: list[int | str] = []
        for data in shape.bytes.get("dim", []):
            dimension = self._read(data, DIMENSION)
            is_fixed = "dim_value" in dimension.integers
            dims.append(dimension.integer("dim_value") if is_fixed else dimension.text("dim_param"))
        return OnnxValue(name, DATA_TYPES[element_type], tuple(dims))

    def _metadata(self, pairs: Sequence[memoryview]) -> dict[str, str]:
        if len(pairs) > self._limits.n_metadata:
            raise self._error(f"it has {len(pairs)} metadata entries")
        metadata: dict[str, str] = {}
        for data in pairs:
            pair = self._read(data, STRING_PAIR)
            key, value = pair.text("key"), pair.text("value")
            if key in metadata or key == _SESSION_CONFIG_KEY:
                raise self._error(f"metadata entry {key!r} is not allowed, or there twice")
            if max(len(key), len(value)) > self._limits.text_bytes:
                raise self._error(f"metadata entry {key[:50]!r} is longer than allowed")
            metadata[key] = value
        return metadata


# -- a linear probe's numbers, for those who compute it themselves ---------------------------------

_LINEAR: Final = ["Sub", "Div", "Gemm", "Mul", "Add", "Sigmoid"]  # as `encode_probe` writes one
_LARGEST_EXPONENT: Final = 700.0  # of a score of 0; above 709 exp overflows
# What taking the mean off after the product may round to is this, times 6e-8.
_LARGEST_MEAN: Final = 1000.0


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """sigmoid(state · weights + offset). weights: float32 (n_features,)."""

    weights: NDArray[np.float32]
    offset: float

    def score(self, states: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """float32 (n,) for states (n, n_features); None where a product is not finite."""
        logits: list[float] = np.dot(states, self.weights).tolist()
        if not all(map(math.isfinite, logits)):
            return None
        exponents = (min(-logit - self.offset, _LARGEST_EXPONENT) for logit in logits)
        return np.array([1.0 / (1.0 + math.exp(each)) for each in exponents], dtype=np.float32)


def read_linear_probe(data: bytes) -> LinearProbe | None:
    """A checked probe's numbers, if it is linear and as we write it; None of any other."""
    budget = FieldBudget(OnnxLimits().n_values)
    model = read_message(memoryview(data), MODEL, budget)
    graph = read_message(model.view("graph"), GRAPH, budget)
    nodes = [read_message(each, NODE, budget) for each in graph.bytes["node"]]
    if [node.text("op_type") for node in nodes] != _LINEAR:
        return None
    tensors = [read_message(each, TENSOR, budget) for each in graph.bytes.get("initializer", [])]
    constants: dict[str, NDArray[Any]] = {}
    for tensor in tensors:
        constants[tensor.text("name")] = read_tensor(tensor, "weight").values
    state, others = "hidden_state", list[NDArray[Any]]()
    for node in nodes:
        first, *rest = (str(name, "utf-8") for name in node.bytes["input"])
        if first != state or "attribute" in node.bytes or not constants.keys() >= set(rest):
            return None
        state = str(node.bytes["output"][0], "utf-8")
        others += [constants[name] for name in rest]
    n = others[0].size
    if [each.size for each in others] != [n, n, n, 1, 1, 1] or n == 1:
        return None
    if any(each.dtype != np.float32 for each in others):
        return None
    mean, scale, weights, *numbers = (each.astype(np.float64) for each in others)
    bias, slope, intercept = (float(each[0]) for each in numbers)
    folded = weights / scale * slope
    if not np.abs(mean * folded).sum() < _LARGEST_MEAN:
        return None
    offset = bias * slope + intercept - float(mean @ folded)
    return LinearProbe(folded.astype(np.float32), offset)
