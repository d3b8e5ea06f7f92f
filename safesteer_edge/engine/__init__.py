"""llama.cpp: the only package that imports llama_cpp, and the owner of every native handle."""

import importlib
import os

from safesteer_edge.processes.native_libraries import spinning_briefly

with spinning_briefly(os.environ):  # OpenMP, which this loads, looks at its settings once
    importlib.import_module("llama_cpp")
