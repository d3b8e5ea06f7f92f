"""The part of ONNX's protobuf schema that a probe may use; every other field is refused.

Source: onnx/onnx.proto at v1.21, messages of the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from safesteer_edge.formats.protobuf_wire import Field, Kind

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
