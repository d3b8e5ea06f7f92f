"""What Enter in the input does: a command, files to attach, or a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safesteer_edge.errors import PromptTooLongError, SafeSteerError
from safesteer_edge.tui.commands import asking
from safesteer_edge.tui.commands.handlers import HANDLERS
from safesteer_edge.tui.screens.boxes import ChoiceScreen
from safesteer_edge.tui.slash_commands import parse_command
from safesteer_edge.tui.typed_paths import require_files, split_media_paths
from safesteer_edge.tui.widgets.composer import Composer, is_long

if TYPE_CHECKING:
    from pathlib import Path

    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def submit(screen: ChatScreen, typed: str) -> None:
    """Send a message, or obey a command. Raises SafeSteerError; what was typed stays then."""
    composer = screen.query_one(Composer)
    command = parse_command(typed)
    if command is not None:
        composer.text = ""
        try:
            await HANDLERS[command[0].name](screen, composer.whole(command[1]))
        except SafeSteerError:
            composer.replace_text(typed)  # to be mended
            raise
        composer.remember(typed.strip())
        return
    text, paths = split_media_paths(typed, typed=True)  # a folded paste names no files
    require_files(paths)
    text = composer.whole(text)
    if is_long(text):
        work = _send_if_it_fits(screen, typed, text, paths)
        screen.run_worker(work, group="send", exclusive=True)
    else:
        await _send(screen, typed, text, paths)


async def _send(screen: ChatScreen, typed: str, text: str, paths: list[Path]) -> None:
    composer = screen.query_one(Composer)
    is_asked = bool(text.strip()) or not paths  # a path alone attaches; the question comes next
    if is_asked:
        if not text.strip() and not screen.state.attachments:
            return
        asking.check_idle(screen)
    composer.text = ""
    try:
        await screen.attached.add(paths)  # may take its time, and typing goes on
    except SafeSteerError:
        composer.replace_text(typed + composer.text)
        raise
    if not is_asked:
        return
    composer.remember(typed)
    await asking.send(screen, text.strip())


async def _send_if_it_fits(screen: ChatScreen, typed: str, text: str, paths: list[Path]) -> None:
    """Send a long message once its tokens are counted, if it is still there to be sent.

    In a worker: the model may be loading, and the person goes on typing.
    """
    composer = screen.query_one(Composer)
    try:
        asking.check_idle(screen)
        if screen.state.info is None:
            screen.say("this is sent when the model is loaded and has counted its tokens")
        await asking.check_fits(screen, text.strip())
        if composer.text == typed:
            asking.check_idle(screen)
            await _send(screen, typed, text, paths)
    except PromptTooLongError as error:
        choices = (("edit", "Edit"), ("discard", "Discard"))

        def chosen(choice: str | None) -> None:
            if choice == "edit":
                composer.unfold()
            elif choice == "discard":
                composer.remember(composer.text)
                composer.text = ""
                screen.say("discarded; the Up key brings it back")

        why_not = str(error)
        text = f"{why_not[:1].upper()}{why_not[1:]}."
        screen.app.push_screen(ChoiceScreen("Too long to send", text, choices), chosen)
    except SafeSteerError as error:
        screen.complain(str(error))
