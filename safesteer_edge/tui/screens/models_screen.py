"""Choosing a model: what is installed, what is known, and whether a guard was made for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from safesteer_edge.errors import SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.tui.model_rows import ModelRow, size_for_people

_FITS = {
    "gpu": "all of it fits on the GPU",
    "part": "some layers fit on the GPU",
    "yes": "fits into memory",
    "tight": "fits into memory, tightly",
    "no": "does not fit into memory",
    "?": "nobody knows whether it fits",
}

_SHORT_FITS = {"gpu": "GPU", "part": "GPU+", "yes": "fits", "tight": "tight", "no": "too big"}

ModelLister = Callable[[], Sequence[ModelRow]]


class ModelsScreen(ModalScreen[ModelRow | None]):
    """Ends with the model to load, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("f3", "dismiss(None)", "Close", id="chat.models"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012  # Textual's own type

    DEFAULT_CSS = """
    ModelsScreen {
        align: center middle; background: $background 60%;
        & #models {
            width: 96; max-width: 96%; height: auto; max-height: 90%;
            border: round $primary; background: $surface; padding: 0 1;
        }
        & OptionList {
            height: auto; max-height: 16; background: $surface; padding: 0;
            border: none; text-wrap: nowrap; text-overflow: ellipsis;
            &:focus { border: none; }
        }
        &.-short OptionList { max-height: 12; }
        & #about { height: auto; min-height: 4; padding: 0 1; margin: 1 0 0 0;
                   color: $foreground 80%; border-top: solid $border; }
    }
    """

    @dataclass
    class _Listed(Message):
        """rows: the models; or the sentence that says why there is no list."""

        rows: Sequence[ModelRow] | str

    def __init__(self, lister: ModelLister, loaded: str | None) -> None:
        """loaded: the name of the model that is loaded."""
        super().__init__()
        self._lister = lister
        self._loaded = loaded
        self._rows: Sequence[ModelRow] = ()

    def compose(self) -> ComposeResult:
        """A list, and what there is to know about the chosen row."""
        with Vertical(id="models") as box:
            box.border_title = "Models"
            box.border_subtitle = "Enter loads it · Esc closes"
            yield OptionList(id="rows")
            yield Static(Content("looking …"), id="about")

    def on_mount(self) -> None:
        """Begin to look."""
        self._list()

    @work(thread=True)
    def _list(self) -> None:
        try:
            self.post_message(self._Listed(self._lister()))
        except SafeSteerError as error:
            self.post_message(self._Listed(str(error)))

    def on_models_screen__listed(self, message: _Listed) -> None:
        """Show the list, the loaded model chosen."""
        if isinstance(message.rows, str):
            self.query_one("#about", Static).update(Content(message.rows))
            return
        self._rows = message.rows
        options = self.query_one("#rows", OptionList)
        options.add_options([Option(self._line(row)) for row in self._rows])
        names = [row.name for row in self._rows]
        options.highlighted = names.index(self._loaded) if self._loaded in names else 0
        options.focus()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Say more about the row under the cursor."""
        self.query_one("#about", Static).update(_about(self._rows[event.option_index]))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Load it, if it can be."""
        row = self._rows[event.option_index]
        if row.problem is not None:
            self.notify(row.problem, severity="error", markup=False)
        elif row.path is None:
            self.notify(f"not installed; run: {row.install}", severity="warning", markup=False)
        else:
            self.dismiss(row)

    def _line(self, row: ModelRow) -> Content:
        sign, state = "·", "to install"
        if row.problem is not None:
            sign, state = "✗", "damaged"
        elif row.name == self._loaded:
            sign, state = "●", "loaded"
        elif row.path is not None:
            sign, state = "○", "installed"
        guard = "guard" if row.has_bundle else "no guard"
        text = (
            f"{sign} {row.title:<21.21} {row.quantization:<7} {row.size:>8} "
            f"{_SHORT_FITS.get(row.fit.fits, '?'):<7}  {guard:<8} {state}"
        )
        style = "" if row.path is not None else "$foreground 60%"
        return Content.styled(strip_control_characters(text), style)


def _fit_words(row: ModelRow) -> str:
    needs = size_for_people(row.fit.needs_bytes)
    about = "about " if row.path is None else ""
    return f"{f'needs {about}{needs}: ' if needs else ''}{_FITS.get(row.fit.fits, _FITS['?'])}"


def _about(row: ModelRow) -> Content:
    guard = "a guard was made for it"
    if not row.has_bundle:
        guard = "no guard was made for it: 'safesteer-edge calibrate' makes one"
    lines = [f"{row.name} · takes {row.takes} · {row.licence}", f"{_fit_words(row)}; {guard}"]
    lines.append(row.problem or (str(row.path) if row.path else f"to install: {row.install}"))
    return Content(strip_control_characters("\n".join(lines)))
