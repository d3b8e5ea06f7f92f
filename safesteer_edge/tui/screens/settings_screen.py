"""Every setting of the settings file: its value, its meaning, and a way to change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    setting_value,
    value_to_text,
    with_setting,
    without_setting,
)
from safesteer_edge.session.settings_schema import SettingInfo, UserSettings, all_settings

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
            width: 92; max-width: 96%; height: 90%; max-height: 36;
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
        self._rows: list[SettingInfo | None] = []

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
        self._show_rows()
        self.query_one(OptionList).focus()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Say what the row means."""
        setting = self._rows[event.option_index]
        if setting is None:
            return
        default = value_to_text(setting.default)
        text = f"{setting.key}: {setting.meaning}\ndefault: {default}"
        self.query_one("#meaning", Static).update(Content(text))
        self._complain("")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Toggle, or begin to type."""
        setting = self._rows[event.option_index]
        if setting is None:
            return
        value = setting_value(self._settings, setting.key)
        if isinstance(value, bool):
            self._take(setting.key, "false" if value else "true")
            return
        line = self.query_one(Input)
        line.value = "" if value is None else str(value)
        line.border_title = f"{setting.key} (empty: default)"
        self.set_class(True, "-editing")
        line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what was typed."""
        setting = self._chosen()
        if setting is not None and self._take(setting.key, event.value.strip()):
            self._stop_editing()

    def action_default(self) -> None:
        """Back to the default."""
        setting = self._chosen()
        if setting is not None:
            self._take(setting.key, "")

    def action_leave(self) -> None:
        """From the line to the list; from the list to the chat."""
        if self.has_class("-editing"):
            self._stop_editing()
        else:
            self.dismiss(None)

    def _take(self, key: str, value: str) -> bool:
        """Take a value as typed; empty: the default. False: it says why not."""
        try:
            if value:
                settings = with_setting(self._settings, key, value)
            else:
                settings = without_setting(self._settings, key)
            self._check(key, settings)
        except SafeSteerError as error:
            self._complain(str(error))
            return False
        self._settings = settings
        self._complain("")
        self._show_rows()
        self.app.post_message(SettingChanged(key, settings))
        return True

    def _stop_editing(self) -> None:
        self.set_class(False, "-editing")
        self._complain("")
        self.query_one(OptionList).focus()

    def _chosen(self) -> SettingInfo | None:
        index = self.query_one(OptionList).highlighted
        return self._rows[index] if index is not None else None

    def _complain(self, text: str) -> None:
        problem = self.query_one("#problem", Static)
        problem.update(Content(strip_control_characters(text)))
        problem.display = bool(text)

    def _show_rows(self) -> None:
        options = self.query_one(OptionList)
        chosen = options.highlighted
        self._rows.clear()
        rows: list[Option] = []
        section = ""
        for setting in all_settings():
            if setting.section != section:
                section = setting.section
                heading = Content.styled(setting.section.capitalize(), "bold $primary")
                rows.append(Option(heading, disabled=True))
                self._rows.append(None)
            rows.append(Option(self._line(setting)))
            self._rows.append(setting)
        options.clear_options()
        options.add_options(rows)
        options.highlighted = 1 if chosen is None else chosen

    def _line(self, setting: SettingInfo) -> Content:
        value = setting_value(self._settings, setting.key)
        is_changed = value != setting.default
        shown = strip_control_characters(value_to_text(value))
        sign = "*" if is_changed else " "
        return (
            Content(f" {sign} {setting.name:<16} ")
            + Content.styled(f"{shown:<22.22} ", "bold" if is_changed else "")
            + Content.styled(setting.meaning, "$foreground 60%")
        )
