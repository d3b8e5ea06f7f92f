"""Commands that ask: a message, an edited one, the last one anew, and going on with an answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui import chat_state
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.typed_paths import sorted_by_kind
from safesteer_edge.tui.widgets.composer import Composer
from safesteer_edge.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from safesteer_edge.chats.recorded_chat import RecordedChat
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def send(screen: ChatScreen, text: str) -> None:
    """Ask the next question, or the edited one in place of what followed it."""
    state = screen.state
    files = sorted_by_kind(state.attachments, state.named)
    state.attachments.clear()
    await screen.attached.show()
    edited, state.edited = state.edited, None
    in_place_of = None
    if edited is not None:
        in_place_of = await _cut_from(screen, edited)
    await _ask(screen, ShownTurn(text, *files), in_place_of)


async def check_fits(screen: ChatScreen, text: str) -> None:
    """Raise PromptTooLongError for a question that the context has no room for."""
    state = screen.state
    in_place_of = state.recorded_from(state.edited) if state.edited is not None else None
    system = state.system

    def check(chat: RecordedChat) -> None:
        chat_state.check_fits(chat, text, system=system, in_place_of=in_place_of)

    await asyncio.wrap_future(screen.engine.call(check))


async def regenerate(screen: ChatScreen, argument: str) -> None:
    """Answer a question anew, with the next seed; what followed it stays in the file alone."""
    state = screen.state
    turn = state.numbered(argument)
    check_idle(screen)
    sampling = state.settings.sampling
    state.settings = replace(
        state.settings, sampling=replace(sampling, seed=(sampling.seed + 1) % (2**32 - 1))
    )
    in_place_of = await _cut_from(screen, turn)
    again = ShownTurn(turn.question, turn.images, turn.sounds, turn.documents, turn.media_names)
    await _ask(screen, again, in_place_of)


async def edit(screen: ChatScreen, argument: str) -> None:
    """Put a question back into the input; sending it replaces all that came after."""
    state = screen.state
    turn = state.numbered(argument)
    check_idle(screen)
    state.edited = turn
    state.attachments[:], state.named = turn.files, turn.documents
    await screen.attached.show()
    screen.query_one(Composer).replace_text(turn.question)
    screen.show_bars()
    screen.action_focus_composer()


async def leave_edit(screen: ChatScreen) -> None:
    """Leave the edited question as it was."""
    screen.state.edited = None
    screen.state.attachments.clear()
    await screen.attached.show()
    screen.query_one(Composer).text = ""
    screen.show_bars()


async def continue_answer(screen: ChatScreen, _argument: str) -> None:
    """Go on with the last answer."""
    turn = screen.state.numbered("")
    check_idle(screen)
    if not turn.can_continue:
        raise InputError("the last answer is complete; there is nothing to go on with")
    screen.runner.go_on(turn)


def check_idle(screen: ChatScreen) -> None:
    """Raise InputError while an answer is being written."""
    if screen.runner.turn is not None:
        raise InputError(f"an answer is being written; {screen.key('interrupt')} stops it first")


async def _ask(screen: ChatScreen, turn: ShownTurn, in_place_of: str | None) -> None:
    turn.guard = screen.state.settings.guard
    turn.media_names = turn.media_names or (
        *(path.name for path in (*turn.images, *turn.sounds)),
        *(document.name for document in turn.documents),
    )
    await screen.runner.ask(turn, in_place_of=in_place_of)
    screen.show_bars()


async def _cut_from(screen: ChatScreen, turn: ShownTurn) -> str | None:
    """Take a turn and what follows it off the screen; returns what stands there in the file."""
    state = screen.state
    recorded = state.recorded_from(turn)
    del state.turns[state.turns.index(turn) :]
    await screen.query_one(Transcript).show_chat(state.turns)
    return recorded
