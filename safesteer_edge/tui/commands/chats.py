"""Commands for chats as a whole: begin, find, resume, fork, rename."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from safesteer_edge.chats.chat_log import ChatLog
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import InputError, SafeSteerError
from safesteer_edge.tui.commands.asking import check_idle
from safesteer_edge.tui.shown_turn import turns_of_branch
from safesteer_edge.tui.widgets.composer import Composer

if TYPE_CHECKING:
    from collections.abc import Callable

    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def new(screen: ChatScreen, _argument: str) -> None:
    """Leave the chat, which is kept, and begin another."""
    state = screen.state
    if not state.turns:
        screen.action_focus_composer()
        return
    screen.runner.leave()
    state.turns.clear()
    state.title, state.chat_id = "", None
    state.edited = state.system = None
    state.attachments.clear()
    await screen.show_chat()
    if state.info is not None:
        screen.do_with_chat(RecordedChat.start_new)


async def chats(screen: ChatScreen, argument: str) -> None:
    """Find a chat and go on with it."""
    from safesteer_edge.tui.screens.chats_screen import ChatsScreen

    store = screen.store
    if store is None:
        raise InputError("chats are not saved; switch saving on in the settings (/settings)")

    def chosen(chat_id: str | None) -> None:
        if chat_id is not None:
            screen.run_worker(resume(screen, chat_id), exclusive=True)

    current = screen.state.chat_id
    screen.app.push_screen(ChatsScreen(store, current, argument, screen.rename_current), chosen)


async def resume(screen: ChatScreen, chat_id: str) -> None:
    """Go on with a stored chat, or with a copy where another window has it open."""
    screen.runner.leave()

    def work(chat: RecordedChat) -> None:
        chat.resume(chat_id)

    await _enter(screen, work)


async def fork(screen: ChatScreen, argument: str) -> None:
    """Go on from an answer in a copy of the chat; the chat stays as it is."""
    check_idle(screen)
    turn = screen.state.numbered(argument)
    if turn.answer_id is None:
        raise InputError("that question has no answer to go on from; choose another")
    end = turn.answer_id

    def work(chat: RecordedChat) -> None:
        chat.fork(end)

    await _enter(screen, work)
    screen.say("this is a copy now; the chat it came from stays as it was")


async def rename(screen: ChatScreen, argument: str) -> None:
    """Give the chat a title."""
    if not argument:
        raise InputError("give a title: /rename TITLE")
    await asyncio.wrap_future(screen.engine.call(lambda chat: chat.rename(argument)))
    screen.state.title = argument
    screen.show_bars()


async def _enter(screen: ChatScreen, work: Callable[[RecordedChat], None]) -> None:
    """Let the engine's thread enter a chat, then show it."""

    def enter(chat: RecordedChat) -> tuple[ChatLog, object]:
        work(chat)
        assert chat.log is not None  # it was entered
        return chat.log, turns_of_branch(chat.log.branch(), chat.media_path)

    try:
        log, (system, turns) = await asyncio.wrap_future(screen.engine.call(enter))  # pyright: ignore[reportGeneralTypeIssues]
    except SafeSteerError as error:
        screen.complain(str(error))
        return
    state = screen.state
    state.system, state.turns[:] = system, turns
    state.title, state.chat_id = log.title, log.header.id
    state.edited = None
    state.attachments.clear()
    if turns and not turns[-1].is_in_conversation:
        unanswered = turns.pop()
        state.turns.pop()
        state.attachments[:], state.named = unanswered.files, unanswered.documents
        screen.query_one(Composer).replace_text(unanswered.question)
    await screen.show_chat()
