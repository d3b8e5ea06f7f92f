"""The input: several lines, history, long pastes folded, files dropped, commands completed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.app import SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option
from textual.widgets.text_area import Edit, EditResult, Location, Selection

from safesteer_edge.errors import InputError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.tui.attached_files import split_media_paths
from safesteer_edge.tui.commands.table import SlashCommand, matching_commands
from safesteer_edge.tui.terminal import written_in_editor
from safesteer_edge.tui.widgets.attachments import AttachmentRemoved

# -- long pastes in the input: a label stands for each, which is kept whole until it is sent -------

# More would hide what was typed around it; the input shows seven lines.
_MAX_LINES = 20
_MAX_CHARACTERS = 2_000


class FoldedPastes:
    """The labels of one input. They stay known: undo and the history bring them back."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._labels = re.compile(r"(?!)")

    def fold(self, text: str) -> str:
        """The label of a text from now on; a short text itself."""
        if not is_long(text):
            return text
        labels = (_label(text, number) for number in count(1))
        label = next(label for label in labels if self._texts.get(label, text) == text)
        self._texts[label] = text
        self._labels = re.compile("|".join(map(re.escape, self._texts)))
        return label

    def whole(self, text: str) -> str:
        return self._labels.sub(lambda label: self._texts[label.group()], text)

    def refolded(self, text: str) -> str:
        """A whole text with the labels that stand for parts of it."""
        for label, whole in self._texts.items():
            text = text.replace(whole, label)
        return text

    def spans(self, line: str) -> list[tuple[int, int]]:
        """From where to where labels stand in a line."""
        return [label.span() for label in self._labels.finditer(line)]


def is_long(text: str) -> bool:
    """True if a pasted text would fill the input, so that it is folded."""
    return len(text) > _MAX_CHARACTERS or _n_lines(text) > _MAX_LINES


def _label(text: str, number: int) -> str:
    n_lines = _n_lines(text)
    size = f"{n_lines:,} lines" if n_lines > 1 else f"{len(text):,} characters"
    return f"[pasted {size}]" if number == 1 else f"[pasted {size}, {number}]"


def _n_lines(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n"))


@dataclass
class Submitted(Message):
    """The person sends the input. text: as typed."""

    text: str


@dataclass
class PathsDropped(Message):
    """Files were pasted or dropped into the input. paths: they exist."""

    paths: tuple[Path, ...]


@dataclass
class ClipboardWanted(Message):
    """The person pastes. text: what the terminal or the application has for it; empty: nothing."""

    text: str


# Many terminals send Alt+Enter as Escape and Enter, at once.
_ALT_S = 0.02
_NEWLINE_KEYS = frozenset({"shift+enter", "ctrl+j", "alt+enter", "ctrl+enter"})
_FOLDED_HINTS = "Enter sends · next to a paste: Tab expands it, Backspace removes it"


class Composer(TextArea):
    """Enter sends. Shift+Enter, Ctrl+J, Alt+Enter, or a \\ before Enter make a new line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,super+c", "copy_or_interrupt", "Copy", show=False),
        Binding("ctrl+g", "editor", "Editor", show=False),
        Binding("pageup", "screen.page_transcript(-1)", "Scroll up", show=False),
        Binding("pagedown", "screen.page_transcript(1)", "Scroll down", show=False),
    ]

    DEFAULT_CSS = """
    Composer {
        height: auto;
        max-width: 106;  /* as an answer's */
        min-height: 3;
        max-height: 9;
        border: round $border;
        border-title-color: $foreground 70%;
        border-subtitle-color: $foreground 50%;
        padding: 0 1;
        background: $background;
        scrollbar-size-vertical: 1;
        &:focus { border: round $primary; background: $background; }
        & .text-area--cursor-line { background: $background; }
        & .text-area--placeholder { color: $foreground 50%; }
    }
    """

    def __init__(self) -> None:
        self._folded = FoldedPastes()  # first: the cursor asks for it
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            placeholder="Ask something, or type / for commands",
            id="composer",
        )
        self._history: list[str] = []
        self._history_index = 0
        self._draft = ""
        self._escaped_s = 0.0
        self._is_chord_begun = False
        self._hints = ""

    def whole(self, typed: str) -> str:
        """What was typed, with the pastes that stand folded in it."""
        return self._folded.whole(typed)

    @property
    def selected_text(self) -> str:
        """What is selected, to be copied: pastes whole."""
        return self.whole(super().selected_text)

    def unfold(self) -> None:
        self.replace(self.whole(self.text), (0, 0), self.document.end)

    def show_hints(self, hints: str) -> None:
        self._hints = hints
        self.border_subtitle = _FOLDED_HINTS if self._folded.spans(self.text) else hints

    def remember(self, text: str) -> None:
        if text and (not self._history or self._history[-1] != text):
            self._history.append(text)
        self._history_index = len(self._history)

    def replace_text(self, text: str) -> None:
        self.text = self._folded.refolded(text)
        self.move_cursor(self.document.end)

    def complete(self, command: SlashCommand) -> None:
        self.replace_text(f"/{command.name}{' ' if command.argument else ''}")

    def insert_paste(self, text: str) -> None:
        self.insert(self._folded.fold(text))

    def edit(self, edit: Edit) -> EditResult:
        """Change the text; what cuts into a folded paste takes all of it."""
        edit.from_location, edit.to_location = (
            self._outside_folded(edit.top, is_forward=False),
            self._outside_folded(edit.bottom, is_forward=True),
        )
        return super().edit(edit)

    def validate_selection(self, selection: Selection) -> Selection:
        """The cursor steps over a folded paste, never into it."""
        return Selection(
            self._outside_folded(selection.start, selection.start > self.selection.start),
            self._outside_folded(selection.end, selection.end > self.selection.end),
        )

    async def _on_key(self, event: events.Key) -> None:
        now_s = time.monotonic()
        is_alt = event.key == "enter" and now_s - self._escaped_s < _ALT_S
        self._escaped_s = now_s if event.key == "escape" else 0.0
        is_chord_begun, self._is_chord_begun = self._is_chord_begun, False
        if event.key == "enter" and not is_alt:
            self._enter()
        elif event.key in _NEWLINE_KEYS or is_alt:
            self.insert("\n")
        elif event.key == "ctrl+x" and not self.selected_text:
            self._is_chord_begun = True  # as in a shell: Ctrl+X Ctrl+E
        elif event.key == "ctrl+e" and is_chord_begun:
            self.action_editor()
        elif event.key == "tab" and (span := self._folded_beside_cursor()):
            self.replace(self.whole(self.get_text_range(*span)), *span)
        elif event.key == "tab" and (commands := matching_commands(self.text)):
            self.complete(commands[0])
        elif event.key == "backspace" and not self.text:
            self.post_message(AttachmentRemoved(-1))
            return
        else:
            await super()._on_key(event)
            return
        event.stop()
        event.prevent_default()

    def _enter(self) -> None:
        row, column = self.cursor_location
        if column and self.document[row][:column].endswith("\\"):
            self.replace("\n", (row, column - 1), (row, column))
            return
        self.post_message(Submitted(self.text))

    async def _on_paste(self, event: events.Paste) -> None:
        text = strip_control_characters(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        kept, paths = split_media_paths(text)
        event.stop()
        event.prevent_default()
        if not text:  # so some terminals paste a picture
            self.post_message(ClipboardWanted(""))
            return
        if paths and not kept:
            self.post_message(PathsDropped(tuple(paths)))
            return
        self.insert_paste(text)

    def on_text_area_changed(self) -> None:
        self.show_hints(self._hints)

    def action_cursor_up(self, select: bool = False) -> None:
        """Up; from the first line, back in the history."""
        if not select and self.cursor_at_first_line and self._history_index > 0:
            self._show_history(self._history_index - 1)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Down; from the last line, on in the history."""
        at_end = self.cursor_at_last_line and self._history_index < len(self._history)
        if not select and at_end:
            self._show_history(self._history_index + 1)
        else:
            super().action_cursor_down(select)

    def action_paste(self) -> None:
        """Ctrl+V where the terminal leaves it to us: a picture, else what was copied in here."""
        self.post_message(ClipboardWanted(self.app.clipboard))

    def action_editor(self) -> None:
        """Change the text in the person's own editor; the chat waits, and the model goes on."""
        problem: Exception | None = None
        try:
            with self.app.suspend():
                try:
                    self.replace_text(written_in_editor(self.whole(self.text)))
                except InputError as error:  # which `suspend` would not come back from
                    problem = error
        except SuspendNotSupported as error:
            problem = error
        if problem is not None:
            self.notify(str(problem), severity="error", markup=False)

    def action_copy_or_interrupt(self) -> None:
        """Copy what is selected, here or in the transcript; else stop the answer."""
        if self.selected_text:
            self.action_copy()
        elif self.screen.get_selected_text():
            self.screen.action_copy_text()
        else:
            self.app.action_interrupt()  # pyright: ignore[reportAttributeAccessIssue]  # ChatApp's

    def _outside_folded(self, location: Location, is_forward: bool) -> Location:
        row, column = location
        if row >= self.document.line_count:
            return location
        for start, end in self._folded.spans(self.document[row]):
            if start < column < end:
                return row, end if is_forward else start
        return location

    def _folded_beside_cursor(self) -> tuple[Location, Location] | None:
        row, column = self.cursor_location
        for start, end in self._folded.spans(self.document[row]):
            if start <= column <= end:
                return (row, start), (row, end)
        return None

    def _show_history(self, index: int) -> None:
        if self._history_index == len(self._history):
            self._draft = self.text
        self._history_index = index
        is_past = index < len(self._history)
        self.replace_text(self._history[index] if is_past else self._draft)


# -- the slash commands that the input could become, over it ---------------------------------------


class Completions(OptionList, can_focus=False):
    """Hidden while there are none."""

    DEFAULT_CSS = """
    Completions {
        display: none; height: auto; max-height: 8; margin: 0 1; padding: 0;
        border: round $border; background: $surface;
        text-wrap: nowrap; text-overflow: ellipsis;
        &.-shown { display: block; }
    }
    """

    def show(self, typed: str) -> None:
        """Show what this could become; each has its command's name for an id."""
        commands = matching_commands(typed)
        self.set_class(bool(commands), "-shown")
        self.clear_options()
        for each in commands:
            about = Content.styled(f"{each.help}  {each.argument}", "$foreground 60%")
            self.add_option(Option(Content(f"/{each.name:<11} ") + about, id=each.name))
