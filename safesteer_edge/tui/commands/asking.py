"""Commands that ask: a message, an edited one, the last one anew, and going on with an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui.turn_record import TurnRecord
from safesteer_edge.tui.typed_paths import is_sound
from safesteer_edge.tui.widgets.composer import Composer
from safesteer_edge.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def send(screen: ChatScreen, text: str) -> None:
    """Ask the next question, or the edited one in place of what followed it."""
    state = screen.state
    images = tuple(path for path in state.attachments if not is_sound(path))
    sounds = tuple(path for path in state.attachments if is_sound(path))
    state.attachments.clear()
    await screen.attach([])
    if state.edited is not None:
        await _cut_from(screen, state.edited)
        state.edited = None
    await _ask(screen, text, images, sounds)


async def regenerate(screen: ChatScreen, argument: str) -> None:
    """Answer a question anew, with the next seed; what followed it goes."""
    state = screen.state
    record = state.numbered(argument)
    _check_idle(screen)
    sampling = state.settings.sampling
    state.settings = replace(
        state.settings, sampling=replace(sampling, seed=(sampling.seed + 1) % (2**32 - 1))
    )
    await _cut_from(screen, record)
    await _ask(screen, record.question, record.images, record.sounds)


async def edit(screen: ChatScreen, argument: str) -> None:
    """Put a question back into the input; sending it replaces all that came after."""
    state = screen.state
    record = state.numbered(argument)
    _check_idle(screen)
    state.edited = record
    state.attachments[:] = [*record.images, *record.sounds]
    await screen.attach([])
    screen.query_one(Composer).replace_text(record.question)
    screen.show_bars()
    screen.action_focus_composer()


async def leave_edit(screen: ChatScreen) -> None:
    """Leave the edited question as it was."""
    screen.state.edited = None
    screen.state.attachments.clear()
    await screen.attach([])
    screen.query_one(Composer).text = ""
    screen.show_bars()


async def continue_answer(screen: ChatScreen, _argument: str) -> None:
    """Go on with the last answer."""
    record = screen.state.numbered("")
    _check_idle(screen)
    if not record.can_continue:
        raise InputError("the last answer is complete; there is nothing to go on with")
    view = screen.query_one(Transcript).view_of(record)
    if view is not None:
        view.show_outcome()
    screen.runner.go_on(record)


async def _ask(
    screen: ChatScreen, text: str, images: tuple[Path, ...], sounds: tuple[Path, ...]
) -> None:
    state = screen.state
    model = state.info.model_name if state.info else ""
    record = TurnRecord(text, images, sounds, guard=state.settings.guard, model=model)
    await screen.runner.ask(record)
    screen.turn_started(record)


async def _cut_from(screen: ChatScreen, record: TurnRecord) -> None:
    records = screen.state.records
    del records[records.index(record) :]
    screen.cut_to(len(records))
    await screen.query_one(Transcript).show_chat(records)


def _check_idle(screen: ChatScreen) -> None:
    if screen.runner.record is not None:
        raise InputError("an answer is being written; Esc stops it first")
