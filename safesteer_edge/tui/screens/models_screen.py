"""Choosing a model: what is installed, what is known, and whether a guard was made for it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from safesteer_edge.errors import SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.library.catalogue import CatalogueModel, load_catalogue
from safesteer_edge.tui.guard_words import size_for_people

_LIMIT_S = 30.0
# Whether a model fits into this machine's memory, in the list and under it.
_FITS = {
    "gpu": ("GPU", "all of it fits on the GPU"),
    "part": ("GPU+", "some layers fit on the GPU"),
    "yes": ("fits", "fits in memory"),
    "tight": ("tight", "only just fits in memory"),
    "no": ("too big", "does not fit in memory"),
    "?": ("?", "how much memory it needs is unknown"),
}


@dataclass(frozen=True, slots=True)
class ModelFit:
    """needs_bytes: None if nobody can tell. fits: gpu, part, yes, tight, no, or ?"""

    needs_bytes: int | None
    fits: str


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model. path: None while it is not installed; problem: why its file cannot be used.

    has_bundle: a guard was made for it. install: the command that brings it. fit: with a context
    of 4096 tokens, a guess for what is not installed.
    """

    name: str
    title: str
    quantization: str
    size_bytes: int | None
    has_bundle: bool
    takes: str
    licence: str
    path: Path | None
    install: str
    problem: str | None = None
    fit: ModelFit = ModelFit(None, "?")


class ModelsScreen(ModalScreen[ModelRow | None]):
    """Ends with the model to load, or None."""

    AUTO_FOCUS = "Input"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("f3", "dismiss(None)", "Close", id="chat.models"),
        Binding("down", "list('cursor_down')", show=False),
        Binding("up", "list('cursor_up')", show=False),
        Binding("pagedown", "list('page_down')", show=False),
        Binding("pageup", "list('page_up')", show=False),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012  # Textual's own type

    DEFAULT_CSS = """
    ModelsScreen {
        align: center middle; background: $background 60%;
        & #models {
            width: 96; max-width: 96%; height: auto; max-height: 90%;
            border: round $primary; background: $surface; padding: 0 1;
        }
        & Input { border: round $border; height: 3; background: $surface;
                  &:focus { border: round $primary; } }
        & OptionList {
            height: auto; max-height: 16; background: $surface; padding: 0;
            border: none; text-wrap: nowrap; text-overflow: ellipsis;
            &:focus { border: none; }
        }
        &.-short OptionList { max-height: 10; }
        & #about { height: auto; min-height: 4; padding: 0 1; margin: 1 0 0 0;
                   color: $foreground 80%; border-top: solid $border; }
    }
    """

    def __init__(self, lister: Callable[[], Sequence[ModelRow]], loaded: str | None) -> None:
        """loaded: the name of the model that is loaded."""
        super().__init__()
        self._lister = lister
        self._loaded = loaded
        self._all: Sequence[ModelRow] = ()
        self._rows: Sequence[ModelRow] = ()  # those that have the words

    def compose(self) -> ComposeResult:
        with Vertical(id="models") as box:
            box.border_title = "Models"
            box.border_subtitle = "Enter loads it · Esc closes"
            yield Input(placeholder="type to filter", id="filter")
            yield OptionList(id="rows")
            yield Static(Content("looking …"), id="about")

    @work
    async def on_mount(self) -> None:
        try:
            self._all = await asyncio.to_thread(self._lister)
        except SafeSteerError as error:
            self.query_one("#about", Static).update(Content(str(error)))
            return
        self._show(self.query_one(Input).value)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def on_input_submitted(self) -> None:
        self.query_one(OptionList).action_select()

    def action_list(self, action: str) -> None:
        """Move in the list while the filter has the focus."""
        getattr(self.query_one(OptionList), f"action_{action}")()

    def _show(self, typed: str) -> None:
        """Show the models that have all these words."""
        words = typed.casefold().split()
        self._rows = [
            row
            for row in self._all
            if all(word in f"{row.name} {row.title} {row.takes}".casefold() for word in words)
        ]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(self._line(row), row.name) for row in self._rows])
        names = [row.name for row in self._rows]
        if names:
            options.highlighted = names.index(self._loaded) if self._loaded in names else 0
        elif self._all:
            self.query_one("#about", Static).update(
                Content("no model matches; /model FILE.gguf loads a file")
            )

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        for row in self._rows:  # none, if the filter has taken it away since
            if row.name == event.option_id:
                self.query_one("#about", Static).update(_about(row))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        row = next(row for row in self._all if row.name == event.option_id)
        if row.problem is not None:
            self.notify(row.problem, severity="error", markup=False)
        elif row.path is None:
            self.notify(
                f"not installed; to install it, run: {row.install}",
                severity="warning",
                markup=False,
            )
        else:
            self.dismiss(row)

    def _line(self, row: ModelRow) -> Content:
        states = {
            "✗ damaged": row.problem is not None,
            "● loaded": row.name == self._loaded,
            "○ installed": row.path is not None,
            "· to install": True,
        }
        sign, state = next(name for name, is_so in states.items() if is_so).split(" ", 1)
        guard = "guard" if row.has_bundle else "no guard"
        size = size_for_people(row.size_bytes)
        if not size and row.fit.needs_bytes:
            size = f"~{size_for_people(row.fit.needs_bytes)}"
        width = 36 if self.app.size.width >= 100 else 21
        text = (
            f"{sign} {row.title:<{width}.{width}} {row.quantization:<7} {size:>8} "
            f"{_fit_words(row)[0]:<7}  {guard:<8} {state}"
        )
        style = "" if row.path is not None else "$foreground 60%"
        return Content.styled(strip_control_characters(text), style)


def _fit_words(row: ModelRow) -> tuple[str, str]:
    return _FITS.get(row.fit.fits, _FITS["?"])


def _about(row: ModelRow) -> Content:
    guard = "it has a guard"
    if not row.has_bundle:
        guard = "it has no guard yet (see 'safesteer-edge calibrate')"
    needs = size_for_people(row.fit.needs_bytes)
    needed = f"needs {'about ' if row.path is None else ''}{needs}: " if needs else ""
    lines = [
        f"{row.name} · takes {row.takes} · {row.licence}",
        f"{needed}{_fit_words(row)[1]}; {guard}",
        row.problem or (str(row.path) if row.path else f"to install: {row.install}"),
    ]
    return Content(strip_control_characters("\n".join(lines)))


def known_models() -> list[ModelRow]:
    """The catalogue, what is installed first. Takes a second or two."""
    fits = _model_fits()
    rows = [_row(entry, fits.get(entry.name, ModelFit(None, "?"))) for entry in load_catalogue()]
    return sorted(rows, key=lambda row: row.path is None)  # stable: the default stays first


def _model_fits() -> Mapping[str, ModelFit]:
    """By the models' names; empty if it cannot be found out. Takes a second or two.

    In a process of its own: it asks native code for GPUs, which may print, or die.
    """
    command = [sys.executable, "-m", "safesteer_edge", "models", "list", "--json"]
    try:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=True
        )
        models = json.loads(said.stdout)["models"]
        return {each["name"]: ModelFit(each["needs_bytes"], each["fits"]) for each in models}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return {}


def _row(entry: CatalogueModel, fit: ModelFit) -> ModelRow:
    # Deferred: formats that read a whole header, which the first frame does not need.
    from safesteer_edge.library.index import InstalledFile, read_installed_file

    file = read_installed_file(entry.path) if entry.path is not None else InstalledFile()
    pulled = entry.files.get(entry.quantization)
    return ModelRow(
        name=entry.name,
        title=entry.title,
        quantization=file.quantization or entry.quantization,
        size_bytes=file.size_bytes or (pulled.size_bytes if pulled else None),
        has_bundle=entry.bundle is not None,
        takes=", ".join(("text", *entry.takes)),
        licence=entry.licence,
        path=entry.path,
        install=_install_command(entry),
        problem=file.problem,
        fit=fit,
    )


def _install_command(entry: CatalogueModel) -> str:
    # Deferred: it looks at the environment that it installs into.
    from safesteer_edge.processes.pip_commands import install_command

    if entry.repository:
        return f"safesteer-edge models pull {entry.name}"
    return install_command(entry.install) if entry.install else ""
