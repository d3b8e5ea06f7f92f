"""A chat over an engine that writes without end, for measuring: it needs no model.

`python -m tests.latency.long_chat KIND LINES` runs the application with it. KIND: `answer`,
an answer of so many lines that goes on; `code`, all of it one block of code; `chat`, a chat of so
many lines before it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import (
    Event,
    GuardSummary,
    PrefillDone,
    Step,
    TextDelta,
    Timings,
    TurnEnded,
    Usage,
)
from safesteer_edge.session.protocol import ChatMessage, Document, SessionInfo, TurnSettings
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.tui.app import ChatApp, ChatOptions
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.terminal import spare_pauses

TURN_LINES = 20
_LINE_PAUSE_S = 1 / 12  # as fast as the smallest models write on two cores: 100 tokens a second
_BLOCK = (
    "The keeper counted the ships that passed, **one** by *one*.",
    "",
    "- first the boats of the village",
    "- then `the steamers` from the south",
    "",
    "```python",
    "def ships(night: int) -> int:",
    "    return night * 3  # roughly",
    "```",
    "",
)


def long_lines(n_lines: int, *, is_code: bool = False) -> list[str]:
    """Lines of every kind, with their ends; or all of them one block of code."""
    if is_code:
        lines = ["```python", *(_BLOCK[6 + i % 2] for i in range(n_lines - 1))]
    else:
        lines = [_BLOCK[i % len(_BLOCK)] for i in range(n_lines)]
    return [line + "\n" for line in lines]


def turns_of(n_lines: int) -> list[ShownTurn]:
    """A chat of so many lines."""
    turns = [ShownTurn(f"Question {i}?", end="stop") for i in range(n_lines // TURN_LINES)]
    for turn in turns:
        turn.feed(TextDelta("".join(long_lines(TURN_LINES - 2))))
    return turns


class EndlessSession:
    """A `ChatSession` whose answers begin with many lines and go on until they are stopped."""

    def __init__(self, settings: SessionSettings, n_lines: int, *, is_code: bool) -> None:
        self.turn_settings = TurnSettings.of(settings)
        self.messages: tuple[ChatMessage, ...] = ()
        self._n_lines = n_lines
        self._is_code = is_code
        self._cancelled = threading.Event()

    @property
    def info(self) -> SessionInfo:
        """As of a model."""
        return SessionInfo(
            model_name="endless",
            model_path=Path("endless.gguf"),
            architecture="none",
            quantization="Q4_1",
            tensor_table_sha256="0" * 64,
            n_ctx=1 << 20,
            n_candidates=16,
            sees=False,
            hears=False,
            mmproj=None,
            guard="off",
            bundle=None,
            probe_sha256=None,
            policy=None,
            probe_provider=None,
            hidden_state_route=None,
            template_sha256="0" * 64,
            warnings=(),
            load_s=0.0,
        )

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
        """Write until `cancel`."""
        self._cancelled.clear()
        yield PrefillDone(20, 0, 0, 0.01, False, 0.03)
        said = "".join(long_lines(self._n_lines, is_code=self._is_code))
        yield TextDelta(said)
        lines, n_steps = long_lines(10, is_code=self._is_code)[-2 if self._is_code else 0 :], 0
        while not self._cancelled.wait(_LINE_PAUSE_S):
            line = lines[n_steps % len(lines)]
            n_steps += 1
            said += line
            yield Step(n_steps, 100, line, -0.1, 0.02, True, 0.02, (), 100)
            yield TextDelta(line)
        guard = GuardSummary("steer", "lazy", None, 0, 0, None, None, 0.02, False, False)
        usage, timings = Usage(20, 0, 0, n_steps, n_steps), Timings(0.01, 0.02, 1.0, 0.0, 30.0)
        yield TurnEnded(said, "cancelled", guard, usage, timings)

    def check_fits(self, text: str, *, system: str | None = None) -> None:
        """All fits."""

    def continue_answer(self) -> Generator[Event, None, None]:
        """There is never one to go on with."""
        raise InputError("there is no answer to continue; ask something first")

    def restore(self, messages: Sequence[ChatMessage]) -> None:
        """Take these messages."""
        self.messages = tuple(messages)

    def reset(self) -> None:
        """Forget all."""
        self.messages = ()

    def change(self, settings: TurnSettings) -> None:
        """Take these settings."""
        self.turn_settings = settings

    def cancel(self) -> None:
        """Stop writing."""
        self._cancelled.set()

    def close(self) -> None:
        """Stop writing."""
        self._cancelled.set()


def long_chat(kind: str, n_lines: int) -> ChatApp:
    """The application over it."""
    n_before = 0 if kind == "chat" else n_lines

    def opener(settings: SessionSettings) -> EndlessSession:
        return EndlessSession(settings, n_before, is_code=kind == "code")

    app = ChatApp(ChatOptions(SessionSettings(), opener))
    if kind == "chat":
        app.state.turns = turns_of(n_lines)
    return app


def main() -> None:
    """Run it."""
    app = long_chat(sys.argv[1], int(sys.argv[2]))
    spare_pauses()
    app.run()


if __name__ == "__main__":
    main()
