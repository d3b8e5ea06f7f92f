"""Tokenizers of the families: byte-level BPE and SentencePiece, each with its own control tokens.

Both have the control tokens first, then the 256 bytes, then pieces of English.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gguf import GGUFWriter, TokenType

from tests.tiny_models.vocabulary import ENGLISH_PIECES, byte_alphabet, merge

_SPACE = "▁"  # SentencePiece's


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What differs between the families.

    model, pre: as in tokenizer.ggml.model and .pre. control: texts of the control tokens, by id.
    bos, eos: of these. adds_bos: prompts begin with BOS. pieces: more text tokens.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    control: tuple[str, ...]
    bos: str
    eos: str
    adds_bos: bool = False
    unknown: str | None = None
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FamilyVocabulary:
    """The tokens of one tokenizer. merges: of byte-level BPE; scores: of SentencePiece."""

    tokenizer: Tokenizer
    tokens: tuple[str, ...]
    token_types: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def n_control(self) -> int:
        return len(self.tokenizer.control)

    def is_printable(self, token_id: int) -> bool:
        """Whether the token is printable ASCII."""
        if self.token_types[token_id] is not TokenType.NORMAL:
            return False
        text = self.tokens[token_id].replace("Ġ", " ").replace(_SPACE, " ")
        return text.isascii() and text.isprintable()

    def add_to(self, writer: GGUFWriter, chat_template: str | None) -> None:
        """Write the tokenizer.* metadata."""
        tokenizer = self.tokenizer
        writer.add_vocab_size(len(self.tokens))
        writer.add_tokenizer_model(tokenizer.model)
        writer.add_tokenizer_pre(tokenizer.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.token_types)
        if tokenizer.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
        writer.add_bos_token_id(tokenizer.control.index(tokenizer.bos))
        writer.add_eos_token_id(tokenizer.control.index(tokenizer.eos))
        if tokenizer.unknown is not None:
            writer.add_unk_token_id(tokenizer.control.index(tokenizer.unknown))
        writer.add_add_bos_token(tokenizer.adds_bos)
        if chat_template is not None:
            writer.add_chat_template(chat_template)


def make_vocabulary(tokenizer: Tokenizer) -> FamilyVocabulary:
    """Return the vocabulary of a tokenizer, about 320 tokens."""
    return _byte_level(tokenizer) if tokenizer.model == "gpt2" else _sentence_piece(tokenizer)


def _control_types(tokenizer: Tokenizer) -> tuple[TokenType, ...]:
    return tuple(
        TokenType.UNKNOWN if text == tokenizer.unknown else TokenType.CONTROL
        for text in tokenizer.control
    )


def _byte_level(tokenizer: Tokenizer) -> FamilyVocabulary:
    alphabet = byte_alphabet()
    merges = _merges([[alphabet[b] for b in piece.encode()] for piece in _all_pieces(tokenizer)])
    n_text = len(alphabet) + len(merges)
    return FamilyVocabulary(
        tokenizer,
        (*tokenizer.control, *alphabet, *(left + right for left, right in merges)),
        (*_control_types(tokenizer), *[TokenType.NORMAL] * n_text),
        merges=tuple(f"{left} {right}" for left, right in merges),
    )


def _sentence_piece(tokenizer: Tokenizer) -> FamilyVocabulary:
    """Bytes for what has no piece, then printable characters, then pieces; a higher score first."""
    characters = [_SPACE, "\n", *map(chr, range(ord("!"), 127))]
    pieces = [piece.replace(" ", _SPACE) for piece in _all_pieces(tokenizer)]
    merged = [left + right for left, right in _merges([list(piece) for piece in pieces])]
    texts = [*merged, *characters]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    return FamilyVocabulary(
        tokenizer,
        (*tokenizer.control, *byte_tokens, *texts),
        (
            *_control_types(tokenizer),
            *[TokenType.BYTE] * len(byte_tokens),
            *[TokenType.NORMAL] * len(texts),
        ),
        scores=(
            *[0.0] * (len(tokenizer.control) + len(byte_tokens)),
            *(-float(rank) for rank in range(len(texts))),
        ),
    )


def _all_pieces(tokenizer: Tokenizer) -> tuple[str, ...]:
    return (*ENGLISH_PIECES, *tokenizer.pieces)


def _merges(words: list[list[str]]) -> list[tuple[str, str]]:
    """Pairs to merge, by rank, so that each word becomes one token."""
    ranks: dict[tuple[str, str], int] = {}
    for symbols in words:
        while len(merged := merge(symbols, ranks)) > 1:
            ranks[merged[0], merged[1]] = len(ranks)
    return list(ranks)
