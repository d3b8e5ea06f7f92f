"""A GGUF model: loaded, it owns the native handle and answers for its vocabulary; requantized."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from safesteer_edge.engine.native import (
    NativeObject,
    forget_native_errors,
    lib,
    must_avoid_extra_buffer_types,
    native_error_cause,
    start_backend,
)
from safesteer_edge.errors import EngineError, ModelFileError

_PIECE_BUFFER_BYTES = 64
_NO_TOKEN = -1
# Hugging Face's names and GGUF's, which has one of them misspelt.
_NAMED = (("unk", "unknown"), ("pad", "padding"), ("sep", "seperator"), ("mask", "mask"))
# Tokens that open and close turns, though their vocabularies have them as USER_DEFINED, which
# llama.cpp finds in plain text too: gpt-oss's <|start|>, DeepSeek-R1's <｜User｜>.
_MARKER = re.compile("<[|｜][^ ]+>|<[^ ]+[|｜]>")


class NativeModel(NativeObject):
    """One GGUF model in memory. Implements `templates.special_tokens.Vocabulary`.

    bos_token_id, eos_token_id, unknown_token_id: None where the vocabulary has none. adds_bos:
    prompts begin with BOS. special_tokens: the ids of the CONTROL and UNKNOWN tokens and of other
    markers by their text: what plain text must never become. strips_left, strips_right: those of
    them that swallow the white space before or after them.
    Not thread-safe while loading or closing. `close()` twice is safe; close contexts first.
    """

    def __init__(self, path: Path, *, n_gpu_layers: int = 0) -> None:
        """Load the file. Run the pre-check (`formats.model_file`) first.

        Raises ModelFileError if llama.cpp refuses it.
        """
        start_backend()
        forget_native_errors()
        self.path = path
        self._what = f"model {str(path)!r}"
        self.is_offloaded = n_gpu_layers > 0 and bool(lib.llama_supports_gpu_offload())
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.use_extra_bufts = not must_avoid_extra_buffer_types()
        model_handle = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model_handle:
            raise ModelFileError(
                f"cannot load {str(path)!r}: llama.cpp refuses it ({native_error_cause()}); "
                "check that the file is complete and that this version knows its architecture"
            )
        self._own(model_handle, lib.llama_model_free)
        self._vocab_handle = lib.llama_model_get_vocab(model_handle)
        if not self._vocab_handle:
            self.close()
            raise ModelFileError(f"cannot use {str(path)!r}: it has no vocabulary")
        # Asked for at every step, with cold caches: remembered by token.
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._ends: dict[int, bool] = {}
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab_handle)
        self.n_embd: int = lib.llama_model_n_embd(model_handle)
        self.n_layer: int = lib.llama_model_n_layer(model_handle)
        # Recurrent state cannot be rolled back by one token (llama_memory_seq_rm returns false).
        self.has_recurrent_state = bool(
            lib.llama_model_is_recurrent(model_handle) or lib.llama_model_is_hybrid(model_handle)
        )
        self.bos_token_id = _token_or_none(lib.llama_vocab_bos(self._vocab_handle))
        self.eos_token_id = _token_or_none(lib.llama_vocab_eos(self._vocab_handle))
        unknown = self._metadata("tokenizer.ggml.unknown_token_id")
        self.unknown_token_id = int(unknown) if unknown.isdecimal() else None
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self._vocab_handle))
        self._read_special_tokens()

    # -- vocabulary ---------------------------------------------------------------------------

    def tokenize_plain(self, text: str) -> list[int]:
        """Token ids of plain text: control-token strings in it stay text; no BOS is added."""
        return self._tokenize(text, parse_special=False)

    def tokenize_trusted(self, text: str) -> list[int]:
        """Token ids of text that may hold control tokens. Never for text that a user wrote."""
        return self._tokenize(text, parse_special=True)

    def _tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 16
        while True:
            buffer = (lib.llama_token * capacity)()
            n_tokens = lib.llama_tokenize(
                self.vocab_handle, data, len(data), buffer, capacity, False, parse_special
            )
            if n_tokens >= 0:
                return list(buffer[:n_tokens])
            capacity = -n_tokens  # llama.h: the negative of the size that is needed

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for (may be a part of a UTF-8 character).

        special: write control tokens as their text instead of as nothing.
        """
        _ = self.handle  # raises if it is closed
        cached = self._pieces.get((token_id, special))
        if cached is None:
            cached = self._pieces[token_id, special] = self._native_piece(token_id, special=special)
        return cached

    def _native_piece(self, token_id: int, *, special: bool) -> bytes:
        capacity = _PIECE_BUFFER_BYTES
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            n_bytes = lib.llama_token_to_piece(
                self.vocab_handle, token_id, buffer, capacity, 0, special
            )
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            capacity = -n_bytes

    def is_end_of_generation(self, token_id: int) -> bool:
        """True for the tokens that end an answer (EOS, EOT, …)."""
        vocab = self.vocab_handle
        cached = self._ends.get(token_id)
        if cached is None:
            cached = bool(lib.llama_vocab_is_eog(vocab, token_id))
            self._ends[token_id] = cached
        return cached

    def token_text(self, token_id: int | None) -> str:
        """The vocabulary's own text of a token ('' for None)."""
        if token_id is None:
            return ""
        return lib.llama_vocab_get_text(self.vocab_handle, token_id).decode("utf-8", "replace")

    @property
    def named_tokens(self) -> dict[str, str]:
        """Texts of the tokens that chat templates know by other names than bos and eos."""
        ids = {name: self._metadata(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED}
        return {
            f"{name}_token": self.token_text(int(token_id))
            for name, token_id in ids.items()
            if token_id.isdecimal() and int(token_id) < self.n_vocab
        }

    def _metadata(self, key: str) -> str:
        """A short metadata value as llama.cpp prints it, '' for none."""
        buffer = ctypes.create_string_buffer(_PIECE_BUFFER_BYTES)
        lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _read_special_tokens(self) -> None:
        always = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        wanted = always | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        self.special_tokens: dict[str, int] = {}
        strips: dict[int, set[int]] = {
            lib.LLAMA_TOKEN_ATTR_LSTRIP: set(),
            lib.LLAMA_TOKEN_ATTR_RSTRIP: set(),
        }
        for token_id in range(self.n_vocab):
            attributes = lib.llama_vocab_get_attr(self._vocab_handle, token_id)
            if not attributes & wanted:
                continue
            text = self.token_text(token_id)
            if not attributes & always and not _MARKER.fullmatch(text):
                continue
            if text:
                self.special_tokens[text] = token_id
            for flag, token_ids in strips.items():
                if attributes & flag:
                    token_ids.add(token_id)
        self.strips_left, self.strips_right = map(frozenset, strips.values())

    @property
    def vocab_handle(self) -> Any:
        """The vocabulary, for this package alone. Raises EngineError after `close()`."""
        _ = self.handle
        return self._vocab_handle


def _token_or_none(token_id: int) -> int | None:
    return None if token_id == _NO_TOKEN else token_id


# -- another quantization of a model file, written by llama.cpp ------------------------------------

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
