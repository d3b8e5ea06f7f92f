"""What all tests of the engine need."""

from __future__ import annotations

import ctypes

import pytest
from llama_cpp import llama_cpp as lib
from llama_cpp import mtmd_cpp

from safesteer_edge.engine import native


@pytest.fixture(autouse=True)
def native_logs_reach_the_engine() -> None:
    """Tests elsewhere silence llama.cpp for the process; its error lines are quoted here."""
    native.start_backend()
    lib.llama_log_set(native._forward_log, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_helper_log_set(native._forward_log, ctypes.c_void_p(0))
