"""The ONNX pre-check: what a probe may be, and everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.onnx_file import ALLOWED_OPERATORS, OnnxLimits, OnnxValue, check_onnx

WEIGHTS = np.linspace(-1, 1, 8, dtype=np.float32).reshape(8, 1)


def linear_model() -> Any:
    """sigmoid(hidden_state @ weights), as onnx's own object."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["hidden_state", "weights"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["harmful_score"]),
        ],
        "probe",
        [helper.make_tensor_value_info("hidden_state", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("harmful_score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"layer": "18"})
    return model


def changed(change: Callable[[Any], object]) -> bytes:
    model = linear_model()
    change(model)
    return model.SerializeToString()


def assert_refused(data: bytes, reason: str, limits: OnnxLimits | None = None):
    with pytest.raises(ProbeFileError, match=reason) as caught:
        check_onnx(data, name="my/probe.onnx", limits=limits)
    assert "'my/probe.onnx'" in str(caught.value)
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_facts_of_a_graph_are_returned():
    info = check_onnx(linear_model().SerializeToString(), name="probe")
    assert (info.opset, info.operators) == (17, frozenset({"MatMul", "Sigmoid"}))
    assert info.inputs == (OnnxValue("hidden_state", "float32", ("n", 8)),)
    assert info.outputs == (("harmful_score", "float32", ("n", 1)),)
    assert dict(info.metadata) == {"layer": "18"}
    assert info.initializer_bytes == 32


def test_a_free_dimension_may_have_no_name():
    def unname(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")

    assert check_onnx(changed(unname), name="probe").inputs[0].dims == ("", 8)


def first_node(model: Any) -> Any:
    return model.graph.node[0]


def add_attribute(value: Any, kind: int | None = None) -> Callable[[Any], object]:
    return lambda model: first_node(model).attribute.append(
        helper.make_attribute("extra", value, attr_type=kind)
    )


def add_initializer(tensor: Any) -> Callable[[Any], object]:
    return lambda model: model.graph.initializer.append(tensor)


def external_tensor() -> Any:
    tensor = numpy_helper.from_array(WEIGHTS, "far")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    tensor.ClearField("raw_data")
    return tensor


def with_raw(raw: bytes, dims: tuple[int, ...], data_type: int = TensorProto.FLOAT) -> Any:
    tensor = TensorProto(name="w", data_type=data_type, raw_data=raw)
    tensor.dims.extend(dims)
    return tensor


SUBGRAPH = helper.make_graph([], "inner", [], [])
FUNCTION = helper.make_function("me", "F", ["x"], ["y"], [], [helper.make_opsetid("", 17)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "ir_version", 3), "IR version is 3"),
        (lambda m: setattr(m, "ir_version", 99), "IR version is 99"),
        (lambda m: m.functions.append(FUNCTION), "functions of its own"),
        (lambda m: m.training_info.add(), "field 20"),
        (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)), "'ai.onnx.ml'"),
        (lambda m: m.opset_import.append(helper.make_opsetid("", 17)), r"\[17, 17\]"),
        (lambda m: m.ClearField("opset_import"), r"operator sets are \[\]"),
        (lambda m: setattr(m.opset_import[0], "version", 12), r"\[12\]"),
        (lambda m: setattr(m.opset_import[0], "version", 25), r"\[25\]"),
        (lambda m: m.ClearField("graph"), "0 nodes"),
        (lambda m: m.graph.node.extend([first_node(m)] * 255), "257 nodes"),
        (lambda m: setattr(first_node(m), "op_type", "Loop"), "'Loop'"),
        (lambda m: setattr(first_node(m), "op_type", "PyOp"), "'PyOp'"),
        (lambda m: setattr(first_node(m), "domain", "com.microsoft"), "'MatMul'"),
        (lambda m: setattr(first_node(m), "overload", "x"), "field 8"),
        (add_attribute(SUBGRAPH), "'extra' of 'MatMul' is a graph"),
        (add_attribute([SUBGRAPH]), "is a graph"),
        (add_attribute(float("inf")), "is not finite"),
        (add_attribute([1.0, float("nan")]), "is not finite"),
        (add_attribute(external_tensor()), "lies in another file"),
        (add_attribute(helper.make_tensor_type_proto(1, [1])), "field 14"),
        (add_initializer(external_tensor()), "'far' lies in another file"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse weights"),
        (lambda m: m.graph.quantization_annotation.add(), "field 14"),
        (lambda m: m.graph.initializer.extend([with_raw(bytes(4), (1,))] * 256), "257 weights"),
        (add_initializer(with_raw(bytes(8), (3,))), r"shape \(3,\) has 2 numbers"),
        (add_initializer(with_raw(bytes(7), (1,))), "part of a number"),
        (add_initializer(with_raw(bytes(4), (-1, -1))), r"shape \(-1, -1\)"),
        (add_initializer(with_raw(b"", (0,))), r"shape \(0,\)"),
        (add_initializer(with_raw(bytes(65_537), (65_537,), 2)), r"shape \(65537,\)"),
        (add_initializer(with_raw(b"", (2**40, 2**40))), "0 numbers"),
        (add_initializer(with_raw(bytes(4), (1,), TensorProto.STRING)), "data type 8"),
        (add_initializer(with_raw(bytes(4), (1,), 2**20)), "data type 1048576"),
        (add_initializer(TensorProto(name="w", data_type=1, dims=[1])), r"numbers in \[\]"),
        (
            add_initializer(TensorProto(name="w", data_type=1, dims=[1], int32_data=[1])),
            r"numbers in \['int32_data'\]",
        ),
        (
            add_initializer(TensorProto(name="w", data_type=3, dims=[1], int32_data=[128])),
            "no int8",
        ),
        (lambda m: m.graph.input[0].ClearField("type"), "not a tensor of numbers"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "with a shape"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8), "tensor of numbers"),
        (lambda m: helper.set_model_props(m, {"ort_config": "{}"}), "'ort_config'"),
        (lambda m: m.metadata_props.append(m.metadata_props[0]), "there twice"),
        (lambda m: helper.set_model_props(m, {"k": "x" * 70_000}), "longer than allowed"),
        (lambda m: helper.set_model_props(m, {str(i): "" for i in range(65)}), "65 metadata"),
    ],
)
def test_what_no_probe_needs_is_refused(change: Callable[[Any], object], reason: str):
    assert_refused(changed(change), reason)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_weights_that_are_not_finite_are_named(dtype: type, value: float):
    array = np.array([1.0, value], dtype=dtype)
    assert_refused(changed(add_initializer(numpy_helper.from_array(array, "bad"))), "'bad' has")


def test_weights_outside_raw_data_are_read_too():
    tensor = helper.make_tensor("bad", TensorProto.FLOAT, [2], [1.0, float("nan")])
    assert tensor.float_data
    assert_refused(changed(add_initializer(tensor)), "'bad' has numbers that are not finite")
    bits = helper.make_tensor("bad", TensorProto.FLOAT16, [1], [float("inf")])
    assert_refused(changed(add_initializer(bits)), "not finite")
    good = helper.make_tensor("good", TensorProto.INT64, [2], [-1, 2**62])
    assert check_onnx(changed(add_initializer(good)), name="p").initializer_bytes == 32 + 16


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "i8", "?", "f2", "f4", "f8"])
def test_every_allowed_type_of_number_is_read(dtype: str):
    tensor = numpy_helper.from_array(np.ones((2, 3), dtype=dtype), "w")
    info = check_onnx(changed(add_initializer(tensor)), name="probe")
    assert info.initializer_bytes == 32 + 6 * np.dtype(dtype).itemsize


def test_all_allowed_operators_exist():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert known >= ALLOWED_OPERATORS
    assert not ALLOWED_OPERATORS & {"If", "Loop", "Scan", "SequenceMap"}


def test_sizes_are_limited():
    data = linear_model().SerializeToString()
    assert_refused(b"", "0 bytes")
    assert_refused(data, f"{len(data)} bytes", OnnxLimits(size_bytes=100))
    assert_refused(data, "too many separate values", OnnxLimits(n_values=10))


def test_a_file_of_single_byte_fields_is_given_up_early():
    no_field = b"\x98\x06\x01"  # which nobody finds who has given up before
    assert_refused(b"\x42\x00" * 1000 + no_field, "field 99")
    assert_refused(b"\x42\x00" * (8 << 20) + no_field, "too many separate values")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08", "no end"),
        (b"\x08" + b"\xff" * 10, "more than 64 bits"),
        (b"\x3a\x05ab", "longer than what is left"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than what is left"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x0d\x00\x00\x00\x00", "stored as 32-bit"),
        (b"\x08\x08\x08\x08", "'ir_version' occurs twice"),
        (b"\x3a\x00\x3a\x00", "'graph' occurs twice"),
        (b"\x12\x01\xff", "'producer_name' is not UTF-8"),
        (b"\x00\x00", "field 0"),
        (b"\x98\x06\x01", "field 99"),
        (b"PK\x03\x04", "not an ONNX probe"),
        (b"GGUF\x03\0\0\0", "not an ONNX probe"),
    ],
)
def test_bytes_that_parsers_could_read_in_two_ways_are_refused(data: bytes, reason: str):
    assert_refused(data, reason)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_cause_another_error(data: bytes, position: int):
    good = linear_model().SerializeToString()
    for candidate in (data, good[:position] + data + good[position:]):
        try:
            check_onnx(candidate, name="any")
        except ProbeFileError:
            continue
