"""Every setting of the settings file: its value, its meaning, and a way to change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from safesteer_edge.errors import SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.session.settings_file import (
    known_setting,
    value_to_text,
    with_setting,
    without_setting,
)
from safesteer_edge.session.settings_schema import SETTINGS, Setting, UserSettings, value_of

_ROOM_FOR_MEANINGS = 130  # columns that hold the longest of them in the list
# Asked before a setting is taken: raises SafeSteerError if what runs cannot have it.
SettingCheck = Callable[[str, UserSettings], None]


@dataclass
class SettingChanged(Message):
    """A setting of the file has a new value. key: `section.name`."""

    key: str
    settings: UserSettings


class SettingsScreen(ModalScreen[None]):
    """Changes are taken at once: each is told by a `SettingChanged`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f4", "leave", "Close", priority=True),
        Binding("ctrl+d", "default", "Default", priority=True),
    ]

    DEFAULT_CSS = """
    SettingsScreen {
        align: center middle; background: $background 60%;
        & #settings {
            width: 130; max-width: 96%; height: 90%; max-height: 36;
            border: round $primary; background: $surface; padding: 0 1;
        }
        & OptionList {
            height: 1fr; background: $surface; border: none; padding: 0;
            text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1;
            &:focus { border: none; }
        }
        & #meaning { height: auto; min-height: 2; padding: 0 1; border-top: solid $border; }
        & #problem { height: auto; color: $text-error; padding: 0 1; display: none; }
        & Input { display: none; height: 3; border: round $primary; background: $surface; }
        &.-editing Input { display: block; }
    }
    """

    def __init__(self, settings: UserSettings, check: SettingCheck) -> None:
        super().__init__()
        self._settings = settings
        self._check = check

    def compose(self) -> ComposeResult:
        """A list, the meaning of the chosen row, a line to type into."""
        with Vertical(id="settings") as box:
            box.border_title = "Settings"
            box.border_subtitle = "Enter changes · Ctrl+D default · Esc closes"
            yield OptionList(id="rows")
            yield Static(id="meaning")
            yield Input()
            yield Static(id="problem")

    def on_mount(self) -> None:
        """Fill the list."""
        options = self.query_one(OptionList)
        for section, settings in groupby(SETTINGS, key=lambda each: each.section):
            heading = Content.styled(section.capitalize(), "bold $primary")
            options.add_option(Option(heading, disabled=True))
            options.add_options(Option(self._line(each), id=each.key) for each in settings)
        options.highlighted = 1
        options.focus()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Say what the row means."""
        if event.option_id is not None:
            setting = known_setting(event.option_id)
            text = f"{setting.key}: {setting.meaning}\ndefault: {value_to_text(setting.default)}"
            self.query_one("#meaning", Static).update(Content(text))
            self._complain("")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Toggle, or begin to type."""
        setting = known_setting(event.option_id or "")
        value = value_of(self._settings, setting)
        if isinstance(value, bool):
            self._take("false" if value else "true")
            return
        line = self.query_one(Input)
        line.value = "" if value is None else str(value)
        line.border_title = f"{setting.key} (empty: default)"
        self.set_class(True, "-editing")
        line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what was typed."""
        if self._take(event.value.strip()):
            self._stop_editing()

    def action_default(self) -> None:
        """Back to the default."""
        self._take("")

    def action_leave(self) -> None:
        """From the line to the list; from the list to the chat."""
        if self.has_class("-editing"):
            self._stop_editing()
        else:
            self.dismiss(None)

    def _take(self, value: str) -> bool:
        """Take a value of the chosen setting as typed; '': its default. False: it says why not."""
        options = self.query_one(OptionList)
        if options.highlighted_option is None or options.highlighted_option.id is None:
            return False
        setting = known_setting(options.highlighted_option.id)
        try:
            if value:
                settings = with_setting(self._settings, setting.key, value)
            else:
                settings = without_setting(self._settings, setting.key)
            self._check(setting.key, settings)
        except SafeSteerError as error:
            self._complain(str(error))
            return False
        self._settings = settings
        self._complain("")
        options.replace_option_prompt(setting.key, self._line(setting))
        self.app.post_message(SettingChanged(setting.key, settings))
        return True

    def _stop_editing(self) -> None:
        self.set_class(False, "-editing")
        self._complain("")
        self.query_one(OptionList).focus()

    def _complain(self, text: str) -> None:
        problem = self.query_one("#problem", Static)
        problem.update(Content(strip_control_characters(text)))
        problem.display = bool(text)

    def _line(self, setting: Setting) -> Content:
        value = value_of(self._settings, setting)
        sign, style = ("*", "bold") if value != setting.default else (" ", "")
        text = strip_control_characters(value_to_text(value))
        name = Content(f" {sign} {setting.name:<16} ")
        if self.app.size.width < _ROOM_FOR_MEANINGS:  # which stand below the list as well
            return name + Content.styled(text, style)
        return (
            name
            + Content.styled(f"{text:<22.22} ", style)
            + Content.styled(setting.meaning, "$foreground 60%")
        )
