"""Slash commands that the chat of lines answers in lines, where the full screen opens something."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui.chat_state import ask_unrecorded, compared_settings
from safesteer_edge.tui.commands import conversation
from safesteer_edge.tui.shown_turn import proposed_by_sampler

if TYPE_CHECKING:
    from safesteer_edge.tui.plain_chat import PlainChat


async def help_(chat: PlainChat, _argument: str) -> None:
    from safesteer_edge.tui.commands.table import COMMANDS

    for command in COMMANDS:
        if command.run_plain is not None:
            chat.say(f"{command.usage:<34} {command.help}")
    chat.say("A line that ends in \\ goes on in the next one. Ctrl+C stops an answer.")


async def new(chat: PlainChat, _argument: str) -> None:
    chat.chat.start_new()
    chat.state.begin_new()
    chat.say("a new chat")


async def chats(chat: PlainChat, argument: str) -> None:
    """List chats that have these words; a number of the list goes on with that one."""
    if chat.store is None:
        raise InputError("chats are not saved; see 'safesteer-edge settings'")
    summaries = [each for each in chat.store.list() if each.problem is None]
    if argument.isdecimal():
        if not 1 <= int(argument) <= len(summaries):
            raise InputError(f"chat {argument!r}; expected 1 to {len(summaries)}")
        await chat.resume(summaries[int(argument) - 1].id)
        return
    hits = {hit.chat.id for hit in chat.store.search(argument)} if argument else set[str]()
    for number, each in enumerate(summaries, 1):
        if not argument or each.id in hits or argument.casefold() in each.title.casefold():
            at = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.updated_at))
            chat.say(f"{number:>3}  {at}  {each.title}")
    chat.say("/chats NUMBER goes on with one")


async def model(chat: PlainChat, argument: str) -> None:
    if not argument:
        raise InputError("give a name or a .gguf file; 'safesteer-edge models list' lists them")
    state = chat.state
    chat.load(conversation.switched(chat.session_settings, argument, state.settings.guard))
    state.settings = replace(state.settings, strength=None, threshold=None)
    chat.say_what_runs()


async def inspect(chat: PlainChat, _argument: str) -> None:
    turn = chat.state.numbered("")
    if turn.risk is not None:
        chat.say(f"risk at the end {turn.risk:.2f}; {len(turn.steps)} steps")
    if turn.scores:
        chat.say(f"highest harmful score {max(turn.scores):.2f}")
    for step in turn.interventions:
        proposed = proposed_by_sampler(step)
        before = f"{proposed.text!r} ({proposed.score:.2f})" if proposed else "the proposal"
        chat.say(f"step {step.step}: {before} became {step.text!r} ({step.score or 0:.2f})")
    if not turn.interventions:
        chat.say("nothing was steered")


async def thoughts(chat: PlainChat, _argument: str) -> None:
    reasoning = chat.state.numbered("").reasoning.strip()
    chat.say(reasoning or "the model did not think before its last answer")


async def compare(chat: PlainChat, argument: str) -> None:
    """Answer a question, or the last one, with the guard and without; neither joins the chat."""
    turn, before = chat.state.to_compare(argument)
    for settings in compared_settings(chat.state.settings):
        is_off = settings.guard == "off"
        chat.say(f"-- {'GUARD OFF, unchecked' if is_off else f'guard: {settings.guard}'}")
        again = turn.asked_again(settings.guard)
        chat.answer(again, ask_unrecorded(chat.chat, again, before, settings))


async def attach(chat: PlainChat, argument: str) -> None:
    if not argument:
        raise InputError("name the file: /attach FILE")
    path = await conversation.attach(chat, argument)
    chat.say(f"attached {path.name}; it goes with the next message")


async def prompt(chat: PlainChat, argument: str) -> None:
    await conversation.send(chat, conversation.saved_prompt(argument))


async def detach(chat: PlainChat, argument: str) -> None:
    await conversation.detach(chat, argument)
    chat.say(f"attached: {', '.join(path.name for path in chat.state.attachments) or 'nothing'}")


async def rename(chat: PlainChat, argument: str) -> None:
    await conversation.rename(chat, argument)
    chat.say(f"this chat is called {argument!r}")


async def quit_(chat: PlainChat, _argument: str) -> None:
    chat.is_over = True
