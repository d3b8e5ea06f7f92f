"""One model behind the server: a queue, engine processes, and what each answer came to.

An engine decodes one answer at a time. What a conversation shares with the one before stays in
its cache, whoever asks.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from safesteer_edge.errors import GuardError, PromptTooLongError, SafeSteerError, SettingsError
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.formats.version import VERSION
from safesteer_edge.guard.events import Event, PrefillDone, Refused, TextDelta, TurnEnded, Usage
from safesteer_edge.guard.policy import MAX_SEED
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.serve.asked import Asked, MoreGuard, Said
from safesteer_edge.session.answer_form import HERMES, ToolCall, ToolCallSplitter
from safesteer_edge.session.async_session import AsyncSession, open_async_session
from safesteer_edge.session.language import language_notice
from safesteer_edge.session.protocol import AskOptions, ChatMessage, SessionInfo
from safesteer_edge.session.settings import SessionSettings, TurnSettings

_N_REMEMBERED: Final = 2048
# No vocabulary has longer tokens on average: such a text is not even tokenised.
_MAX_CHARACTERS_A_TOKEN: Final = 64


class BusyError(SafeSteerError):
    """The queue is full."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request came to.

    text: as the client has it, without the calls. was_cut: at the client's wish; stop: the text
    that did so.
    """

    text: str
    ended: TurnEnded
    prompt_score: float | None
    calls: tuple[ToolCall, ...] = ()
    was_cut: bool = False
    stop: str | None = None

    @property
    def usage(self) -> Usage:
        """Tokens."""
        return self.ended.usage

    @property
    def refusal(self) -> Refused | None:
        """Set where the guard ended it."""
        return None if self.was_cut else self.ended.refusal

    @property
    def is_cut(self) -> bool:
        """Whether a limit ended it: of tokens, of the context, or of saying the same again."""
        return not self.was_cut and self.ended.finish_reason in ("length", "loop")

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


Piece = PrefillDone | TextDelta | ToolCall | Refused | Answered


@dataclass(slots=True, eq=False)
class _Engine:
    """A session in a process of its own, and what is with it.

    folder: of media that its conversation needs. sent: those that it has been given since its last
    new one. digests: of the conversation that is in its cache.
    """

    session: AsyncSession
    folder: Path
    sent: set[str] = field(default_factory=set[str])
    digests: list[bytes] = field(default_factory=list[bytes])

    def n_shared(self, digests: Sequence[bytes]) -> int:
        """Messages that another conversation begins with as well."""
        pairs = enumerate(zip(self.digests, digests, strict=False))
        n_most = min(len(self.digests), len(digests))
        return next((index for index, (own, other) in pairs if own != other), n_most)

    def forget_files(self) -> None:
        """Delete what its conversation does not need, should the process start again."""
        kept = {path for each in self.session.messages for path in (*each.images, *each.sounds)}
        for path in set(self.folder.iterdir()) - kept:
            path.unlink(missing_ok=True)


class ServedModel:
    """Open it by `opened`. Its methods are for the event loop's own thread."""

    def __init__(self, engines: Sequence[_Engine], settings: SessionSettings, n_queue: int) -> None:
        self._first = engines[0]
        self._idle = list(engines)  # the one that was used last comes last
        self._free = asyncio.Semaphore(len(engines))
        self._settings = settings
        self._n_queue = n_queue
        # Of each answer that was given: its exact text, and its risk, by the conversation's digest.
        # Clients send neither back.
        self._told: OrderedDict[bytes, tuple[str, float | None]] = OrderedDict()
        self.n_waiting = 0

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, settings: SessionSettings, *, n_queue: int, n_parallel: int = 1
    ) -> AsyncIterator[ServedModel]:
        """Load a model, in a process for each answer at a time. Raises as `open_session`.

        The processes share the file's pages, and the cores: threads of two that wait for each other
        in turn would cost more than they bring.
        """
        if n_parallel > 1 and settings.n_threads is None:
            settings = replace(settings, n_threads=max(1, n_usable_cores() // n_parallel))
        async with AsyncExitStack() as owned:
            engines: list[_Engine] = []
            for _ in range(n_parallel):
                folder = tempfile.TemporaryDirectory(prefix="safesteer-edge-")
                path = Path(owned.enter_context(folder))
                opening = open_async_session(settings, isolated=True)
                engines.append(_Engine(await owned.enter_async_context(opening), path))
            yield cls(engines, settings, n_queue)

    @property
    def info(self) -> SessionInfo:
        """What runs."""
        return self._first.session.info

    def language_notice(self, *texts: str) -> str:
        """Of the first of these in a language that the guard was not measured on; else ''."""
        return next(
            filter(None, (language_notice(text, self.info.languages) for text in texts)), ""
        )

    @property
    def fingerprint(self) -> str:
        """The same for as long as the same seed gives the same answers, as OpenAI's clients ask."""
        info = self.info
        parts = (info.tensor_table_sha256, info.bundle_sha256, info.guard, VERSION)
        return f"fp_{sha256(repr(parts).encode()).hexdigest()[:12]}"

    async def answer(self, asked: Asked) -> AsyncGenerator[Piece, None]:
        """Answer when it is its turn; `Answered` comes last. Closing it early stops the engine.

        Raises BusyError, InputError for what cannot be asked, GuardError where the guard cannot
        judge, EngineError.
        """
        settings, digests = self._turn_settings(asked), _digests(asked.messages)
        self._check_fits(asked.messages)
        async with self._turn(digests) as engine:
            if engine.session.session.turn_settings != settings:
                await engine.session.change(settings)
            async with aclosing(self._tell(engine, asked, digests)) as pieces:
                async for piece in pieces:
                    yield piece

    async def prompt_score(
        self, said: Sequence[Said], form: AskOptions | None = None
    ) -> PrefillDone:
        """Read a conversation and score it, without an answer. Raises as `answer`."""
        digests = _digests(said)
        self._check_fits(said)
        async with (
            self._turn(digests) as engine,
            aclosing(self._asking(engine, said, digests, form or AskOptions())) as events,
        ):
            async for event in events:
                if isinstance(event, PrefillDone):
                    return event
        raise GuardError("the prompt was not scored")

    # -- a turn -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self, digests: Sequence[bytes]) -> AsyncIterator[_Engine]:
        """The free engine whose cache has the most of a conversation, once there is one."""
        if self._free.locked() and self.n_waiting >= self._n_queue:
            raise BusyError(f"{self.n_waiting} requests are waiting already; try again later")
        self.n_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.n_waiting -= 1
        engine = max(self._idle, key=lambda each: each.n_shared(digests))
        self._idle.remove(engine)
        try:
            yield engine
        finally:
            self._idle.append(engine)
            self._free.release()
            engine.forget_files()

    async def _asking(
        self, engine: _Engine, said: Sequence[Said], digests: list[bytes], form: AskOptions
    ) -> AsyncGenerator[Event, None]:
        media = {medium.name: medium.data for each in said for medium in each.media}
        if engine.sent - media.keys():
            await engine.session.reset()  # else it keeps what was in other conversations
            engine.sent.clear()
        engine.sent |= media.keys()
        engine.digests = digests
        for name, data in media.items():
            if not (engine.folder / name).exists():
                (engine.folder / name).write_bytes(data)
        messages = self._messages(said, digests, engine.folder)
        try:
            async with aclosing(engine.session.ask(messages, steps=False, **form)) as events:
                async for event in events:
                    yield event
        except SafeSteerError as error:  # files have names of ours alone
            raise type(error)(str(error).replace(f"{engine.folder}/", "")) from error

    async def _tell(
        self, engine: _Engine, asked: Asked, digests: list[bytes]
    ) -> AsyncGenerator[Piece, None]:
        cutter, prompt_score, is_cut = StopCutter(asked.stop), None, False
        names = [tool["name"] for tool in asked.form.get("tools", ())]
        calls_format = self.info.tool_format if names else None
        splitter = ToolCallSplitter(calls_format, names) if calls_format else None
        text, calls = "", list[ToolCall]()

        def told(shown: str, *, is_over: bool = False, is_refused: bool = False) -> Iterator[Piece]:
            nonlocal text
            parts: list[str | ToolCall] = [shown] if splitter is None else splitter.feed(shown)
            if splitter is not None and is_over:
                parts += splitter.finish(is_refused=is_refused)
            for part in parts:
                if isinstance(part, ToolCall):
                    calls.append(part)
                    yield part
                elif part:
                    text += part
                    yield TextDelta(part)

        asking = self._asking(engine, asked.messages, digests, asked.form)
        async with aclosing(asking) as events:
            async for event in events:
                if isinstance(event, PrefillDone):
                    prompt_score = event.prompt_score
                    yield event
                elif isinstance(event, TextDelta) and event.part == "reasoning":
                    yield event
                elif isinstance(event, TextDelta) and not is_cut:
                    for piece in told(cutter.feed(event.text)):
                        yield piece
                        if isinstance(piece, ToolCall) and asked.one_call:
                            is_cut = True
                            break
                    is_cut = is_cut or cutter.found is not None
                    if is_cut:
                        engine.session.cancel()
                elif isinstance(event, Refused):
                    if event.reason == "guard_failed":
                        raise GuardError(event.detail)
                    if not is_cut:
                        for piece in told(cutter.held, is_over=True, is_refused=True):
                            yield piece
                        text += "" if asked.is_json else event.text
                        yield event
                elif isinstance(event, TurnEnded):
                    if (event.refusal is None and not is_cut) or cutter.found is not None:
                        for piece in told(cutter.held, is_over=True):
                            yield piece
                    answer = Said("assistant", text, calls=tuple(calls))
                    digest = _digest(digests[-1], answer)
                    engine.digests = [*digests, digest]
                    # Behind what cut it the session's own text goes on.
                    whole = self._written(answer) if is_cut else event.text
                    self._remember(digest, whole, event)
                    yield Answered(text, event, prompt_score, answer.calls, is_cut, cutter.found)

    def _turn_settings(self, asked: Asked) -> TurnSettings:
        """Raises SettingsError for what is out of range, or a weaker guard than the server's."""
        settings, more = TurnSettings.of(self._settings), asked.guard
        sampling = settings.sampling
        seed = asked.sampling.get("seed", sampling.seed or secrets.randbelow(MAX_SEED))
        top_k, n_most = asked.sampling.get("top_k", sampling.top_k), self.info.n_candidates
        drawn = {
            **asked.sampling,
            "seed": int(seed) % (MAX_SEED + 1),
            # Ollama's usual 40 is more than a guarded step has; 0 and less: all that there are.
            "top_k": min(int(top_k), n_most) if top_k > 0 else n_most,
        }
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

    def _check_fits(self, said: Sequence[Said]) -> None:
        n_ctx, n_characters = self.info.n_ctx, sum(len(each.text) for each in said)
        n_characters += sum(len(result) for each in said for result in each.results)
        if len(said) > n_ctx or n_characters > n_ctx * _MAX_CHARACTERS_A_TOKEN:
            raise PromptTooLongError(
                f"the prompt has {n_characters} characters in {len(said)} messages, and the "
                f"context has {n_ctx} tokens; shorten it"
            )

    def _messages(
        self, said: Sequence[Said], digests: Sequence[bytes], folder: Path
    ) -> list[ChatMessage]:
        """The messages as the session takes them; answers that were given here, with their risk.

        The risk of any other is unknown, which counts as the highest that is let through.
        """
        messages: list[ChatMessage] = []
        for each, digest in zip(said, digests, strict=True):
            images, sounds = (
                tuple(folder / medium.name for medium in each.media if medium.kind == kind)
                for kind in ("image", "audio")
            )
            text, risk = self._written(each), None
            if each.role == "assistant":
                text, risk = self._told.get(digest, (text, None))
            made = ChatMessage(
                each.role, text, images, sounds, risk=risk, tool_results=each.results
            )
            messages.append(made)
        return messages

    def _written(self, said: Said) -> str:
        """The text of a message, its calls as the model writes them."""
        calls_format = self.info.tool_format or HERMES
        return "\n".join(filter(None, [said.text, *map(calls_format.write, said.calls)]))

    def _remember(self, digest: bytes, text: str, ended: TurnEnded) -> None:
        # That of an answer that was steered anew says little of the one that was taken back.
        risk = None if ended.guard.steered else ended.guard.risk
        self._told[digest] = (text, risk)
        self._told.move_to_end(digest)
        while len(self._told) > _N_REMEMBERED:
            self._told.popitem(last=False)


def _digests(said: Sequence[Said]) -> list[bytes]:
    """Of the conversation up to each message."""
    return list(accumulate(said, _digest, initial=b""))[1:]


def _digest(before: bytes, said: Said) -> bytes:
    """Of a conversation with one more message; blanks around its text do not count."""
    parts = [said.role, said.text.strip(), *(medium.name for medium in said.media)]
    for call in said.calls:  # clients may write the same arguments in another way
        parts += [call.name, json.dumps(load_json(call.arguments), sort_keys=True)]
    parts += [*said.results]
    digest = b"".join(sha256(part.encode()).digest() for part in parts)
    return sha256(before + digest).digest()


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
