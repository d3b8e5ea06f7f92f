"""The packages of a wheel: all folders of modules, and two that stand beside them; and its C."""

from setuptools import Extension, find_packages, setup

BESIDE = {"safesteer_edge.converters", "safesteer_edge.models"}
# Without a compiler the same is done in Python, slower: `safesteer-edge doctor` says so.
NODE_CALLBACK = Extension(
    "safesteer_edge.engine._node_callback",
    ["safesteer_edge/engine/_node_callback.c"],
    define_macros=[("Py_LIMITED_API", "0x030A0000")],
    py_limited_api=True,
    optional=True,
)

setup(
    packages=sorted(BESIDE.union(find_packages(include=["safesteer_edge", "safesteer_edge.*"]))),
    ext_modules=[NODE_CALLBACK],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
