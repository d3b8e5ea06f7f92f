"""Prompt parts to token ids, with control tokens from the template alone.

llama.cpp parses control tokens in a whole prompt, so that `<|im_end|>` typed by a user ends the
turn (ggml-org/llama.cpp#11270, #24382). Here the template's text is cut at control tokens first;
whatever stands between two of them, the template's or a person's, is joined and tokenised as
plain text. For a text without control strings this gives what llama.cpp gives for the whole.

What tokens cannot express stays possible: where a format marks turns with ordinary words (Llama
2's [INST], Vicuna's "USER:"), a user can type those words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from safesteer_edge.errors import EngineError
from safesteer_edge.templates.prompt_parts import MediaPart, PromptPart, ScaffoldPart, TokensPart

# What C's isspace takes, as llama.cpp strips beside LSTRIP and RSTRIP tokens.
_C_SPACE = " \t\n\v\f\r"

Origin = Literal["template", "content", "answer"]


class Vocabulary(Protocol):
    """What tokenising needs to know of a model's vocabulary.

    special_tokens: texts and ids of the tokens with the CONTROL or UNKNOWN attribute, and of other
    markers. strips_left, strips_right: those that swallow white space before or after them (LSTRIP,
    RSTRIP). bos_token_id: begins a text; adds_bos: a prompt begins with it. unknown_token_id: for
    text that the vocabulary cannot write.
    """

    special_tokens: dict[str, int]
    strips_left: frozenset[int]
    strips_right: frozenset[int]
    bos_token_id: int | None
    unknown_token_id: int | None
    adds_bos: bool

    def tokenize_plain(self, text: str, /) -> list[int]:
        """llama_tokenize with add_special = false and parse_special = false."""
        ...


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Tokens that follow one another.

    origin: "template" if the template wrote all of it, "content" if a person or the model wrote
        any of it (so that no control token may be in it), "answer" for tokens that the model
        itself produced earlier.
    """

    token_ids: tuple[int, ...]
    origin: Origin


@dataclass(slots=True)
class _Text:
    """Text between two special tokens, to be tokenised at once."""

    text: str
    has_content: bool


def tokenize_parts(
    parts: Iterable[PromptPart], *, vocabulary: Vocabulary
) -> tuple[TokenSpan | MediaPart, ...]:
    """Return the token ids of a prompt, with its media in their places; no span is empty.

    BOS is put in front where the vocabulary asks for it and the template has not done so. An
    answer's known tokens are used as they are, unless one of them is a special token: then its
    text is tokenised as content.
    Raises EngineError if a plain text cannot be told from a control token.
    Source: llama_vocab::impl::tokenizer_st_partition and ::tokenize (llama.cpp, llama-vocab.cpp).
    """
    special_ids = frozenset(vocabulary.special_tokens.values())
    pieces: list[_Text | int | MediaPart | TokenSpan] = []
    for part in parts:
        if isinstance(part, ScaffoldPart):
            for piece in _cut_at_special(_valid(part.text), vocabulary.special_tokens):
                if isinstance(piece, str):
                    _add_text(pieces, piece, is_content=False)
                else:
                    pieces.append(piece)
        elif isinstance(part, MediaPart):
            pieces.append(part)
        elif isinstance(part, TokensPart) and not special_ids.intersection(part.token_ids):
            pieces.append(TokenSpan(part.token_ids, "answer"))
        else:
            _add_text(pieces, _valid(part.text), is_content=True)
    spans = _to_spans(pieces, vocabulary, special_ids)
    filled = [span for span in spans if isinstance(span, MediaPart) or span.token_ids]
    return tuple(_with_bos(filled, vocabulary))


def _add_text(
    pieces: list[_Text | int | MediaPart | TokenSpan], text: str, *, is_content: bool
) -> None:
    """Add text at the end, joined to the text that is there."""
    last = pieces[-1] if pieces else None
    if isinstance(last, _Text):
        last.text, last.has_content = last.text + text, last.has_content or is_content
    else:
        pieces.append(_Text(text, is_content))


def _to_spans(
    pieces: Sequence[_Text | int | MediaPart | TokenSpan],
    vocabulary: Vocabulary,
    special_ids: frozenset[int],
) -> Iterator[TokenSpan | MediaPart]:
    """Yield spans; what the template wrote is joined to one span up to what it did not."""
    scaffold: list[int] = []
    for piece, before, after in zip(pieces, [None, *pieces], [*pieces[1:], None], strict=False):
        if isinstance(piece, int):
            scaffold.append(piece)
            continue
        if isinstance(piece, _Text):
            text = piece.text
            if isinstance(before, int) and before in vocabulary.strips_right:
                text = text.lstrip(_C_SPACE)
            if isinstance(after, int) and after in vocabulary.strips_left:
                text = text.rstrip(_C_SPACE)
            token_ids = _tokenize_plain(text, vocabulary, special_ids)
            if not piece.has_content:
                scaffold += token_ids
                continue
            piece = TokenSpan(tuple(token_ids), "content")
        yield TokenSpan(tuple(scaffold), "template")
        yield piece
        scaffold = []
    yield TokenSpan(tuple(scaffold), "template")


def _tokenize_plain(
    text: str, vocabulary: Vocabulary, special_ids: frozenset[int]
) -> Sequence[int]:
    """Tokenise text in which no control token is meant, and see to it that none comes out.

    SentencePiece vocabularies look merged pieces up by their text alone, so that '</s>' can come
    out as the control token with parse_special off too. Such a text is cut inside the string.
    """
    if not text:
        return []
    token_ids = vocabulary.tokenize_plain(text)
    forbidden = special_ids - {vocabulary.unknown_token_id}
    if not forbidden.intersection(token_ids):
        return token_ids
    pieces = _cut_inside_special(text, vocabulary.special_tokens)
    token_ids = [token_id for piece in pieces for token_id in vocabulary.tokenize_plain(piece)]
    leaked = forbidden.intersection(token_ids)
    if leaked:
        raise EngineError(
            f"cannot tokenise a text as plain: it becomes the control token {min(leaked)}; "
            "remove the text that looks like one"
        )
    return token_ids


def _cut_at_special(text: str, special_tokens: Mapping[str, int]) -> list[str | int]:
    """Cut the template's text at control tokens, longest first, as llama.cpp does."""
    pieces: list[str | int] = [text]
    for special in _longest_first(text, special_tokens):
        cut: list[str | int] = []
        for piece in pieces:
            if isinstance(piece, int):
                cut.append(piece)
                continue
            first, *rest = piece.split(special)
            cut.append(first)
            for following in rest:
                cut += [special_tokens[special], following]
        pieces = cut
    return [piece for piece in pieces if piece != ""]


def _cut_inside_special(text: str, special_tokens: Mapping[str, int]) -> list[str]:
    """Cut a text behind the first character of every control string in it."""
    cuts = {0, len(text)}
    for special in _longest_first(text, special_tokens):
        start = text.find(special)
        while start >= 0:
            cuts.add(start + 1)
            start = text.find(special, start + 1)
    places = sorted(cuts)
    return [text[start:end] for start, end in pairwise(places)]


def _longest_first(text: str, special_tokens: Mapping[str, int]) -> list[str]:
    found = [special for special in special_tokens if special and special in text]
    return sorted(found, key=lambda special: len(special.encode()), reverse=True)


def _with_bos(
    spans: list[TokenSpan | MediaPart], vocabulary: Vocabulary
) -> list[TokenSpan | MediaPart]:
    bos = vocabulary.bos_token_id
    if bos is None or not vocabulary.adds_bos:
        return spans
    first = spans[0] if spans else None
    if not isinstance(first, TokenSpan) or first.origin != "template":
        return [TokenSpan((bos,), "template"), *spans]
    if first.token_ids[0] == bos:
        return spans
    return [TokenSpan((bos, *first.token_ids), "template"), *spans[1:]]


def _valid(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
