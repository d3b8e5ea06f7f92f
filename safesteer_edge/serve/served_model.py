"""One model behind the server: a queue, an engine process, and what each answer came to.

The engine decodes one answer at a time. What a conversation shares with the one before stays in
its cache, whoever asks.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from safesteer_edge.errors import GuardError, PromptTooLongError, SafeSteerError, SettingsError
from safesteer_edge.guard.events import Event, PrefillDone, Refused, TextDelta, TurnEnded, Usage
from safesteer_edge.guard.policy import MAX_SEED
from safesteer_edge.serve.asked import Asked, MoreGuard, Said
from safesteer_edge.session.async_session import AsyncSession, open_async_session
from safesteer_edge.session.protocol import ChatMessage, SessionInfo
from safesteer_edge.session.settings import SessionSettings, TurnSettings

_N_REMEMBERED: Final = 2048
# No vocabulary has longer tokens on average: such a text is not even tokenised.
_MAX_CHARACTERS_A_TOKEN: Final = 64


class BusyError(SafeSteerError):
    """The queue is full."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request came to. text: as the client has it. stop: the text that ended it."""

    text: str
    ended: TurnEnded
    prompt_score: float | None
    stop: str | None = None

    @property
    def usage(self) -> Usage:
        """Tokens."""
        return self.ended.usage

    @property
    def refusal(self) -> Refused | None:
        """Set where the guard ended it."""
        return self.ended.refusal if self.stop is None else None

    @property
    def is_cut(self) -> bool:
        """Whether the token limit, or the end of the context, ended it."""
        return self.stop is None and self.ended.finish_reason == "length"

    def trace(self) -> dict[str, Any]:
        """What the guard saw and did. Numbers alone: no text that was taken back is in it."""
        guard, refusal = self.ended.guard, self.refusal
        names = ("mode", "bundle", "risk", "max_score", "mean_score", "interventions", "steered")
        return {
            **{name: getattr(guard, name) for name in names},
            "prompt_score": self.prompt_score,
            "refused": refusal is not None,
            "reason": refusal.reason if refusal else None,
            "tokens_taken_back": refusal.n_tokens_taken_back if refusal else 0,
        }


Piece = PrefillDone | TextDelta | Refused | Answered


class ServedModel:
    """Open it by `opened`. Its methods are for the event loop's own thread."""

    def __init__(
        self, session: AsyncSession, settings: SessionSettings, folder: Path, n_queue: int
    ) -> None:
        self._session = session
        self._settings = settings
        self._folder = folder
        self._n_queue = n_queue
        self._lock = asyncio.Lock()
        # Of each answer that was given: its exact text, and its risk, by the conversation's digest.
        # Clients send neither back.
        self._told: OrderedDict[bytes, tuple[str, float | None]] = OrderedDict()
        # Pictures and sounds that the engine has been given since its last new conversation.
        self._sent: set[str] = set()
        self.n_waiting = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: SessionSettings, *, n_queue: int) -> AsyncIterator[ServedModel]:
        """Load a model in a process of its own. Raises as `open_session`."""
        with tempfile.TemporaryDirectory(prefix="safesteer-edge-") as folder:
            async with open_async_session(settings, isolated=True) as session:
                yield cls(session, settings, Path(folder), n_queue)

    @property
    def info(self) -> SessionInfo:
        """What runs."""
        return self._session.info

    async def answer(self, asked: Asked) -> AsyncGenerator[Piece, None]:
        """Answer when it is its turn; `Answered` comes last. Closing it early stops the engine.

        Raises BusyError, InputError for what cannot be asked, GuardError where the guard cannot
        judge, EngineError.
        """
        settings, messages = self._turn_settings(asked), self._messages(asked.messages)
        async with self._turn():
            if self._session.session.turn_settings != settings:
                await self._session.change(settings)
            try:
                async with aclosing(self._tell(asked, messages)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                self._forget_files()

    async def prompt_score(self, said: Sequence[Said]) -> PrefillDone:
        """Read a conversation and score it, without an answer. Raises as `answer`."""
        messages = self._messages(said)
        async with self._turn():
            try:
                async with aclosing(self._asking(said, messages)) as events:
                    async for event in events:
                        if isinstance(event, PrefillDone):
                            return event
            finally:
                self._forget_files()
        raise GuardError("the prompt was not scored")

    # -- a turn -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._lock.locked() and self.n_waiting >= self._n_queue:
            raise BusyError(f"{self.n_waiting} requests are waiting already; try again later")
        self.n_waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self.n_waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

    async def _asking(
        self, said: Sequence[Said], messages: Sequence[ChatMessage]
    ) -> AsyncGenerator[Event, None]:
        media = {medium.name: medium.data for each in said for medium in each.media}
        if self._sent - media.keys():
            await self._session.reset()  # else the engine keeps what was in other conversations
            self._sent.clear()
        self._sent |= media.keys()
        for name, data in media.items():
            if not (self._folder / name).exists():
                (self._folder / name).write_bytes(data)
        try:
            async with aclosing(self._session.ask(messages, steps=False)) as events:
                async for event in events:
                    yield event
        except SafeSteerError as error:  # files have names of ours alone
            raise type(error)(str(error).replace(f"{self._folder}/", "")) from error

    async def _tell(
        self, asked: Asked, messages: Sequence[ChatMessage]
    ) -> AsyncGenerator[Piece, None]:
        cutter, text, prompt_score = StopCutter(asked.stop), "", None
        async with aclosing(self._asking(asked.messages, messages)) as events:
            async for event in events:
                if isinstance(event, PrefillDone):
                    prompt_score = event.prompt_score
                    yield event
                elif isinstance(event, TextDelta) and event.part == "reasoning":
                    yield event
                elif isinstance(event, TextDelta) and cutter.found is None:
                    if shown := cutter.feed(event.text):
                        text += shown
                        yield TextDelta(shown)
                    if cutter.found is not None:
                        self._session.cancel()
                elif isinstance(event, Refused):
                    if event.reason == "guard_failed":
                        raise GuardError(event.detail)
                    if cutter.found is None:
                        text += cutter.held + event.text
                        if cutter.held:
                            yield TextDelta(cutter.held)
                        yield event
                elif isinstance(event, TurnEnded):
                    if cutter.found is None and event.refusal is None and cutter.held:
                        text += cutter.held
                        yield TextDelta(cutter.held)
                    self._remember((*asked.messages, Said("assistant", text)), text, event)
                    yield Answered(text, event, prompt_score, cutter.found)

    def _turn_settings(self, asked: Asked) -> TurnSettings:
        """Raises SettingsError for what is out of range, or a weaker guard than the server's."""
        settings, more = TurnSettings.of(self._settings), asked.guard
        sampling = settings.sampling
        seed = asked.sampling.get("seed", sampling.seed or secrets.randbelow(MAX_SEED))
        drawn = {**asked.sampling, "seed": int(seed) % (MAX_SEED + 1)}
        return replace(
            settings,
            sampling=replace(sampling, **drawn),
            max_tokens=settings.max_tokens if asked.max_tokens is None else asked.max_tokens,
            **self._tightened(more),
        )

    def _tightened(self, more: MoreGuard) -> dict[str, float | None]:
        settings, policy = self._settings, self.info.policy
        own = {"strength": settings.strength, "threshold": settings.threshold}
        given = {name: getattr(more, name) for name in own if getattr(more, name) is not None}
        if given and (policy is None or settings.guard != "steer"):
            name = next(iter(given))
            raise SettingsError(f"this server runs with guard {settings.guard!r}: it has no {name}")
        if policy is not None and settings.guard != "off":
            policy = policy.tightened(**own).tightened(**{**dict.fromkeys(own), **given})
        return own | given

    # -- messages ---------------------------------------------------------------------------------

    def _messages(self, said: Sequence[Said]) -> list[ChatMessage]:
        """The messages as the session takes them; answers that were given here, with their risk.

        The risk of any other is unknown, which counts as the highest that is let through.
        """
        n_ctx, n_characters = self.info.n_ctx, sum(len(each.text) for each in said)
        if len(said) > n_ctx or n_characters > n_ctx * _MAX_CHARACTERS_A_TOKEN:
            raise PromptTooLongError(
                f"the prompt has {n_characters} characters in {len(said)} messages, and the "
                f"context has {n_ctx} tokens; shorten it"
            )
        messages: list[ChatMessage] = []
        for each, digest in zip(said, _digests(said), strict=True):
            paths = {
                kind: tuple(self._folder / m.name for m in each.media if m.kind == kind)
                for kind in ("image", "audio")
            }
            text, risk = each.text, None
            if each.role == "assistant":
                text, risk = self._told.get(digest, (text, None))
            messages.append(ChatMessage(each.role, text, paths["image"], paths["audio"], risk=risk))
        return messages

    def _remember(self, said: Sequence[Said], text: str, ended: TurnEnded) -> None:
        *_, digest = _digests(said)
        # That of an answer that was steered anew says little of the one that was taken back.
        risk = None if ended.guard.steered else ended.guard.risk
        self._told[digest] = (text, risk)
        self._told.move_to_end(digest)
        while len(self._told) > _N_REMEMBERED:
            self._told.popitem(last=False)

    def _forget_files(self) -> None:
        """Delete what the present conversation does not need, should its engine start again."""
        kept = {path for each in self._session.messages for path in (*each.images, *each.sounds)}
        for path in set(self._folder.iterdir()) - kept:
            path.unlink(missing_ok=True)


def _digests(said: Sequence[Said]) -> list[bytes]:
    """Of the conversation up to each message; blanks around a text do not count."""
    digests, digest = [], b""
    for each in said:
        parts = [each.role, each.text.strip(), *(medium.name for medium in each.media)]
        digest = sha256(
            digest + b"".join(sha256(part.encode()).digest() for part in parts)
        ).digest()
        digests.append(digest)
    return digests


class StopCutter:
    """Lets text through until a stop text begins. held: what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self.held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that can be shown now."""
        text = self.held + text
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if places:
            place, self.found = min(places)
            self.held = ""
            return text[:place]
        longest = max(map(len, self._stops), default=0) - 1
        for n_held in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-n_held:]) for stop in self._stops):
                self.held = text[-n_held:]
                return text[:-n_held]
        self.held = ""
        return text
