"""Slash commands that the chat of lines answers in lines, where the full screen opens something."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui.chat_state import ask_unrecorded, compared_settings
from safesteer_edge.tui.commands import conversation
from safesteer_edge.tui.guard_words import score_lines, verdict_lines
from safesteer_edge.tui.shown_turn import proposed_by_sampler

if TYPE_CHECKING:
    from safesteer_edge.tui.plain_chat import PlainChat


async def help_(chat: PlainChat, _argument: str) -> None:
    from safesteer_edge.tui.commands.table import COMMANDS

    for command in COMMANDS:
        if command.run_plain is not None:
            chat.say(f"{command.usage:<34} {command.help}")
    chat.say("End a line with \\ to continue it on the next one. Ctrl+C stops an answer.")


async def new(chat: PlainChat, _argument: str) -> None:
    chat.chat.start_new()
    chat.state.begin_new()
    chat.say("started a new chat")


async def chats(chat: PlainChat, argument: str) -> None:
    """List chats that have these words; a number of the list goes on with that one."""
    if chat.store is None:
        raise InputError("chats are not being saved; see 'safesteer-edge settings'")
    summaries = [each for each in chat.store.list() if each.problem is None]
    if argument.isdecimal():
        if not 1 <= int(argument[:9]) <= len(summaries):
            raise InputError(f"there is no chat {argument}; choose 1 to {len(summaries)}")
        await chat.resume(summaries[int(argument[:9]) - 1].id)
        return
    hits = {hit.chat.id for hit in chat.store.search(argument)} if argument else set[str]()
    for number, each in enumerate(summaries, 1):
        if not argument or each.id in hits or argument.casefold() in each.title.casefold():
            at = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.updated_at))
            chat.say(f"{number:>3}  {at}  {each.title}")
    chat.say("type /chats NUMBER to reopen one")


async def model(chat: PlainChat, argument: str) -> None:
    if not argument:
        raise InputError("give a name of 'safesteer-edge models list', or a .gguf file")
    state = chat.state
    chat.load(conversation.switched(chat.session_settings, argument, state.settings.guard))
    state.settings = replace(state.settings, strength=None, threshold=None)
    chat.say_what_runs()


async def inspect(chat: PlainChat, _argument: str) -> None:
    turn = chat.state.numbered("")
    for line in (*verdict_lines(turn), *score_lines(turn)):
        chat.say(line)
    for step in turn.interventions:
        proposed = proposed_by_sampler(step)
        before = f"{proposed.text!r} ({proposed.score:.2f})" if proposed else "another word"
        chat.say(f"token {step.step}: {before} became {step.text!r} ({step.score or 0:.2f})")


async def thoughts(chat: PlainChat, _argument: str) -> None:
    reasoning = chat.state.numbered("").reasoning.strip()
    chat.say(reasoning or "there is no reasoning for the last answer")


async def compare(chat: PlainChat, argument: str) -> None:
    """Answer a question, or the last one, with the guard and without; neither joins the chat."""
    turn, before = chat.state.to_compare(argument)
    for settings in compared_settings(chat.state.settings):
        is_off = settings.guard == "off"
        chat.say(f"-- {'GUARD OFF, not checked' if is_off else f'guard: {settings.guard}'}")
        again = turn.asked_again(settings.guard)
        chat.answer(again, ask_unrecorded(chat.chat, again, before, settings))


async def attach(chat: PlainChat, argument: str) -> None:
    if not argument:
        raise InputError("give a file: /attach FILE")
    path = await conversation.attach(chat, argument)
    chat.say(f"attached {path.name}; it will be sent with your next message")


async def prompt(chat: PlainChat, argument: str) -> None:
    await conversation.send(chat, conversation.saved_prompt(argument))


async def detach(chat: PlainChat, argument: str) -> None:
    await conversation.detach(chat, argument)
    chat.say(f"attached: {', '.join(path.name for path in chat.state.attachments) or 'nothing'}")


async def rename(chat: PlainChat, argument: str) -> None:
    await conversation.rename(chat, argument)
    chat.say(f"renamed this chat to {argument!r}")


async def quit_(chat: PlainChat, _argument: str) -> None:
    chat.is_over = True
