"""Tiny random models that real llama.cpp loads: files of under a megabyte, written in milliseconds.

They have the tensor names, the metadata and the tokenizer of the real thing, so that tests drive
the native library and no stand-in. The same seed gives the same weights in every quantization.
"""

from __future__ import annotations

from tests.tiny_models.language_model import write_tiny_llama, write_tiny_qwen2
from tests.tiny_models.mamba import write_tiny_mamba
from tests.tiny_models.projector import write_tiny_projector
from tests.tiny_models.vocabulary import (
    CHATML,
    ENDOFTEXT_ID,
    FIRST_BYTE_ID,
    IM_END_ID,
    IM_START_ID,
    IMG_END_ID,
    IMG_ID,
    QWEN25,
    TinyVocabulary,
    tiny_vocabulary,
)

__all__ = [
    "CHATML",
    "ENDOFTEXT_ID",
    "FIRST_BYTE_ID",
    "IMG_END_ID",
    "IMG_ID",
    "IM_END_ID",
    "IM_START_ID",
    "QWEN25",
    "TinyVocabulary",
    "tiny_vocabulary",
    "write_tiny_llama",
    "write_tiny_mamba",
    "write_tiny_projector",
    "write_tiny_qwen2",
]
