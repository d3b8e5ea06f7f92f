"""The tokens and text of an answer, split into what is settled and what may be taken back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class Transcript:
    """Grows by tokens. `settle` lets text out for good, `drop_unsettled` forgets the rest.

    A token that ends inside a UTF-8 character is settled together with the token that completes
    it: else taking the latter back would leave half a character in the sequence, unseen.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_whole = (0, 0)  # tokens and characters up to the last whole character
        self._n_settled_tokens = 0
        self._n_settled_characters = 0
        self._n_end_tokens = 0

    def add(self, token_id: int, piece: bytes, *, is_end: bool) -> str:
        """Add a token and return the text that it adds; the end token completes the text."""
        if is_end:
            self._n_end_tokens += 1
            added = self._decoder.decode(b"", final=True)
        else:
            self.token_ids.append(token_id)
            added = self._decoder.decode(piece)
        self.text += added
        n_incomplete_bytes = len(self._decoder.getstate()[0])
        if not n_incomplete_bytes:
            self._n_whole = (len(self.token_ids), len(self.text))
        return added

    def begin_with(self, text: str, token_ids: Sequence[int], pieces: Iterable[bytes]) -> None:
        """Start from what was said before: it is settled. pieces: of its tokens, in order."""
        self.text = text
        self.token_ids.extend(token_ids)
        for piece in pieces:  # the last may end inside a character, which the next token completes
            self._decoder.decode(piece)
        self.settle(is_over=True)

    def settle(self, *, is_over: bool = False) -> str:
        """Return the text that became settled just now. is_over: no more tokens will come."""
        if is_over:
            self._n_whole = (len(self.token_ids), len(self.text))
        already_settled = self._n_settled_characters
        self._n_settled_tokens, self._n_settled_characters = self._n_whole
        return self.text[already_settled : self._n_settled_characters]

    def drop_unsettled(self) -> int:
        """Forget the unsettled tail; returns how many tokens of the sequence it was."""
        n_dropped = len(self.token_ids) - self._n_settled_tokens + self._n_end_tokens
        del self.token_ids[self._n_settled_tokens :]
        self.text = self.text[: self._n_settled_characters]
        self._n_end_tokens = 0
        self._decoder.reset()
        return n_dropped

    def append_refusal(self, text: str, token_ids: Sequence[int]) -> None:
        """Put a refusal at the end."""
        self.text += text
        self.token_ids.extend(token_ids)
