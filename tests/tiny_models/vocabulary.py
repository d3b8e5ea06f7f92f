"""A real byte-level BPE vocabulary of 320 tokens, in the form of GPT-2's and SmolLM2's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from gguf import GGUFWriter, TokenType

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2.5's own (Apache 2.0), which offers tools.
QWEN25 = Path(__file__).with_name("qwen25.jinja").read_text("utf-8")

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>")
ENDOFTEXT_ID, IM_START_ID, IM_END_ID, IMG_ID, IMG_END_ID = range(len(CONTROL_TOKENS))
FIRST_BYTE_ID = len(CONTROL_TOKENS)

# Pieces that become one token each. Merging them, shortest parts first, gives 59 tokens.
ENGLISH_PIECES = (
    *("in", "er", "on", "at", "ing", "ou", "an", "or", "en", "is", " a", " the", " to", " of"),
    *(" and", " you", " can", " how", " is", " in", " I", " not", " it", " help", " sorry"),
    *(" make", " image", " for", " with", " be", "es", "'t"),
)


@dataclass(frozen=True, slots=True)
class TinyVocabulary:
    """Control tokens, then the 256 bytes, then one token per merge.

    tokens: in GPT-2's alphabet (a space is 'Ġ'), by token id.
    merges: 'left right' pairs, by rank.
    """

    tokens: tuple[str, ...]
    merges: tuple[str, ...]

    @property
    def token_types(self) -> tuple[TokenType, ...]:
        n_text = len(self.tokens) - len(CONTROL_TOKENS)
        return (TokenType.CONTROL,) * len(CONTROL_TOKENS) + (TokenType.NORMAL,) * n_text

    @property
    def n_control(self) -> int:
        return len(CONTROL_TOKENS)

    def is_printable(self, token_id: int) -> bool:
        """Whether the token is printable ASCII: an answer made of such tokens is readable."""
        text = self.tokens[token_id].replace("Ġ", " ")
        return token_id >= FIRST_BYTE_ID and text.isascii() and text.isprintable()

    def add_to(self, writer: GGUFWriter, chat_template: str | None) -> None:
        """Write the tokenizer.* metadata; the end-of-sequence token is <|im_end|>."""
        writer.add_vocab_size(len(self.tokens))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.token_types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(IM_START_ID)
        writer.add_eos_token_id(IM_END_ID)
        writer.add_pad_token_id(IM_END_ID)
        writer.add_add_bos_token(False)
        if chat_template is not None:
            writer.add_chat_template(chat_template)


@cache
def tiny_vocabulary(extra_vocab: tuple[str, ...] = ()) -> TinyVocabulary:
    """The tiny models' vocabulary, each piece of `extra_vocab` added as one text token.

    The parts that a piece is merged from become tokens too, so that every token is reachable.
    llama.cpp splits text before it merges: a piece is one word, with or without its leading space.
    """
    alphabet = byte_alphabet()
    merges: dict[tuple[str, str], int] = {}
    for piece in (*ENGLISH_PIECES, *extra_vocab):
        symbols = [alphabet[byte] for byte in piece.encode()]
        while len(merged := merge(symbols, merges)) > 1:
            merges[merged[0], merged[1]] = len(merges)
    return TinyVocabulary(
        tokens=(*CONTROL_TOKENS, *alphabet, *(left + right for left, right in merges)),
        merges=tuple(f"{left} {right}" for left, right in merges),
    )


def merge(symbols: list[str], merges: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encode one word: merge the pair of the lowest rank, leftmost first."""
    symbols = list(symbols)
    while True:
        ranked = [(merges[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in merges]
        if not ranked:
            return symbols
        _, at = min(ranked)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def byte_alphabet() -> tuple[str, ...]:
    """One visible character per byte value: GPT-2's `bytes_to_unicode`."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return tuple(
        chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)
    )
