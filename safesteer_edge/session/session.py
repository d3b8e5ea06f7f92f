"""A session: one conversation with one guarded model. The Python API, and what the CLI runs on.

with open_session() as session:
    print(session.answer("Why is the sky blue?"))
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safesteer_edge.engine.grammar import JsonForm, gbnf_of
from safesteer_edge.engine.prompt_items import PromptItem, n_tokens_of, text_token_ids
from safesteer_edge.errors import InputError, MediaError, PromptTooLongError
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.guard.events import Event, MediaPrepared, TurnEnded, TurnsLeftOut
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.transcript import AnswerSoFar
from safesteer_edge.media.decoder import DecodedImage
from safesteer_edge.session.answer_form import ANY_FORM, AnswerForm
from safesteer_edge.session.choice import ModelFiles
from safesteer_edge.session.prompt import Media, n_old_turns, prompt_items, without_oldest_turns
from safesteer_edge.session.protocol import (
    ChatMessage,
    OpenedSession,
    SessionInfo,
    TurnSettings,
    make_settings,
    session_info,
)
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.session.turn import (
    SessionHistory,
    SessionTurn,
    TurnPlan,
    active_guard,
    check_turn_settings,
    restored_history,
)
from safesteer_edge.templates.conversation import (
    Content,
    Conversation,
    MediaContent,
    Message,
    TextContent,
    ToolResult,
)


class Session(OpenedSession):
    """One conversation. One thread asks; `cancel()` may come from any. Close it, or use `with`.

    What its methods promise stands at `ChatSession`.
    """

    def __init__(self, runtime: Runtime, settings: SessionSettings) -> None:
        self._runtime = runtime
        self._settings = TurnSettings.of(settings)
        self._cancelled = threading.Event()
        self._media: dict[str, Media] = {}
        # Questions with files, by what became of them.
        self._asked: dict[tuple[Content, ...], ChatMessage] = {}
        self._history = SessionHistory()
        # The last answer, as long as the sequence ends with it; None: it must be evaluated again.
        self._so_far: AnswerSoFar | None = None
        self._n_left_out = 0  # turns that the last prompt left out

    @property
    def info(self) -> SessionInfo:
        return session_info(self._runtime, self._settings.guard)

    @property
    def turn_settings(self) -> TurnSettings:
        return self._settings

    @property
    def conversation(self) -> Conversation:
        """The conversation so far, with the answers' tokens."""
        return self._history.conversation

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        return tuple(
            replace(
                self._asked.get(message.content, ChatMessage(message.role, message.text)), risk=risk
            )
            for message, risk in zip(self.conversation, self._history.risks, strict=True)
        )

    @property
    def policy(self) -> GuardPolicy | None:
        """The guard's numbers as they apply here, tightened by the settings; None: guard off."""
        guard = active_guard(self._settings, self._runtime.bundle)
        return guard.policy if guard else None

    def cancel(self) -> None:
        self._cancelled.set()

    def reset(self) -> None:
        self._history = SessionHistory()
        self._n_left_out = 0
        self._media.clear()
        self._asked.clear()
        self._so_far = None

    def restore(self, messages: Sequence[ChatMessage]) -> None:
        before = self._history.conversation
        self._history = restored_history(messages, self._history, content_of=self._content)
        self._so_far = None
        pairs = zip(before, self.conversation, strict=False)
        n_shared = next((n for n, (old, new) in enumerate(pairs) if old is not new), len(messages))
        if n_shared < 2 * self._n_left_out + 3:  # a system prompt, and a turn that was kept
            self._n_left_out = 0

    def change(self, settings: TurnSettings) -> None:
        n_candidates = self._runtime.max_top_k
        check_turn_settings(settings, self._runtime.bundle, n_candidates=n_candidates)
        self._settings = settings

    def continue_answer(self) -> Generator[Event, None, None]:
        self._cancelled.clear()
        return self._continue()

    def prompt_token_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of the prompt that asking `text` next would evaluate, media left out."""
        asked = self._with_question(ChatMessage("user", text), None)
        return text_token_ids(self._fitted(asked.conversation)[1])

    def check_fits(self, text: str, *, system: str | None = None) -> None:
        self._runtime.check_open()
        self._fitted(self._with_question(ChatMessage("user", text), system).conversation)

    def close(self) -> None:
        super().close()
        self._runtime.close()

    # -- the question -----------------------------------------------------------------------------

    def ask_message(
        self,
        question: ChatMessage,
        *,
        system: str | None = None,
        answer_prefix: str = "",
        form: AnswerForm = ANY_FORM,
    ) -> Generator[Event, None, None]:
        self._cancelled.clear()  # now: what is cancelled before its first event stays cancelled
        return self._tell(question, system, answer_prefix, form)

    def _tell(
        self, question: ChatMessage, system: str | None, answer_prefix: str, form: AnswerForm
    ) -> Generator[Event, None, None]:
        started_s = time.perf_counter()
        self._runtime.check_open()
        grammar = self._grammar(form)
        if grammar and answer_prefix:
            raise InputError("an answer that must have a form cannot begin with given words")
        asked = self._with_question(question, system)
        asked = replace(asked, conversation=replace(asked.conversation, tools=form.tools))
        given = self._answer_tokens(answer_prefix) if answer_prefix else ()
        prompt, items, prepared = self._fitted(asked.conversation, n_more=len(given))
        n_before = len(prepared) - len(asked.conversation.messages[-1].media)
        yield from prepared[n_before:]  # those of the question, which ends the prompt
        plan = TurnPlan(
            asked, prompt, items, prepared, self._media, started_s, given, grammar=grammar
        )
        yield from self._run(plan)

    def _grammar(self, form: AnswerForm) -> str:
        """The form as GBNF, behind what closes the reasoning; '': any text will do."""
        runtime = self._runtime
        calls, style = runtime.tool_format, runtime.template.reasoning_style()
        if form.tools and calls is None:
            raise InputError(
                f"model {runtime.choice.name!r} cannot call tools: its chat template has no place "
                "for them; choose another model"
            )
        opening = style.answer_opening if style else ""
        forms = [JsonForm(load_json(form.json_schema), opening)] if form.json_schema else []
        if calls is not None:
            may_call = form.calls or (form.tools if form.json_schema else ())
            forms = [] if form.calls else forms
            forms += [
                JsonForm(calls.call_schema(tool), opening + calls.before, calls.after)
                for tool in may_call
            ]
        return gbnf_of(forms) if forms else ""

    def _continue(self) -> Generator[Event, None, None]:
        started_s = time.perf_counter()
        self._runtime.check_open()
        so_far = self._answer_so_far()
        asked = self._history.without_last()
        n_said = len(so_far.token_ids)
        prompt, items, prepared = self._fitted(asked.conversation, n_more=n_said)
        plan = TurnPlan(asked, prompt, items, prepared, self._media, started_s, so_far=so_far)
        yield from self._run(plan)

    def _run(self, plan: TurnPlan) -> Generator[Event, None, None]:
        n_left_out = (len(plan.asked.conversation) - len(plan.prompt)) // 2
        n_before, self._n_left_out = self._n_left_out, n_left_out
        if n_left_out:
            yield TurnsLeftOut(n_left_out, max(0, n_left_out - n_before))
        turn = SessionTurn(self._runtime, self._settings, plan, cancelled=self._cancelled.is_set)
        self._so_far = None
        for event in turn.events():
            if isinstance(event, TurnEnded) and turn.history is not None:
                self._history, self._so_far = turn.history, turn.so_far
            yield event

    def _answer_so_far(self) -> AnswerSoFar:
        if not self.conversation.messages or self.conversation.messages[-1].role != "assistant":
            raise InputError("there is no answer to continue; ask something first")
        text, bundle = self.conversation.messages[-1].text, self._runtime.bundle
        if bundle is not None and text.endswith(bundle.config.refusal_text):
            raise InputError("the last answer was refused and cannot be continued; ask another way")
        known = self._so_far
        if known is not None and known.scores is not None:
            has_all = len(known.scores) == len(known.token_ids)
            if has_all or self._settings.guard == "off":
                return known
        # The exact tokens if this session decoded them, with the scores to be found again.
        token_ids = self.conversation.messages[-1].token_ids
        if token_ids is None:
            token_ids = self._answer_tokens(text)
        pieces = b"".join(self._runtime.engine.piece(token_id) for token_id in token_ids)
        return AnswerSoFar(pieces.decode("utf-8", "ignore"), token_ids, scores=None)

    def _answer_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of words that are the answer's own, behind whatever closes the reasoning."""
        model = self._runtime.model
        style = self._runtime.template.reasoning_style()
        opening = style.answer_opening if style else ""
        return (*model.tokenize_trusted(opening), *model.tokenize_plain(text))

    def _with_question(self, question: ChatMessage, system: str | None) -> SessionHistory:
        history = self._history
        if system is not None:
            if len(history.conversation):
                raise InputError("a system prompt can only begin a conversation; reset it first")
            history = history.with_message(Message.from_text("system", system))
        return history.with_message(Message("user", self._content(question)))

    def _content(self, message: ChatMessage) -> tuple[Content, ...]:
        """Tools' results, media, then what documents say, then the words: all that is asked."""
        media = [self._add_image(path) for path in message.images]
        media += [self._add_sound(path) for path in message.sounds]
        texts: list[TextContent] = []
        for document in message.documents:
            decoded = self._runtime.media_decoder.load_document(
                document.path, name=document.name, sees=self._sees
            )
            media += [self._keep_image(picture) for picture in decoded.pictures]
            texts.append(TextContent(decoded.text))
        results = map(ToolResult, message.tool_results)
        content = (*results, *media, *texts, TextContent(message.text))
        if len(content) > 1:
            self._asked[content] = message
        return content

    @property
    def _sees(self) -> bool:
        return self._runtime.projector is not None and self._runtime.projector.sees

    def _keep_image(self, image: DecodedImage) -> MediaContent:
        self._media[image.sha256] = image
        return MediaContent("image", image.sha256)

    def _add_image(self, path: Path) -> MediaContent:
        if not self._sees:
            raise self._lacks("see images")
        return self._keep_image(self._runtime.media_decoder.load_image(path))

    def _add_sound(self, path: Path) -> MediaContent:
        projector = self._runtime.projector
        if projector is None or not projector.hears:
            raise self._lacks("hear")
        sound = self._runtime.media_decoder.load_sound(
            path, sample_rate=projector.audio_sample_rate
        )
        self._media[sound.sha256] = sound
        return MediaContent("audio", sound.sha256)

    def _lacks(self, what: str) -> MediaError:
        return MediaError(
            f"model {self._runtime.choice.name!r} cannot {what} as it is loaded; pass its "
            f"projector with --mmproj, or choose a model that can"
        )

    def _fitted(
        self, conversation: Conversation, *, n_more: int = 0
    ) -> tuple[Conversation, list[PromptItem], list[MediaPrepared]]:
        """What the prompt has of a conversation, its items, and what became of the media in it.

        Once the context is full, enough is left out to halve the prompt: the next ones then begin
        alike, and their evaluation with it. n_more: tokens of the answer that are known already.
        Raises PromptTooLongError.
        """
        engine, may_drop = self._runtime.engine, self._settings.when_full == "drop"
        n_out, n_old = self._n_left_out if may_drop else 0, n_old_turns(conversation)
        prompt = without_oldest_turns(conversation, n_out)
        items, prepared = self._to_items(prompt)
        n_for_answer = min(self._settings.max_tokens, engine.n_room // 4)
        if may_drop and n_tokens_of(items) + n_more + n_for_answer > engine.n_room:
            while n_out < n_old and n_tokens_of(items) + n_more > engine.n_room // 2:
                n_out += 1
                prompt = without_oldest_turns(conversation, n_out)
                items, prepared = self._to_items(prompt)
        try:
            engine.check_fits(items)
        except PromptTooLongError as error:
            if may_drop or not n_old:
                raise
            raise PromptTooLongError(
                f"the chat has {n_tokens_of(items)} tokens, and the context has room for "
                f"{engine.n_room}; type /compact to summarize it, or /new to start another; "
                "'model.when_full' set to 'drop' leaves out the oldest turns"
            ) from error
        return prompt, items, prepared

    def _to_items(self, conversation: Conversation) -> tuple[list[PromptItem], list[MediaPrepared]]:
        runtime, prepared = self._runtime, list[MediaPrepared]()
        items = prompt_items(
            conversation,
            template=runtime.template,
            model=runtime.model,
            projector=runtime.projector,
            media=self._media,
            prepared=prepared,
        )
        return items, prepared


def open_session(
    model: str | os.PathLike[str] | SessionSettings | None = None,
    *,
    files: ModelFiles | None = None,
    **settings: Any,
) -> Session:
    """Load a model with its guard and begin a conversation.

    model: a catalogue name or a path to a .gguf file; None: the embedded default. settings: fields
    of `SessionSettings` and `SamplingSettings` by name, as in `open_session("mine.gguf",
    temperature=0, max_tokens=64)`. files: those of the model, if they have been read.
    Raises ModelFileError, BundleError, TemplateError, SettingsError, EngineError.
    """
    chosen = make_settings(model, settings)
    runtime = open_runtime(chosen, files=files)
    session = Session(runtime, chosen)
    try:
        if runtime.bundle is not None:  # a setting that would weaken the guard is refused here
            session.change(session.turn_settings)
    except BaseException:
        session.close()
        raise
    return session
