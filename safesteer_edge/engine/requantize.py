"""Requantizing a model file with llama.cpp."""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, get_args

from safesteer_edge.engine.native import (
    forget_native_errors,
    lib,
    native_error_cause,
    start_backend,
)
from safesteer_edge.errors import EngineError

TargetType = Literal["Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
TARGET_TYPES: Final[tuple[TargetType, ...]] = get_args(TargetType)
# enum llama_ftype (llama.h)
_FILE_TYPE_IDS: Final[Mapping[TargetType, int]] = {
    "Q8_0": 7,
    "Q5_K_M": 17,
    "Q4_K_M": 15,
    "Q3_K_M": 12,
    "Q2_K": 10,
}


def requantize(source: Path, target: Path, target_type: TargetType, *, n_threads: int) -> None:
    """Write the model in another quantization, or leave what is there as it is.

    The source may be quantized itself; what that lost stays lost. Rows that are no multiple of 256
    long cannot be stored in K-quants: llama.cpp takes Q5_1, Q5_0 or Q4_0 for those. Some seconds
    for 100 MB. Raises EngineError if llama.cpp refuses, OSError where the folder cannot be written.
    """
    start_backend()
    parameters = lib.llama_model_quantize_default_params()
    parameters.nthread = n_threads
    parameters.ftype = _FILE_TYPE_IDS[target_type]
    parameters.allow_requantize = True
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    forget_native_errors()
    try:
        # uint32_t llama_model_quantize(const char * fname_inp, const char * fname_out,
        #                               const llama_model_quantize_params * params);
        failed = lib.llama_model_quantize(
            os.fsencode(source), os.fsencode(temporary), ctypes.byref(parameters)
        )
        if failed:
            raise EngineError(
                f"llama.cpp cannot requantize {str(source)!r} to {target_type}: "
                f"{native_error_cause('it does not say why')}; check the free disk space, and "
                "the file with 'safesteer-edge models verify'"
            )
        temporary.replace(target)
    except BaseException:  # an interrupt must not leave the temporary file behind either
        temporary.unlink(missing_ok=True)
        raise
