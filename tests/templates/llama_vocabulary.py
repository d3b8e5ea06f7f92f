"""llama.cpp's own tokenizer, loaded without weights: the oracle of the tokenising tests."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import llama_cpp


class LlamaVocabulary:
    """The `Vocabulary` protocol on llama.cpp, and its tokenizer for whole prompts."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert model, f"cannot load {path}"
        self._model = model
        template = llama_cpp.llama_model_chat_template(model, None)
        self.chat_template = template.decode() if template else None
        vocab = llama_cpp.llama_model_get_vocab(model)
        assert vocab
        self._vocab = vocab
        attributes = {
            token_id: llama_cpp.llama_vocab_get_attr(self._vocab, token_id)
            for token_id in range(llama_cpp.llama_vocab_n_tokens(self._vocab))
        }
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        self.special_tokens = {
            llama_cpp.llama_vocab_get_text(self._vocab, token_id).decode(): token_id
            for token_id, attribute in attributes.items()
            if attribute & special
        }
        self.strips_left = _with(attributes, llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP)
        self.strips_right = _with(attributes, llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP)
        self.unknown_token_id = next(
            iter(sorted(_with(attributes, llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN))), None
        )
        bos = cast("int", llama_cpp.llama_vocab_bos(self._vocab))
        self.bos_token_id = bos if bos >= 0 else None
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))

    def tokenize_plain(self, text: str) -> list[int]:
        return self._tokenize(text, add_special=False, parse_special=False)

    def tokenize_prompt(self, text: str) -> list[int]:
        """Tokenise a whole rendered prompt, as llama.cpp's own programs do."""
        return self._tokenize(text, add_special=True, parse_special=True)

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode()
        capacity = len(data) + 8
        buffer = (llama_cpp.llama_token * capacity)()
        n_tokens = llama_cpp.llama_tokenize(
            self._vocab, data, len(data), buffer, capacity, add_special, parse_special
        )
        assert n_tokens >= 0
        return list(buffer[:n_tokens])


def _with(attributes: dict[int, int], flag: int) -> frozenset[int]:
    return frozenset(token_id for token_id, value in attributes.items() if value & flag)
