"""The guard's part in a session's turns: what is in force, what it carries along, what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle
from safesteer_edge.engine.prompt_items import text_token_ids
from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.decoding import GuardedAnswer
from safesteer_edge.guard.events import GuardSummary
from safesteer_edge.guard.transcript import ActiveGuard
from safesteer_edge.media.images import DecodedImage
from safesteer_edge.session.prompt import Media, prompt_items
from safesteer_edge.session.protocol import TurnSettings
from safesteer_edge.session.runtime import Runtime
from safesteer_edge.templates.conversation import Conversation, MediaContent, Message


def check_turn_settings(
    settings: TurnSettings, bundle: GuardBundle | None, *, n_candidates: int
) -> None:
    """Raise SettingsError for what this session cannot do, or what would weaken its guard.

    n_candidates: as many as the context was made for.
    """
    if settings.guard == "off":
        return
    if bundle is None:
        raise SettingsError(
            f"guard is {settings.guard!r}, and this session was opened without a guard bundle; "
            "open it again without --guard off"
        )
    bundle.policy.tightened(strength=settings.strength, threshold=settings.threshold)
    if settings.sampling.top_k > n_candidates:
        raise SettingsError(
            f"top_k is {settings.sampling.top_k}, and this session was opened for "
            f"{n_candidates} candidates; choose at most as many, or open it again with --top-k"
        )


def active_guard(settings: TurnSettings, bundle: GuardBundle | None) -> ActiveGuard | None:
    """The guard of one turn, None with the guard off."""
    if bundle is None or settings.guard == "off":
        return None
    return ActiveGuard(
        mode=settings.guard,
        rerank=settings.rerank,
        policy=bundle.policy.tightened(strength=settings.strength, threshold=settings.threshold),
        probe=bundle.probe,
        refusal_text=bundle.config.refusal_text,
    )


def control_vector(
    settings: TurnSettings, bundle: GuardBundle | None, conversation: Conversation
) -> NDArray[np.float32] | None:
    """The alignment vector while media are in the context; None for pure text."""
    if bundle is None or settings.guard not in ("steer", "refuse"):
        return None
    kinds = {item.kind for message in conversation for item in message.media}
    for kind in ("image", "audio"):
        if kind in kinds:
            vector = bundle.vector_for(kind)
            if vector is not None:
                return vector.directions
    return None


def words_alone(
    conversation: Conversation, read: Callable[[MediaContent], str]
) -> tuple[Conversation, ...]:
    """What is said with media in the context, each as a conversation behind the system prompt.

    The last message's words, what is written in the last pictures, and both together: a request may
    be half in either. A picture of an earlier message counts together with the last words alone;
    by itself it was looked at in its own turn. None where no media are in the context: then the
    prompt is those words. read: what is written in a picture.
    """
    if not any(message.media for message in conversation):
        return ()
    last = conversation.messages[-1]
    said = last.text.strip()
    pictured = next((m for m in reversed(conversation.messages) if _pictures(m)), last)
    written = " ".join(filter(None, map(read, _pictures(pictured))))
    texts = [last.text if said else "", written if pictured is last else ""]
    if said and written:
        texts.append(f"{last.text}\n{written}")
    system = [message for message in conversation if message.role == "system"]
    return tuple(
        Conversation((*system, Message.from_text(last.role, text))) for text in texts if text
    )


def _pictures(message: Message) -> list[MediaContent]:
    return [medium for medium in message.media if medium.kind == "image"]


def words_score(
    guard: ActiveGuard | None,
    runtime: Runtime,
    conversation: Conversation,
    media: Mapping[str, Media],
    cancelled: Callable[[], bool],
) -> float | None:
    """Highest harmful score of what is said and written beside media; see `words_alone`.

    A picture beside words shifts the state at the prompt's end, and with it the score: an unrelated
    one must not hide what the words ask for. Costs their prefill once more, and the reading of each
    new picture. None with the guard off. media: by SHA-256.
    Raises TemplateError, PromptTooLongError, EngineError, PrefillCancelledError, GuardError.
    """
    if guard is None:
        return None

    def read(medium: MediaContent) -> str:
        picture = media[medium.sha256]
        reader = runtime.picture_reader
        return reader.words(picture) if reader and isinstance(picture, DecodedImage) else ""

    scores: list[float | None] = []
    for alone in words_alone(conversation, read):
        items = prompt_items(alone, template=runtime.template, model=runtime.model)
        state = runtime.engine.side_prompt_state(text_token_ids(items), cancelled=cancelled)
        scores.append(prompt_score(guard, state))
    # not max(), which may drop a NaN
    return float(np.max(np.array(scores, dtype=np.float64))) if scores else None


def prompt_score(guard: ActiveGuard | None, state: NDArray[np.float32]) -> float | None:
    """Harmful score of the prompt's last state, None with the guard off."""
    if guard is None:
        return None
    return float(guard.probe.score(state[np.newaxis, :])[0])


def guard_summary(
    settings: TurnSettings,
    bundle: GuardBundle | None,
    answer: GuardedAnswer | None,
    *,
    vector_active: bool,
) -> GuardSummary:
    """What the guard did in a turn; answer: None if it never began."""
    scores = answer.scores if answer else ()
    return GuardSummary(
        mode=settings.guard,
        rerank=settings.rerank if settings.guard == "steer" else None,
        bundle=bundle.config.name if bundle and settings.guard != "off" else None,
        interventions=answer.n_interventions if answer else 0,
        evaluated_candidates=answer.n_evaluated_candidates if answer else 0,
        max_score=max(scores, default=None),
        mean_score=sum(scores) / len(scores) if scores else None,
        risk=answer.risk if answer else None,
        refused=answer is not None and answer.refusal is not None,
        vector_active=vector_active,
    )
