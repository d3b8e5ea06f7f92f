"""A session: one conversation with one guarded model. The Python API, and what the CLI runs on.

with open_session() as session:
    for event in session.ask("Why is the sky blue?"):
        if isinstance(event, TextDelta):
            print(event.text, end="")
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.chat.conversation import Conversation, MediaContent, Message, TextContent
from safesteer_edge.engine.main_sequence import PrefillCancelledError
from safesteer_edge.engine.prompt_items import PromptItem, TokenRun
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import InputError, MediaError, PromptTooLongError
from safesteer_edge.guard.decoding import ActiveGuard, DecodingLimits, GuardedAnswer
from safesteer_edge.guard.events import (
    Event,
    GuardSummary,
    PrefillDone,
    Refused,
    TextDelta,
    Timings,
    TurnEnded,
    Usage,
)
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.media.images import load_image
from safesteer_edge.media.sounds import load_sound
from safesteer_edge.prompting import Media, prompt_items
from safesteer_edge.runtime import Runtime, open_runtime
from safesteer_edge.session_info import SessionInfo, session_info
from safesteer_edge.settings import SessionSettings


class Session:
    """One conversation. One thread asks; `cancel()` may come from any. Close it, or use `with`."""

    def __init__(self, runtime: Runtime, settings: SessionSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._cancelled = threading.Event()
        self._media: dict[str, Media] = {}
        self._carried_risk = 0.0
        self.conversation = Conversation()

    @property
    def info(self) -> SessionInfo:
        """What runs."""
        return session_info(self._runtime)

    @property
    def policy(self) -> GuardPolicy | None:
        """The guard's numbers as they apply here, tightened by the settings; None: guard off."""
        guard = self._active_guard()
        return guard.policy if guard else None

    def cancel(self) -> None:
        """Stop the answer that is being decoded, within one token. Any thread, or a signal."""
        self._cancelled.set()

    def reset(self) -> None:
        """Start a new conversation: its messages, media and risk are forgotten."""
        self.conversation = Conversation()
        self._media.clear()
        self._carried_risk = 0.0

    def ask(
        self,
        text: str,
        *,
        images: Sequence[Path] = (),
        sounds: Sequence[Path] = (),
        system: str | None = None,
        answer_prefix: str = "",
    ) -> Generator[Event, None, None]:
        """Ask, and iterate over what happens; the last event is always `TurnEnded`.

        system: begins the conversation with a system prompt; only at its first turn.
        answer_prefix: what the answer begins with. The guard judges it as the model's own words,
        and may refuse at any of its tokens.
        The turn joins the conversation when it has ended. Closing the generator early drops it, as
        does cancelling before the answer begins.
        Raises, at the first event, InputError for what cannot be asked, MediaError,
        PromptTooLongError, EngineError, and GuardError if the guard cannot judge the prompt.
        """
        self._cancelled.clear()  # now: what is cancelled before its first event stays cancelled
        return self._ask(text, images, sounds, system, answer_prefix)

    def prompt_token_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of the prompt that asking `text` next would evaluate, media left out."""
        conversation = self._with_question(text, (), (), None)
        items = self._to_items(conversation)
        return tuple(
            token_id for item in items if isinstance(item, TokenRun) for token_id in item.token_ids
        )

    def close(self) -> None:
        """Free the model and all that belongs to it. Idempotent."""
        self._runtime.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- the question -----------------------------------------------------------------------------

    def _ask(
        self,
        text: str,
        images: Sequence[Path],
        sounds: Sequence[Path],
        system: str | None,
        answer_prefix: str,
    ) -> Generator[Event, None, None]:
        started_s = time.perf_counter()
        self._runtime.check_open()
        conversation = self._with_question(text, images, sounds, system)
        items = self._to_items(conversation)
        given = self._runtime.model.tokenize_plain(answer_prefix) if answer_prefix else ()
        sampler = SamplerChain(self._settings.sampling, n_vocab=self._runtime.model.n_vocab)
        try:
            yield from self._answer(conversation, items, sampler, started_s, given)
        except PrefillCancelledError:
            yield self._cancelled_early(time.perf_counter() - started_s)
        finally:
            sampler.close()

    def _with_question(
        self,
        text: str,
        images: Sequence[Path],
        sounds: Sequence[Path],
        system: str | None,
    ) -> Conversation:
        conversation = self.conversation
        if system is not None:
            if len(conversation):
                raise InputError("a system prompt can only begin a conversation; reset it first")
            conversation = conversation.with_message(Message.from_text("system", system))
        media = [self._add_image(path) for path in images]
        media += [self._add_sound(path) for path in sounds]
        if not text.strip() and not media:
            raise InputError("the prompt is empty; say something, or attach an image")
        return conversation.with_message(Message("user", (*media, TextContent(text))))

    def _add_image(self, path: Path) -> MediaContent:
        if self._runtime.projector is None or not self._runtime.projector.sees:
            raise MediaError(
                f"model {self._runtime.choice.name!r} does not see images as it is loaded; pass "
                "its projector with --mmproj, or choose a model that sees"
            )
        image = load_image(path)
        self._media[image.sha256] = image
        return MediaContent("image", image.sha256)

    def _add_sound(self, path: Path) -> MediaContent:
        if self._runtime.projector is None or not self._runtime.projector.hears:
            raise MediaError(
                f"model {self._runtime.choice.name!r} does not hear as it is loaded; pass its "
                "projector with --mmproj, or choose a model that hears"
            )
        sound = load_sound(path, sample_rate=self._runtime.projector.audio_sample_rate)
        self._media[sound.sha256] = sound
        return MediaContent("audio", sound.sha256)

    def _to_items(self, conversation: Conversation) -> list[PromptItem]:
        runtime = self._runtime
        return prompt_items(
            conversation,
            template=runtime.template,
            model=runtime.model,
            projector=runtime.projector,
            media=self._media,
        )

    # -- the answer -------------------------------------------------------------------------------

    def _answer(
        self,
        conversation: Conversation,
        items: list[PromptItem],
        sampler: SamplerChain,
        started_s: float,
        given: Sequence[int],
    ) -> Iterator[Event]:
        engine, settings = self._runtime.engine, self._settings
        guard = self._active_guard()
        vector = self._control_vector(conversation)
        prefill = engine.prefill(
            items, sampler, control_vector=vector, cancelled=self._cancelled.is_set
        )
        n_spare = settings.sampling.top_k + 1
        if given and engine.n_free < len(given) + n_spare:
            raise PromptTooLongError(
                f"the answer is to begin with {len(given)} tokens, and {engine.n_free} are free "
                "after the prompt; shorten either, or raise --ctx"
            )
        yield PrefillDone(
            n_prompt_tokens=prefill.n_prompt_tokens,
            n_media_tokens=prefill.n_media_tokens,
            n_reused_tokens=prefill.n_reused_tokens,
            prefill_s=prefill.elapsed_s,
            vector_active=vector is not None,
            prompt_score=_score(guard, prefill.last_state),
        )
        answer = GuardedAnswer(
            engine,
            guard,
            DecodingLimits(settings.max_tokens, n_spare),
            tokenize_plain=self._runtime.model.tokenize_plain,
            rng=np.random.default_rng(settings.sampling.seed),
            cancelled=self._cancelled.is_set,
            carried_risk=self._carried_risk,
            given=given,
        )
        n_passes_before = engine.n_forward_passes
        decode_started_s = time.perf_counter()
        first_text_s: float | None = None
        for event in answer.events():
            if first_text_s is None and isinstance(event, TextDelta | Refused):
                first_text_s = time.perf_counter()
            yield event
        ended_s = time.perf_counter()
        decode_s = ended_s - decode_started_s
        self.conversation = conversation.with_message(
            Message.from_text("assistant", answer.text, token_ids=answer.token_ids)
        )
        self._carried_risk = answer.carried_risk
        yield TurnEnded(
            text=answer.text,
            finish_reason=answer.finish_reason,
            guard=self._summary(answer, vector_active=vector is not None),
            usage=Usage(
                prompt_tokens=prefill.n_prompt_tokens,
                media_tokens=prefill.n_media_tokens,
                reused_tokens=prefill.n_reused_tokens,
                completion_tokens=answer.n_steps,
                forward_passes=engine.n_forward_passes - n_passes_before,
            ),
            timings=Timings(
                prefill_s=prefill.elapsed_s,
                ttft_s=(first_text_s or ended_s) - started_s,
                decode_s=decode_s,
                probe_s=answer.probe_s,
                tokens_per_second=answer.n_steps / decode_s if decode_s > 0 else 0.0,
            ),
            refusal=answer.refusal,
        )

    def _active_guard(self) -> ActiveGuard | None:
        bundle, settings = self._runtime.bundle, self._settings
        if bundle is None:
            return None
        return ActiveGuard(
            mode=settings.guard,
            rerank=settings.rerank,
            policy=bundle.policy.tightened(
                strength=settings.strength, threshold=settings.threshold
            ),
            probe=bundle.probe,
            refusal_text=bundle.config.refusal_text,
        )

    def _control_vector(self, conversation: Conversation) -> NDArray[np.float32] | None:
        """The alignment vector while media are in the context; None for pure text."""
        bundle = self._runtime.bundle
        if bundle is None or self._settings.guard not in ("steer", "refuse"):
            return None
        kinds = {item.kind for message in conversation for item in message.media}
        for kind in ("image", "audio"):
            if kind in kinds:
                vector = bundle.vector_for(kind)
                if vector is not None:
                    return vector.directions
        return None

    def _summary(self, answer: GuardedAnswer | None, *, vector_active: bool) -> GuardSummary:
        bundle, scores = self._runtime.bundle, answer.scores if answer else ()
        return GuardSummary(
            mode=self._settings.guard,
            rerank=self._settings.rerank if self._settings.guard == "steer" else None,
            bundle=bundle.config.name if bundle else None,
            interventions=answer.n_interventions if answer else 0,
            evaluated_candidates=answer.n_evaluated_candidates if answer else 0,
            max_score=max(scores, default=None),
            mean_score=sum(scores) / len(scores) if scores else None,
            risk=answer.risk if answer else None,
            refused=answer is not None and answer.refusal is not None,
            vector_active=vector_active,
        )

    def _cancelled_early(self, elapsed_s: float) -> TurnEnded:
        """The end of a turn whose prompt was not read to its end."""
        return TurnEnded(
            text="",
            finish_reason="cancelled",
            guard=self._summary(None, vector_active=False),
            usage=Usage(0, 0, 0, 0, 0),
            timings=Timings(elapsed_s, elapsed_s, 0.0, 0.0, 0.0),
        )


def open_session(settings: SessionSettings | None = None) -> Session:
    """Load a model with its guard and begin a conversation.

    Raises ModelFileError, BundleError, TemplateError, SettingsError, EngineError.
    """
    chosen = settings or SessionSettings()
    runtime = open_runtime(chosen)
    try:
        if runtime.bundle is not None:  # a setting that would weaken the guard is refused here
            runtime.bundle.policy.tightened(strength=chosen.strength, threshold=chosen.threshold)
        return Session(runtime, chosen)
    except BaseException:
        runtime.close()
        raise


def _score(guard: ActiveGuard | None, state: NDArray[np.float32]) -> float | None:
    if guard is None:
        return None
    return float(guard.probe.score(state[np.newaxis, :])[0])
