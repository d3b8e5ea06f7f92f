"""The main screen: transcript, input, and what is around them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList, Static, TextArea

from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import InputError, MediaError, PromptTooLongError, SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.session.protocol import Document
from safesteer_edge.tui.attached_files import (
    ClipboardPictures,
    check_attachable,
    require_files,
    split_media_paths,
)
from safesteer_edge.tui.chat_state import ChatState, system_of_first
from safesteer_edge.tui.commands import conversation
from safesteer_edge.tui.commands.table import COMMANDS_BY_NAME, key_labels, parse_command
from safesteer_edge.tui.engine_thread import EngineThread
from safesteer_edge.tui.guard_words import (
    MODE_LABELS,
    MODE_MEANINGS,
    UNCALIBRATED,
    UNCALIBRATED_MEANING,
    is_uncalibrated,
)
from safesteer_edge.tui.model_runner import ModelRunner
from safesteer_edge.tui.screens.boxes import ChoiceScreen
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.attachments import AttachmentBar, AttachmentRemoved
from safesteer_edge.tui.widgets.composer import (
    ClipboardWanted,
    Completions,
    Composer,
    PathsDropped,
    Submitted,
    is_long,
)
from safesteer_edge.tui.widgets.panels import Inspector, RiskLine, StatusBar, TopBar, Welcome
from safesteer_edge.tui.widgets.transcript import Transcript, TurnAction

if TYPE_CHECKING:
    from safesteer_edge.tui.app import ChatOptions


_Result = TypeVar("_Result")
_NUMBERED = ("edit", "regenerate", "fork")  # commands that take a turn's number
_INPUT_HINTS = "Enter sends · Ctrl+J new line · {attach} file · / commands"
_EDIT_HINTS = "Enter asks again and replaces what followed · {interrupt} cancels"


@dataclass(frozen=True, slots=True)
class _Queued:
    """A message that is sent when the answer before it is over. typed: pastes folded."""

    typed: str
    attachments: tuple[Path, ...]
    named: tuple[Document, ...]


class ChatScreen(Screen[None]):
    """One chat. Its parts are attributes: the commands and the runner show things in them."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  # Textual's own type
    VERTICAL_BREAKPOINTS = [(0, "-short"), (14, "-tall")]  # noqa: RUF012  # likewise
    AUTO_FOCUS = "Composer"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "interrupt", "Stop", show=False, id="chat.interrupt"),
        *(
            Binding(key, f"command('{name}')", label, priority=True, id=f"chat.{name}")
            for key, name, label in (
                ("f1", "help", "Help"),
                ("f2", "chats", "Chats"),
                ("f3", "models", "Models"),
                ("f4", "settings", "Settings"),
                ("f5", "inspect", "Inspect"),
                ("f6", "compare", "Compare"),
                ("ctrl+n", "new", "New chat"),
                ("ctrl+o", "attach", "Attach"),
                ("ctrl+r", "regenerate", "Regenerate"),
            )
        ),
    ]

    DEFAULT_CSS = """
    ChatScreen {
        background: $background;
        & #body { height: 1fr; }
        & #problem {
            display: none; height: auto; border: round $error; margin: 0 1; padding: 0 1;
        }
        & #queued {
            display: none; height: auto; max-height: 3; padding: 0 2; color: $warning;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #input-area { height: auto; padding: 0 1; }
        &.-monitor Composer { border: heavy $warning; border-title-color: $warning; }
        &.-off Composer { border: double $error; border-title-color: $error; }
        &.-inspecting.-narrow Transcript { display: none; }
        &.-narrow #menu-key { display: none; }
        /* Two lines are left for the answer: no empty ones. */
        &.-short #turns { padding: 0 1 0 0; }
        &.-short TurnView, &.-short MarkdownBlock { margin: 0; }
        &.-narrow Inspector { width: 1fr; border-left: none; }
    }
    """

    def __init__(self, engine: EngineThread, state: ChatState, options: ChatOptions) -> None:
        super().__init__()
        self.engine, self.state, self.store = engine, state, options.store
        self.session_settings = options.settings  # of the model that is loaded, or will be
        self.user_settings = options.user_settings
        self.model_lister = options.model_lister
        self.guard_command, self.is_making_guard = options.guard_command, False
        self.runner = ModelRunner(self)
        self._clipboard_pictures = ClipboardPictures()
        self._welcome, self._top = Welcome(is_first_run=options.is_first_run), TopBar()
        self.transcript = Transcript(show_images=options.show_images, empty=self._welcome)
        self.inspector, self.composer = Inspector(id="inspector"), Composer()
        self.risk, self.status = RiskLine(), StatusBar()
        self._problem, self._completions = Static(id="problem"), Completions()
        self._queue: list[_Queued] = []
        self._queued = Static(id="queued")
        self._attachments = AttachmentBar()

    def compose(self) -> ComposeResult:
        yield self._top
        yield Horizontal(self.transcript, self.inspector, id="body")
        yield from (self._problem, self.risk, self._queued, self._completions, self._attachments)
        yield Vertical(self.composer, id="input-area")
        yield self.status

    async def on_mount(self) -> None:
        await self.show_chat()
        self.runner.load(self.session_settings, self.session_settings.model or "the model")

    # -- what the person does ---------------------------------------------------------------------

    async def on_submitted(self, message: Submitted) -> None:
        await self._attempt(self._submit(message.text))

    async def send_queued(self) -> None:
        """Send the first message that waits, if any, with the files that it was written with."""
        if not self._queue or self.runner.turn is not None:
            return
        queued, state = self._queue.pop(0), self.state
        self._show_queue()
        later, later_named = list(state.attachments), state.named
        state.attachments[:], state.named = queued.attachments, queued.named
        await self._attempt(self._submit(queued.typed, was_queued=True))
        if later:
            state.attachments += later
            state.named += later_named
            await self.show_attachments()

    async def unqueue(self) -> None:
        """Put all that waits back into the input: the chat it was written for does not go on."""
        await self._unqueue(list(self._queue))

    async def on_turn_action(self, message: TurnAction) -> None:
        turn, action = message.turn, message.action
        if action == "inspect":
            self.show_in_inspector(turn)
        elif action == "copy":
            self.copy_to_clipboard(turn.text)
            self.say("copied the answer")
        else:
            number = str(self.state.turns.index(turn) + 1)
            await self.action_command(action, number if action in _NUMBERED else "")

    async def action_command(self, name: str, argument: str = "") -> None:
        """A key that stands for a slash command."""
        await self._attempt(COMMANDS_BY_NAME[name].run(self, argument))

    async def choose_command(self, name: str) -> None:
        """A command chosen in the menu: done, or put into the input if it needs an argument."""
        if COMMANDS_BY_NAME[name].needs_argument:
            self.composer.replace_text(f"/{name} ")
            self.action_focus_composer()
        else:
            await self.action_command(name)

    async def action_interrupt(self) -> None:
        """Escape: take back what waits, else stop the answer, else leave what is open."""
        if self._queue:
            await self._unqueue(self._queue[-1:])
        elif self.runner.turn is not None:
            self.engine.cancel()
            self.status.show_state("■ stopping")
        elif self.state.edited is not None:
            self.state.edited = None
            self.state.attachments.clear()
            await self.show_attachments()
            self.composer.text = ""
            self.show_state()
        else:
            self.close_inspector()
        self.action_focus_composer()

    def action_focus_composer(self) -> None:
        self.composer.focus()

    async def action_page_transcript(self, direction: int) -> None:
        """Page Up and Page Down in the input: what can be seen of chat and panel moves."""
        inspector = self.inspector
        if inspector.is_shown and self.has_class("-narrow"):
            inspector.scroll_relative(y=direction * inspector.size.height, animate=False)
        else:
            await self.transcript.page(direction)

    async def on_paths_dropped(self, message: PathsDropped) -> None:
        await self._attempt(self.attach(message.paths))

    async def on_attachment_removed(self, message: AttachmentRemoved) -> None:
        """A click on an attachment, or Backspace in an empty input."""
        if self.state.attachments:
            del self.state.attachments[message.index]
            await self.show_attachments()

    def on_clipboard_wanted(self, message: ClipboardWanted) -> None:
        """Ctrl+V, or a terminal that pastes nothing."""
        self.in_background(self._paste(message.text))

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        self._completions.show(event.text_area.text)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click on one of them puts it into the input."""
        self.composer.complete(COMMANDS_BY_NAME[str(event.option_id)])
        self.action_focus_composer()

    # -- sending ----------------------------------------------------------------------------------

    async def _submit(self, typed: str, *, was_queued: bool = False) -> None:
        """Do what Enter in the input means. Raises SafeSteerError; what was typed stays then."""
        composer = self.composer
        command, argument = parse_command(typed) or (None, "")
        if command is not None:
            composer.text = ""
            try:
                await command.run(self, composer.whole(argument))
            except SafeSteerError:
                composer.replace_text(typed)  # to be mended
                raise
            composer.remember(typed.strip())
            return
        text, paths = split_media_paths(typed, typed=True)  # a folded paste names no files
        require_files(paths)
        text = composer.whole(text)
        if self.runner.turn is not None and (
            text.strip() or (self.state.attachments and not paths)
        ):
            await self._enqueue(typed)
        elif is_long(text):
            work = self._send_if_it_fits(typed, text, paths, was_queued=was_queued)
            self.run_worker(self._attempt(work), group="send", exclusive=True)
        else:
            await self._send(typed, text, paths)

    async def _enqueue(self, typed: str) -> None:
        """Let a message wait for the end of the answer that is being written."""
        state = self.state
        self._queue.append(_Queued(typed, tuple(state.attachments), state.named))
        self.composer.remember(typed)
        self.composer.text = ""
        state.attachments.clear()
        await self.show_attachments()
        self._show_queue()

    async def _unqueue(self, messages: list[_Queued]) -> None:
        """Put messages that wait back into the input, before what is typed there."""
        if not messages:
            return
        state, typed = self.state, [each.typed for each in messages]
        self._queue = [each for each in self._queue if each not in messages]
        self.composer.replace_text("\n".join(filter(None, [*typed, self.composer.text])))
        files = [path for each in messages for path in each.attachments]
        state.attachments[:0] = [path for path in files if path not in state.attachments]
        await self.show_attachments()
        self._show_queue()

    def _show_queue(self) -> None:
        key = self.key_labels["interrupt"]
        lines = [f"queued: {' '.join(each.typed.split()) or 'a file'}" for each in self._queue]
        if lines:
            lines[-1] = f"{key} takes back · {lines[-1]}"
        self._queued.update(Content(strip_control_characters("\n".join(lines))))
        self._queued.display = bool(lines)

    async def _send(self, typed: str, text: str, paths: list[Path]) -> None:
        composer = self.composer
        is_asked = bool(text.strip()) or not paths  # a path alone attaches; the question comes next
        if is_asked:
            if not text.strip() and not self.state.attachments:
                return
            self.refuse_while_answering()
        if composer.text == typed:  # else it waited, and the next one is being typed
            composer.text = ""
        try:
            await self.attach(paths)  # may take its time, and typing goes on
        except SafeSteerError:
            composer.replace_text(typed + composer.text)
            raise
        if is_asked:
            composer.remember(typed)
            await conversation.send(self, text.strip())

    async def _send_if_it_fits(
        self, typed: str, text: str, paths: list[Path], *, was_queued: bool
    ) -> None:
        """Send a long message once its tokens are counted, if it is still there to be sent.

        In a worker: the model may be loading, and the person goes on typing.
        """
        state = self.state
        self.refuse_while_answering()
        if state.info is None:
            self.say("this will be sent once the model has loaded and checked its length")
        in_place_of = state.recorded_from(state.edited) if state.edited is not None else None
        system = state.system

        def check(chat: RecordedChat) -> None:
            first = system_of_first(chat, system)
            chat.check_fits(text.strip(), system=first, in_place_of=in_place_of)

        try:
            await self.do(check)
        except PromptTooLongError as error:
            if was_queued:
                self.composer.replace_text("\n".join(filter(None, [typed, self.composer.text])))
            self._offer_to_shorten(str(error))
            return
        if was_queued or self.composer.text == typed:
            self.refuse_while_answering()
            await self._send(typed, text, paths)

    def _offer_to_shorten(self, why: str) -> None:
        composer = self.composer

        def chosen(choice: str | None) -> None:
            if choice == "edit":
                composer.unfold()
            elif choice == "discard":
                composer.remember(composer.text)
                composer.text = ""
                self.say("discarded; press Up to get it back")

        choices = (("edit", "Edit"), ("discard", "Discard"))
        text = f"{why[:1].upper()}{why[1:]}."
        self.app.push_screen(ChoiceScreen("Too long to send", text, choices), chosen)

    async def _paste(self, text: str) -> None:
        """Add the picture that the clipboard holds, else put the text into the input.

        The tool that reads the clipboard may take its time.
        """
        try:
            picture = await asyncio.to_thread(self._clipboard_pictures.take)
        except MediaError:
            if not text:
                raise
            picture = None
        if picture is not None:
            await self.attach([picture])
        elif text:
            self.composer.insert_paste(text)

    # -- what commands ask of a chat --------------------------------------------------------------

    def say(self, text: str) -> None:
        self.notify(text, markup=False, timeout=4)

    def refuse_while_answering(self) -> None:
        if self.runner.turn is not None:
            key = self.key_labels["interrupt"]
            raise InputError(f"wait for the answer to finish, or press {key} to stop it")

    def show_state(self) -> None:
        state, guard, labels = self.state, self.state.settings.guard, self.key_labels
        info = state.info
        model = f"{info.model_name} {info.quantization}" if info else "no model yet"
        uncalibrated = is_uncalibrated(info, guard)
        self._top.show(
            title=state.shown_title, model=model, guard=guard, is_uncalibrated=uncalibrated
        )
        self.set_class(guard == "monitor", "-monitor")
        self.set_class(guard == "off", "-off")
        is_editing = state.edited is not None
        is_weak = guard in ("monitor", "off")
        title = f"{MODE_LABELS[guard]}: {MODE_MEANINGS[guard]}" if is_weak else ""
        if uncalibrated:
            title = title or f"{UNCALIBRATED}: {UNCALIBRATED_MEANING}"
        self.composer.border_title = "Edit the question" if is_editing else title or None
        hints = _EDIT_HINTS if is_editing else _INPUT_HINTS
        self.composer.show_hints(hints.format_map(labels))
        self._welcome.show_keys(labels)
        self.status.show_help_key(labels["help"])

    async def show_chat(self) -> None:
        await self.transcript.show_chat(self.state.turns)
        await self.show_attachments()
        self.status.show_figures("")
        self.show_state()
        self.composer.focus()

    async def show_attachments(self) -> None:
        await self._attachments.show(self.state.attachments)

    async def attach(self, paths: Sequence[Path]) -> None:
        state = self.state
        for path in paths:
            await asyncio.to_thread(check_attachable, path, state.info)
        state.attachments += [path for path in paths if path not in state.attachments]
        await self.show_attachments()

    def put_back(self, question: str) -> None:
        self.composer.replace_text(question)
        self.show_state()
        self.action_focus_composer()

    def copy_to_clipboard(self, text: str) -> None:
        self.app.copy_to_clipboard(text)

    async def do(self, work: Callable[[RecordedChat], _Result]) -> _Result:
        return await asyncio.wrap_future(self.engine.call(work))

    async def run_turn(self, turn: ShownTurn, *, in_place_of: str | None) -> None:
        await self.runner.ask(turn, in_place_of=in_place_of)

    async def go_on(self, turn: ShownTurn) -> None:
        self.runner.go_on(turn)

    # -- what others ask of the screen ------------------------------------------------------------

    @property
    def key_labels(self) -> Mapping[str, str]:
        return key_labels(self.user_settings.keys)

    def complain(self, text: str) -> None:
        self.notify(text, severity="error", markup=False, timeout=8)

    def show_problem(self, text: str, title: str = "") -> None:
        """Show why there is no model, until there is one; empty: there is one."""
        problem = self._problem
        problem.update(Content(strip_control_characters(text)))
        problem.border_title = title
        problem.border_subtitle = f"{self.key_labels['models']}: choose another model"
        problem.display = bool(text)

    def show_in_inspector(self, turn: ShownTurn | None) -> None:
        self.inspector.set_class(True, "-shown")
        self.set_class(True, "-inspecting")
        self.inspector.show_turn(turn)
        self.inspector.scroll_home(animate=False)

    def close_inspector(self) -> bool:
        """Give the room back to the transcript; False: it was closed."""
        was_shown = self.inspector.is_shown
        self.inspector.set_class(False, "-shown")
        self.set_class(False, "-inspecting")
        return was_shown

    def in_background(self, work: Awaitable[object]) -> None:
        """Do something while the person goes on; if it fails, say so."""
        self.run_worker(self._attempt(work))

    async def _attempt(self, work: Awaitable[object]) -> None:
        try:
            await work
        except SafeSteerError as error:
            self.complain(str(error))
