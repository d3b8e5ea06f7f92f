"""What a chat needs of a session: the seam between a user interface and whatever answers.

`session.Session` runs the model in this process, `isolated_session.IsolatedSession` in a child
process. Both raise the same errors with the same text.
"""

from __future__ import annotations

import difflib
import os
import signal
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast, get_args

from safesteer_edge.errors import InputError, MediaError, SettingsError
from safesteer_edge.guard.events import Event, MediaPrepared, PrefillDone, TurnEnded
from safesteer_edge.guard.policy import (
    GuardMode,
    GuardPolicy,
    SamplingSettings,
)
from safesteer_edge.guard.risk import is_score
from safesteer_edge.media.media_file import data_uri_bytes, local_path
from safesteer_edge.session.answer_form import ANY_FORM, AnswerForm, ToolFormat, answer_form
from safesteer_edge.session.settings import SessionSettings, TurnSettings
from safesteer_edge.session.settings_file import user_settings
from safesteer_edge.templates.conversation import Role

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from safesteer_edge.session.runtime import Runtime

ROLES = get_args(Role)


_WEAK_GUARD: Mapping[GuardMode, tuple[str]] = {
    "off": ("the guard is off: answers are not checked",),
    "monitor": ("the guard only watches (monitor): nothing is steered or refused",),
}

# -- what runs in a session, for people and reports ------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What runs.

    bundle, policy, probe_provider, hidden_state_route: None where no bundle is loaded; policy is
    the bundle's own, which settings can only tighten. n_candidates: the largest top_k with a guard.
    tensor_table_sha256, probe_sha256: what tells model and guard from others, as `guard.json` has
    them; hashing gigabytes of weights would take longer than loading them. bundle_sha256,
    is_calibrated: see GuardBundle; None where no bundle is loaded. is_quick: see GuardBundle.
    tool_format: None where it calls no tools. languages: that the guard was measured on, BCP 47;
    empty where that is not known, and with the guard off.
    """

    model_name: str
    model_path: Path
    architecture: str
    quantization: str
    tensor_table_sha256: str
    n_ctx: int
    n_candidates: int
    sees: bool
    hears: bool
    mmproj: Path | None
    guard: GuardMode
    bundle: str | None
    probe_sha256: str | None
    policy: GuardPolicy | None
    probe_provider: str | None
    hidden_state_route: str | None
    template_sha256: str
    warnings: tuple[str, ...]
    load_s: float
    bundle_sha256: str | None = None
    is_calibrated: bool | None = None
    tool_format: ToolFormat | None = None
    languages: tuple[str, ...] = ()
    is_quick: bool = False


def session_info(runtime: Runtime, guard: GuardMode) -> SessionInfo:
    """Describe a runtime whose next turn is guarded in this mode."""
    bundle, projector = runtime.bundle, runtime.projector
    return SessionInfo(
        model_name=runtime.choice.name,
        model_path=runtime.choice.path,
        architecture=runtime.info.architecture,
        quantization=runtime.info.quantization,
        tensor_table_sha256=runtime.info.tensor_table_sha256,
        n_ctx=runtime.context.n_ctx,
        n_candidates=runtime.max_top_k,
        sees=projector is not None and projector.sees,
        hears=projector is not None and projector.hears,
        mmproj=runtime.mmproj,
        guard=guard,
        bundle=bundle.config.name if bundle else None,
        probe_sha256=bundle.config.probe.sha256 if bundle else None,
        policy=bundle.policy if bundle else None,
        probe_provider=bundle.probe.provider if bundle else None,
        hidden_state_route=runtime.route.name if runtime.route else None,
        template_sha256=runtime.template.sha256,
        warnings=(*_WEAK_GUARD.get(guard, ()), *runtime.warnings),
        load_s=runtime.load_s,
        bundle_sha256=bundle.sha256 if bundle else None,
        is_calibrated=bundle.is_calibrated if bundle else None,
        tool_format=runtime.tool_format,
        languages=bundle.languages if bundle and guard != "off" else (),
        is_quick=bundle is not None and bundle.is_quick,
    )


@dataclass(frozen=True, slots=True)
class Document:
    """A text file or a PDF. name: what the prompt calls it, wherever its copy lies."""

    path: Path
    name: str

    @classmethod
    def at(cls, path: Path) -> Document:
        """The document of this file, called as the file is."""
        return cls(path, path.name)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation as an interface or a file holds it.

    images, sounds, documents: files, in the order in which they were attached, before the text.
    tool_results: what tools gave back to the calls of the answer before, before all of these.
    risk: of an assistant message, the running risk at its end. None: unknown (the guard was off,
        or the process died); the next turn then starts with as much risk as an answer can end with
        that was let through. Raises InputError for one that no answer has.
    """

    role: Role
    text: str
    images: tuple[Path, ...] = ()
    sounds: tuple[Path, ...] = ()
    documents: tuple[Document, ...] = ()
    risk: float | None = None
    tool_results: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.risk is not None and not is_score(self.risk):
            raise InputError(
                f"the risk of the {self.role} message is {self.risk!r}; expected 0 to 1, or none "
                "where it is unknown"
            )


class ChatSession(Protocol):
    """One conversation with one guarded model. One thread asks; `cancel` may come from any."""

    @property
    def info(self) -> SessionInfo:
        """What runs, as the settings of the next turn have it."""
        ...

    @property
    def turn_settings(self) -> TurnSettings:
        """The settings of the next turn."""
        ...

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """The conversation so far."""
        ...

    def ask(
        self,
        text: str,
        *,
        images: Sequence[Path] = (),
        sounds: Sequence[Path] = (),
        documents: Sequence[Document] = (),
        system: str | None = None,
        answer_prefix: str = "",
    ) -> Generator[Event, None, None]:
        """Ask, and iterate over what happens; the last event is always `TurnEnded`.

        system: begins the conversation; only at its first turn. answer_prefix: what the answer
        begins with, judged as its own.
        The turn joins `messages` when it has ended. Raises, at the first event, InputError for what
        cannot be asked, MediaError, PromptTooLongError, EngineError, GuardError; at any event
        EngineDiedError, with the answer so far in `messages`.
        """
        ...

    def check_fits(self, text: str, *, system: str | None = None) -> None:
        """Count the tokens of a question, its media left out; nothing is asked.

        Raises PromptTooLongError, which says how many they are, and InputError, as `ask` would.
        """

    def continue_answer(self) -> Generator[Event, None, None]:
        """Go on with the last answer, which was cut by the token limit or stopped.

        The events tell of the new part alone; `TurnEnded.text` is the whole answer. What was said
        counts towards the guard's risk: where its scores are not known any more (the answer was
        restored, or the guard was off) each of its tokens is evaluated and scored again first, and
        the guard may refuse to go on.
        Raises as `ask`; InputError if there is no answer to go on with, or it was refused.
        """
        ...

    def restore(self, messages: Sequence[ChatMessage]) -> None:
        """Bring the session to this conversation, for resuming, editing, forking, regenerating.

        What it shares with the present one stays in the cache. Raises MediaError for a file that
        cannot be used, InputError; the conversation is then as it was.
        """

    def reset(self) -> None:
        """Start a new conversation."""

    def change(self, settings: TurnSettings) -> None:
        """Let the next turns use these settings.

        Raises SettingsError for a guard that is not loaded or would be weaker than its bundle, or
        more candidates than the session was opened for; the settings are then as they were.
        """

    def cancel(self) -> None:
        """Stop the answer that is being decoded, within one token. Any thread, or a signal."""

    def close(self) -> None:
        """Free the model and all that belongs to it. Idempotent."""


# -- asking from Python: in one call, with pictures and messages as programs have them ------------

Picture = str | os.PathLike[str] | bytes | Any  # or a PIL image
Question = str | Sequence[ChatMessage | Mapping[str, str]]


class AskOptions(TypedDict, total=False):
    """What `OpenedSession.ask` takes besides the question."""

    images: Sequence[Picture]
    sounds: Sequence[str | os.PathLike[str]]
    documents: Sequence[str | os.PathLike[str] | Document]
    system: str | None
    answer_prefix: str
    json_schema: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str


@dataclass(frozen=True, slots=True)
class Answer(TurnEnded):
    """What a question came to; `str(answer)` is its text.

    media: what became of each picture and sound. prompt_score: of the prompt, in [0, 1]; None with
    the guard off, and where the answer never began.
    """

    media: tuple[MediaPrepared, ...] = ()
    prompt_score: float | None = None

    @classmethod
    def of(cls, events: Iterable[Event]) -> Answer:
        """The answer that a turn's events tell of, once they are over."""
        told = list(events)
        ended = cast("TurnEnded", told[-1])
        scores = [event.prompt_score for event in told if isinstance(event, PrefillDone)]
        return cls(
            **{each.name: getattr(ended, each.name) for each in fields(TurnEnded)},
            media=tuple(event for event in told if isinstance(event, MediaPrepared)),
            prompt_score=scores[0] if scores else None,
        )

    def __str__(self) -> str:
        return self.text

    @property
    def refused(self) -> bool:
        """Whether the guard ended it; `refusal` says why."""
        return self.refusal is not None

    @property
    def risk(self) -> float | None:
        """The running risk at its end, in [0, 1]; None with the guard off."""
        return self.guard.risk


class OpenedSession(ChatSession):
    """What sessions of either kind have for Python programs. Close it, or use it in a `with`."""

    _pictures: tempfile.TemporaryDirectory[str] | None = None
    # Whether a process of its own tells its steps; texts come in larger pieces without them.
    tells_steps = True

    def ask(
        self,
        text: Question,
        *,
        images: Sequence[Picture] = (),
        sounds: Sequence[str | os.PathLike[str]] = (),
        documents: Sequence[str | os.PathLike[str] | Document] = (),
        system: str | None = None,
        answer_prefix: str = "",
        json_schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str = "auto",
    ) -> Generator[Event, None, None]:
        """Ask, and iterate over what happens; the last event is always `TurnEnded`.

        text: the question, or the messages of a conversation whose last one is the question: they
        take the place of what the session had. images: paths, data URIs, the bytes of image files,
        or PIL images; what is no path is kept in a temporary folder until the session is closed.
        system: begins the conversation; only at its first turn. answer_prefix: what the answer
        begins with, judged as its own. json_schema: what the answer must be, by llama.cpp's
        grammars; `{"type": "object"}` is any object. tools: that the answer may call, each
        `{"name": …, "description": …, "parameters": …}`; calls stand in the answer's text as the
        model writes them. tool_choice: see `answer_form.AnswerForm`.
        The turn joins `messages` when it has ended; closing the generator early drops it.
        Raises InputError at once for URLs, and messages or pictures of no known kind. Raises, at
        the first event, InputError for what cannot be asked, MediaError, PromptTooLongError,
        EngineError, GuardError.
        """
        if isinstance(text, str):
            if not text.strip() and not (images or sounds or documents):
                raise InputError("the prompt is empty; say something, or attach an image")
            question = ChatMessage("user", text)
        else:  # programs may send an empty one, as they do to other servers
            question = self._restore_all(text)
        added = ChatMessage(
            "user",
            question.text,
            (*question.images, *(self._picture_file(image) for image in images)),
            (*question.sounds, *(local_path(os.fspath(each)) for each in sounds)),
            (
                *question.documents,
                *(
                    each if isinstance(each, Document) else Document.at(local_path(os.fspath(each)))
                    for each in documents
                ),
            ),
            tool_results=question.tool_results,
        )
        form = answer_form(json_schema, tools, tool_choice)
        return self.ask_message(added, system=system, answer_prefix=answer_prefix, form=form)

    def answer(self, text: Question, **options: Unpack[AskOptions]) -> Answer:
        """Ask, wait for the end, and return it all; options and errors are those of `ask`."""
        return Answer.of(self.ask(text, **options))

    def close(self) -> None:
        """Free the model and all that belongs to it. Idempotent."""
        if self._pictures is not None:
            self._pictures.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask_message(
        self,
        question: ChatMessage,
        *,
        system: str | None = None,
        answer_prefix: str = "",
        form: AnswerForm = ANY_FORM,
    ) -> Generator[Event, None, None]:
        """As `ask`, for a question that is a message already."""
        raise NotImplementedError

    def _restore_all(self, messages: Sequence[ChatMessage | Mapping[str, str]]) -> ChatMessage:
        """Bring the session to all messages but the last, and return that."""
        read = [_as_message(message) for message in messages]
        if not read or read[-1].role != "user":
            raise InputError("the messages end without a question; the last must be a user's")
        self.restore(read[:-1])
        return read[-1]

    def _picture_file(self, image: Picture) -> Path:
        if isinstance(image, str):
            content = data_uri_bytes(image)
            if content is None:
                return local_path(image)
            image = content
        if isinstance(image, os.PathLike):
            return Path(cast("os.PathLike[str]", image))
        if not isinstance(image, bytes) and not hasattr(image, "save"):
            raise MediaError(
                f"cannot take an image of type {type(image).__name__!r}; give a path, the bytes of "
                "an image file, or a PIL image"
            )
        self._pictures = self._pictures or tempfile.TemporaryDirectory(prefix="safesteer-edge-")
        folder = Path(self._pictures.name)
        path = folder / f"image-{len(list(folder.iterdir())) + 1}.png"
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            from safesteer_edge.media.decoder import MAX_IMAGE_BYTES

            image.save(path, compress_level=1)
            if path.stat().st_size > MAX_IMAGE_BYTES:
                image.convert("RGB").save(path, format="JPEG", quality=95)
        return path


def _as_message(message: ChatMessage | Mapping[str, str]) -> ChatMessage:
    if isinstance(message, ChatMessage):
        return message
    role, content = message.get("role"), message.get("content")
    if set(message) != {"role", "content"} or role not in ROLES or not isinstance(content, str):
        raise InputError(
            f"cannot read message {str(message)[:80]!r}: expected 'role' (one of {ROLES}) and a "
            "text as 'content', and no more; give a ChatMessage for one with files"
        )
    return ChatMessage(cast("Role", role), content)


def make_settings(
    model: str | os.PathLike[str] | SessionSettings | None, keywords: Mapping[str, Any]
) -> SessionSettings:
    """Settings from what `open_session` takes, over those of the user's settings file.

    Raises SettingsError for an unknown or a bad one.
    """
    if isinstance(model, SessionSettings):
        settings = model
    else:
        settings = user_settings().session
        if model is not None:
            settings = replace(settings, model=os.fspath(model), mmproj=None, bundle=None)
    own = [each.name for each in fields(SessionSettings) if each.name != "model"]
    sampling = [each.name for each in fields(SamplingSettings)]
    for name in keywords:
        if name not in (*own, *sampling):
            near = difflib.get_close_matches(name, (*own, *sampling), n=1, cutoff=0.0)[0]
            raise SettingsError(f"there is no setting {name!r}; did you mean {near!r}?")
    changed = {name: value for name, value in keywords.items() if name in own}
    for name in ("mmproj", "bundle"):
        if changed.get(name) is not None:
            changed[name] = Path(changed[name]).expanduser()
    settings = replace(settings, **changed)
    drawn = {name: value for name, value in keywords.items() if name in sampling}
    return replace(settings, sampling=replace(settings.sampling, **drawn))


# -- what Ctrl-C does while a session answers on the command line ----------------------------------


@contextmanager
def interrupt_cancels(session: ChatSession) -> Generator[None]:
    """Ctrl-C stops the answer between two tokens; a second one interrupts at once."""

    def on_interrupt(_signal: int, _frame: object) -> None:
        session.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
