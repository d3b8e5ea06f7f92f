"""The packages of a wheel: all folders of modules, and two that stand beside them."""

from setuptools import find_packages, setup

BESIDE = {"safesteer_edge.converters", "safesteer_edge.models"}

setup(packages=sorted(BESIDE.union(find_packages(include=["safesteer_edge", "safesteer_edge.*"]))))
