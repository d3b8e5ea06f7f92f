"""What a chat needs of a session: the seam between a user interface and whatever answers.

`session.Session` runs the model in this process, `isolation.isolated_session.IsolatedSession` in
a child process. Both raise the same errors with the same text.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Event
from safesteer_edge.guard.policy import GuardMode, GuardPolicy
from safesteer_edge.guard.risk import is_score
from safesteer_edge.session.settings import TurnSettings
from safesteer_edge.templates.conversation import Role

if TYPE_CHECKING:
    from safesteer_edge.session.runtime import Runtime


# -- what runs in a session, for people and reports ------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What runs.

    bundle, policy, probe_provider, hidden_state_route: None where no bundle is loaded; policy is
    the bundle's own, which settings can only tighten. n_candidates: the largest top_k with a guard.
    tensor_table_sha256, probe_sha256: what tells model and guard from others, as `guard.json` has
    them; hashing gigabytes of weights would take longer than loading them. media_warnings: what to
    say besides where a question brings pictures or sound. bundle_sha256, is_calibrated: see
    GuardBundle; None where no bundle is loaded.
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
    media_warnings: tuple[str, ...] = ()
    bundle_sha256: str | None = None
    is_calibrated: bool | None = None


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
        n_candidates=runtime.context.n_candidates,
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
        warnings=(*_guard_warnings(guard), *runtime.warnings),
        load_s=runtime.load_s,
        media_warnings=_media_warnings(runtime, guard),
        bundle_sha256=bundle.sha256 if bundle else None,
        is_calibrated=bundle.is_calibrated if bundle else None,
    )


def _guard_warnings(guard: GuardMode) -> tuple[str, ...]:
    if guard == "off":
        return ("the guard is off: answers are the model's own, unchecked",)
    if guard == "monitor":
        return ("the guard only watches (monitor): nothing is steered or refused",)
    return ()


def _media_warnings(runtime: Runtime, guard: GuardMode) -> tuple[str, ...]:
    bundle = runtime.bundle
    if guard == "off" or bundle is None or bundle.control_vector is not None:
        return ()
    return (
        "the bundle has no alignment vector: prompts with media are guarded by the probe alone",
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
        ...

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
        ...

    def reset(self) -> None:
        """Start a new conversation."""
        ...

    def change(self, settings: TurnSettings) -> None:
        """Let the next turns use these settings.

        Raises SettingsError for a guard that is not loaded or would be weaker than its bundle, or
        more candidates than the session was opened for; the settings are then as they were.
        """
        ...

    def cancel(self) -> None:
        """Stop the answer that is being decoded, within one token. Any thread, or a signal."""
        ...

    def close(self) -> None:
        """Free the model and all that belongs to it. Idempotent."""
        ...


# -- what Ctrl-C does while a session answers on the command line ----------------------------------


@contextmanager
def interrupt_cancels(session: ChatSession) -> Iterator[None]:
    """Ctrl-C stops the answer between two tokens; a second one interrupts at once."""

    def on_interrupt(_signal: int, _frame: object) -> None:
        session.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
