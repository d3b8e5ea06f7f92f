"""The main sequence of a context: what its KV cache holds, and bringing it to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import MAIN_SEQUENCE, NativeContext
from safesteer_edge.engine.hidden_states import HiddenStateRoute, SpanMeans
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import MediaRun, PromptItem, TokenRun
from safesteer_edge.errors import EngineError, PromptTooLongError


class PrefillCancelledError(EngineError):
    """The prompt's evaluation was stopped between two batches."""


class Entry(NamedTuple):  # one a token: a dataclass takes four times as long to make
    """One token, or one media chunk. key: the token's id, or the chunk's name by content."""

    key: int | str
    n_tokens: int = 1
    n_positions: int = 1
    media: MediaRun | None = None


class MainSequence:
    """Entries in the order of their positions, mirrored in the KV cache of sequence 0.

    n_tokens: KV cells in use. position: of the next token. logits_row: the row of the last decode
    that follows the last entry; None where there are no such logits.
    """

    def __init__(
        self,
        context: NativeContext,
        route: HiddenStateRoute,
        projector: Projector | None,
    ) -> None:
        self._context = context
        self._route = route
        self._projector = projector
        route.attach(context)
        self._entries: list[Entry] = []
        self._n_prompt_entries = 0
        self._n_checkpoint_entries = 0  # 0: there is no checkpoint
        self._control_vector: NDArray[np.float32] | None = None
        self._prompt_vector: NDArray[np.float32] | None = None  # on while prompts are evaluated
        self._means = SpanMeans(())
        self.n_tokens = 0
        self.position = 0
        self.logits_row: int | None = None

    def bring_to(
        self,
        entries: Sequence[Entry],
        *,
        n_lasting: int,
        control_vector: NDArray[np.float32] | None,
        cancelled: Callable[[], bool],
        steers_prompt: bool = False,
        spans: Sequence[range] = (),
    ) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
        """Keep what the cache shares with a prompt and evaluate the rest; see LlamaEngine.prefill.

        n_lasting: entries at its beginning that the next prompt is likely to begin with as well.
        spans: runs of entries whose mean states are wanted; what lies behind the beginning of one
        is evaluated again. Of an empty one it is the state at the last entry.
        Returns the number of tokens that were kept, the state at the last one, (n_features,), and
        the spans' means, (n_spans, n_features).
        """
        self.check_fits(entries)
        self._set_prompt_vector(control_vector if steers_prompt else None)
        self._cut_to(min([self._n_shared(entries), *(span.start for span in spans if span)]))
        n_kept_tokens = self.n_tokens
        self._n_prompt_entries, self._control_vector = len(entries), control_vector
        self._means = SpanMeans([(MAIN_SEQUENCE, span) for span in spans])
        try:
            state = self._evaluate_prompt(entries, cancelled, n_lasting=n_lasting)
            means = self._means.means(np.tile(state, (len(spans), 1)))
        finally:
            self._means = SpanMeans(())
        return n_kept_tokens, state, means

    def n_shared_with(self, token_ids: Sequence[int]) -> int:
        """How many tokens both begin with: their cells can be copied."""
        n_shared = 0
        for entry, token_id in zip(self._entries, token_ids, strict=False):
            if entry.key != token_id:
                break
            n_shared += 1
        return n_shared

    def set_vector_of_answer(self) -> None:
        """Switch the control vector to what it is while the answer is decoded."""
        self._context.set_control_vector(self._control_vector)

    def add_evaluated(self, token_ids: Sequence[int]) -> None:
        """Count tokens whose cells are already in the main sequence."""
        self._entries.extend(map(Entry, token_ids))
        self.n_tokens += len(token_ids)
        self.position += len(token_ids)

    def append(self, token_ids: Sequence[int]) -> None:
        """Evaluate tokens at the end."""
        self._evaluate_entries([*map(Entry, token_ids)])

    def take_back(self, n_tokens: int) -> None:
        """Remove the last n tokens of the answer.

        Raises EngineError if the prompt's last token would go too.
        """
        if n_tokens:
            remaining = self._without_last(n_tokens)
            self._bring_back(remaining, n_kept=len(remaining))
            self.logits_row = None

    def rewind(self, n_tokens: int) -> None:
        """Remove the last n tokens of the answer and evaluate the last kept one, for its logits.

        It goes alone, as it did before, so that it gives the same. Raises as `take_back`.
        """
        remaining = self._without_last(n_tokens)
        self._bring_back(remaining, n_kept=len(remaining) - 1)

    def _without_last(self, n_tokens: int) -> list[Entry]:
        n_remaining = len(self._entries) - n_tokens
        if n_remaining < self._n_prompt_entries:
            raise EngineError(f"cannot take back {n_tokens} tokens: the answer is shorter")
        return self._entries[:n_remaining]

    def _bring_back(self, entries: Sequence[Entry], *, n_kept: int) -> None:
        """Keep the first n of these, or what the memory can keep, and evaluate the others again.

        The control vector is off for the prompt and on for the answer, as it was.
        """
        self._cut_to(n_kept)
        n_prompt = self._n_prompt_entries
        if len(self._entries) < n_prompt:
            self._evaluate_prompt(entries[:n_prompt])
        for entry in entries[len(self._entries) :]:
            self._evaluate_token_run([entry])  # alone: a batch takes other kernels, and rounds

    def check_fits(self, entries: Sequence[Entry]) -> None:
        """Raise PromptTooLongError for a prompt that the context has no room for."""
        if not entries or entries[-1].media is not None:
            raise EngineError("a prompt must end with a text token")
        n_tokens = sum(entry.n_tokens for entry in entries)
        if n_tokens > self.n_room:
            raise PromptTooLongError(
                f"the prompt has {n_tokens} tokens, and a context of {self._context.n_ctx} has "
                f"room for {self.n_room}; shorten it, or raise --ctx"
            )

    @property
    def n_room(self) -> int:
        """Tokens that a prompt can have."""
        return self._context.n_ctx - self._context.n_candidates - 1

    def _set_prompt_vector(self, vector: NDArray[np.float32] | None) -> None:
        """Cells of a prompt that was evaluated under another vector are of no use."""
        old = self._prompt_vector
        is_same = old is vector or (
            old is not None and vector is not None and np.array_equal(old, vector)
        )
        if not is_same:
            self.forget()
            self._prompt_vector = None if vector is None else vector.copy()

    def _n_shared(self, entries: Sequence[Entry]) -> int:
        """Leading entries already in the cache; at least the last is always evaluated again."""
        n_shared = 0
        for have, want in zip(self._entries, entries[:-1], strict=False):
            if have.key != want.key:
                break
            n_shared += 1
        return n_shared

    def _cut_to(self, n_entries: int) -> None:
        """Keep the first n entries; where the memory cannot, those of the checkpoint, or none."""
        if n_entries == len(self._entries):
            return
        self.logits_row = None
        position = sum(entry.n_positions for entry in self._entries[:n_entries])
        if n_entries and self._context.remove_from_sequence(MAIN_SEQUENCE, position, -1):
            self._keep(n_entries)
        elif 0 < self._n_checkpoint_entries <= n_entries:
            self._context.remove_from_sequence(MAIN_SEQUENCE)
            self._context.copy_sequence(self._context.checkpoint_sequence, MAIN_SEQUENCE)
            self._keep(self._n_checkpoint_entries)
        else:
            self.forget()

    def _keep(self, n_entries: int) -> None:
        self._entries = self._entries[:n_entries]
        self.position = sum(entry.n_positions for entry in self._entries)
        self.n_tokens = sum(entry.n_tokens for entry in self._entries)

    def forget(self) -> None:
        """Let nothing of it be reused."""
        self._context.clear()
        self._entries, self.position, self.n_tokens = [], 0, 0
        self._n_checkpoint_entries = 0

    def _set_checkpoint(self) -> None:
        """Keep the state of a memory that cannot roll back; its cells are shared, at no cost."""
        checkpoint = self._context.checkpoint_sequence
        self._context.remove_from_sequence(checkpoint)
        self._context.copy_sequence(MAIN_SEQUENCE, checkpoint)
        self._n_checkpoint_entries = len(self._entries)

    def _evaluate_prompt(
        self,
        entries: Sequence[Entry],
        cancelled: Callable[[], bool] = lambda: False,
        *,
        n_lasting: int = 0,
    ) -> NDArray[np.float32]:
        """Evaluate what the sequence lacks of a prompt; the state at its last token."""
        self._context.set_control_vector(self._prompt_vector)
        # The last token goes alone with the guard off as well: one token and a batch take different
        # kernels, and the guard must not change an answer by rounding.
        self._route.before_prefill()
        if self._context.model.has_recurrent_state and len(self._entries) < n_lasting:
            self._evaluate_entries(entries[len(self._entries) : n_lasting], cancelled, n_outputs=0)
            self._set_checkpoint()
        self._evaluate_entries(entries[len(self._entries) : -1], cancelled, n_outputs=0)
        self._context.set_control_vector(self._control_vector)
        self._route.before_answer()
        self._evaluate_token_run(entries[-1:])
        try:
            return self._route.read(1)[0]
        except EngineError:
            self.forget()  # the graph stopped half way: no later prompt may reuse its cells
            raise

    def _evaluate_entries(
        self,
        entries: Sequence[Entry],
        cancelled: Callable[[], bool] = lambda: False,
        *,
        n_outputs: int = 1,
    ) -> None:
        """n_outputs: of each run of tokens; 0: nobody reads what follows them."""
        run: list[Entry] = []
        for entry in entries:
            if entry.media is not None or len(run) == self._context.n_batch:
                self._evaluate_token_run(run, n_outputs)
                run = []
                if cancelled():
                    raise PrefillCancelledError("stopped while the prompt was being read")
            if entry.media is not None:
                self._evaluate_media(entry, entry.media)
            else:
                run.append(entry)
        self._evaluate_token_run(run, n_outputs)

    def _evaluate_token_run(self, run: Sequence[Entry], n_outputs: int = 1) -> None:
        if not run:
            return
        token_ids = [int(entry.key) for entry in run]
        positions = range(self.position, self.position + len(run))
        places = range(len(self._entries), len(self._entries) + len(run))
        sequences, is_read = [MAIN_SEQUENCE] * len(run), self._means.wants(places)
        if is_read:
            self._route.before_reading(len(run))
            n_outputs = len(run) if self._route.needs_outputs else n_outputs
        self._context.decode(token_ids, positions, sequences, n_outputs=n_outputs)
        if is_read:
            self._means.add(sequences, places, self._route.read(len(run)))
            self._route.before_prefill()
        self._entries.extend(run)
        self.n_tokens += len(run)
        self.position += len(run)
        self.logits_row = len(run) - 1 if n_outputs else None

    def _evaluate_media(self, entry: Entry, media: MediaRun) -> None:
        if self._projector is None:
            raise EngineError("the prompt carries media and no projector is loaded; pass --mmproj")
        try:
            self._projector.evaluate(self._context, media, self.position)
        except EngineError:
            self.forget()  # a part of the chunk may be in the cache
            raise
        self._entries.append(entry)
        self.n_tokens += entry.n_tokens
        self.position += entry.n_positions


def to_entries(items: Sequence[PromptItem]) -> list[Entry]:
    """One entry a token, one a media chunk."""
    entries: list[Entry] = []
    for item in items:
        if isinstance(item, TokenRun):
            entries.extend(map(Entry, item.token_ids))
        else:
            entries.append(Entry(item.key, item.n_tokens, item.n_positions, item))
    return entries
