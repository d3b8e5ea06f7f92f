"""What is around the conversation: the lines at the top and bottom, and the guard's inspector."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.guard.events import Candidate, Step
from safesteer_edge.guard.policy import GuardMode, GuardPolicy
from safesteer_edge.tui.guard_words import (
    MODE_LABELS,
    NOTICES,
    UNCALIBRATED,
    notice,
    passages,
    score_lines,
    sparkline,
    verdict_lines,
)
from safesteer_edge.tui.shown_turn import ShownTurn, proposed_by_sampler


class TopBar(Horizontal):
    """Which chat, which model, which guard; always there."""

    DEFAULT_CSS = """
    TopBar {
        height: 1; background: $surface; padding: 0 1;
        & #chat-title {
            width: 1fr; color: $foreground; text-style: bold;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #model-name {
            width: auto; max-width: 50%; color: $foreground 75%; padding: 0 2;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #guard-mode { width: auto; color: $primary; text-style: bold; }
        &.-monitor #guard-mode, &.-uncalibrated #guard-mode {
            background: $warning; color: $background; padding: 0 1;
        }
        &.-off #guard-mode { background: $error; color: $background; padding: 0 1; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="chat-title")
        yield Static(id="model-name")
        yield Static(id="guard-mode")

    def show(
        self, *, title: str, model: str, guard: GuardMode, is_uncalibrated: bool = False
    ) -> None:
        self.set_class(is_uncalibrated, "-uncalibrated")
        self.set_class(guard == "monitor", "-monitor")
        self.set_class(guard == "off", "-off")
        self.query_one("#chat-title", Static).update(Content(strip_control_characters(title)))
        self.query_one("#model-name", Static).update(Content(strip_control_characters(model)))
        mark = f", {UNCALIBRATED}" if is_uncalibrated else ""
        self.query_one("#guard-mode", Static).update(Content(MODE_LABELS[guard] + mark))


class StatusBar(Horizontal):
    """What happens now, the last turn's figures, and where help is."""

    DEFAULT_CSS = """
    StatusBar {
        height: 1; background: $surface; padding: 0 1; color: $foreground 75%;
        & #state { width: auto; padding: 0 2 0 0; }
        & #figures {
            width: 1fr; color: $foreground 60%; margin: 0 1 0 0;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #help-key, #menu-key { width: auto; color: $foreground 60%; }
        &.-failed #state { color: $text-error; text-style: bold; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="state")
        yield Static(id="figures")
        yield Static(id="help-key")
        yield Static(Content(" · Ctrl+P menu"), id="menu-key")

    def show_help_key(self, label: str) -> None:
        self.query_one("#help-key", Static).update(Content(f"{label} help"))

    def show_state(self, text: str, *, failed: bool = False) -> None:
        self.set_class(failed, "-failed")
        self.query_one("#state", Static).update(Content(strip_control_characters(text)))

    def show_figures(self, text: str) -> None:
        self.query_one("#figures", Static).update(Content(text), layout=False)


# -- the live line over the input while an answer streams: the guard's scores, and the risk --------


class RiskLine(Static):
    """Hidden while nothing streams; `show` shows it."""

    DEFAULT_CSS = """
    RiskLine { height: 1; padding: 0 2; color: $foreground 75%; display: none;
               &.-shown { display: block; } }
    """

    def show(self, turn: ShownTurn, limit: float | None, stop_key: str) -> None:
        """Show where the turn stands. limit: the risk that ends a turn."""
        self.set_class(True, "-shown")
        self.update(self._line(turn, limit, stop_key), layout=False)

    def _line(self, turn: ShownTurn, limit: float | None, stop_key: str) -> Content:
        if turn.prefill is None:
            return Content(f"reading the prompt …   {stop_key} stops")
        scores = turn.scores[-24:]
        if not scores:
            words = "answering, unchecked" if turn.guard == "off" else "the guard is checking"
            return Content(f"{words} …   {stop_key} stops")
        found = notice(turn.risk or 0.0, limit)
        style = ("", "", "$text-warning", "bold $text-error")[NOTICES.index(found)]
        parts = [Content("guard: "), Content.styled(found, style)]
        if turn.n_restarts:
            parts.append(Content.styled("  ◆ begun again by the guard", "$text-warning"))
        elif turn.n_interventions:
            parts.append(Content.styled(f"  ◆ {passages(turn.n_interventions)}", "$text-warning"))
        elif turn.text == "" and turn.guard in ("steer", "refuse"):
            parts.append(Content("  checking before showing"))
        parts.append(Content(f"  {sparkline(scores, 24)}"))
        return Content("").join(parts)


# -- what an empty chat shows ----------------------------------------------------------------------

_FIRST_RUN = (
    "This is a chat with an AI model that runs on your computer. Nothing you type leaves it. "
    "While the model writes, a guard checks every word and steers away from harmful ones. The "
    "guard can miss things.",
    "The built-in model shows how everything works. It is tiny: it writes fluently and is often "
    "wrong. Press {models} to see better models.",
)
_KEYS = (
    ("attach", "attach a file (you can also drop it here, or type its path)"),
    ("chats", "your earlier chats"),
    ("models", "choose a model"),
    ("settings", "settings"),
    ("help", "all keys and commands"),
)


class Welcome(Vertical):
    """A few lines, in the middle; on the first run, what this is as well."""

    DEFAULT_CSS = """
    Welcome {
        height: auto; min-height: 100%; align: center middle;
        & Static { width: auto; max-width: 70; margin: 0 1 1 1; }
        & .name { text-style: bold; color: $primary; }
        & .lines { color: $foreground 80%; }
    }
    """

    def __init__(self, *, is_first_run: bool) -> None:
        super().__init__()
        self._intro = _FIRST_RUN if is_first_run else ()

    def compose(self) -> ComposeResult:
        yield Static(Content("◆ SafeSteer Edge"), classes="name")
        yield from (Static(classes="intro") for _ in self._intro)
        yield Static(classes="lines")

    def show_keys(self, labels: Mapping[str, str]) -> None:
        """Say what to do, and by which keys. labels: of the commands' keys."""
        for part, text in zip(self.query(".intro").results(Static), self._intro, strict=True):
            part.update(Content(text.format_map(labels)))
        width = max(len(labels[name]) for name, _ in _KEYS)
        lines = [Content("Type a question below and press Enter."), Content("")]
        lines += [
            Content.styled(f"{labels[name]:>{width}}", "bold") + Content(f"  {text}")
            for name, text in _KEYS
        ]
        self.query_one(".lines", Static).update(Content("\n").join(lines))


# -- the guard's view of one answer: scores, tokens by heat, interventions, vector -----------------

_MAX_HEAT_TOKENS = 600
_LIVE_TOKENS = 100  # of an answer that streams, so many to twice as many: each frame draws them
_MAX_INTERVENTIONS = 50
_MAX_CANDIDATES = 6
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"


class Inspector(VerticalScroll):
    """A panel beside the transcript, or over it where the terminal is narrow."""

    DEFAULT_CSS = """
    Inspector {
        display: none; width: 46; border-left: solid $border; padding: 1 1 0 1;
        background: $background; scrollbar-size-vertical: 1; scrollbar-color: $panel;
        & Static { height: auto; margin: 0 0 1 0; }
        & .heading { color: $primary; text-style: bold; margin: 0; }
        &.-shown { display: block; }
    }
    """

    def compose(self) -> ComposeResult:
        for name, heading in (
            ("verdict", "What the guard did"),
            ("scores", "Harm score of each token"),
            ("steered", "Steered words (× wanted, ✓ said instead)"),
            ("heat", "The answer by score (₅ is 0.5 or more, ◆ steered)"),
        ):
            yield Static(Content(heading), classes="heading", id=f"{name}-heading")
            yield Static(id=name)

    @property
    def is_shown(self) -> bool:
        return self.has_class("-shown")

    def show_turn(self, turn: ShownTurn | None) -> None:
        if turn is None:
            self._update("verdict", Content("ask something first"))
            for name in ("scores", "steered", "heat"):
                self._update(name, Content(""))
        else:
            self.show_live(turn)

    def show_live(self, turn: ShownTurn) -> None:
        """Keep up with a turn that streams; cheap while the panel is hidden."""
        if self.is_shown:
            is_at_end = 0 < self.max_scroll_y <= self.scroll_y
            lines = strip_control_characters("\n".join(verdict_lines(turn)))
            self._update("verdict", Content(lines))
            self._update("scores", scores(turn, max(8, (self.size.width or 44) - 4)))
            self._update("steered", interventions(turn))
            start = len(turn.steps) - _MAX_HEAT_TOKENS
            if not turn.is_over:  # it stands still while the newest are added
                start = (len(turn.steps) // _LIVE_TOKENS - 1) * _LIVE_TOKENS
            n_hidden = turn.refusal.n_tokens_taken_back if turn.refusal is not None else 0
            end = len(turn.steps) - n_hidden  # what was taken back is shown nowhere
            text = heat(turn.steps[max(0, start) : max(0, end)], turn.policy)
            if n_hidden:
                text += Content(f" [{n_hidden} tokens that were not shown]")
            self._update("heat", text)
            if is_at_end:
                self.scroll_end(animate=False)

    def _update(self, name: str, text: Content) -> None:
        part = self.query_one(f"#{name}", Static)
        part.update(text)
        part.display = self.query_one(f"#{name}-heading").display = bool(text.plain)


def scores(turn: ShownTurn, width: int) -> Content:
    """The harm scores of an answer as a line, and what they are measured against."""
    line = Content.styled(sparkline(turn.scores, width), "$primary")
    return Content("\n").join([line, *map(Content, score_lines(turn))]) if turn.scores else line


def interventions(turn: ShownTurn) -> Content:
    """The steps at which the guard chose another word: what for what, and the scores."""
    parts = [_intervention(step) for step in turn.interventions[:_MAX_INTERVENTIONS]]
    n_left = len(turn.interventions) - len(parts)
    if opening := turn.opening.strip():
        text = strip_control_characters(opening)
        parts.insert(0, Content.styled(f"◆ began again with “{text}”", "bold $text-warning"))
    if n_left:
        parts.append(Content(f"and {n_left} more; /trace saves them all"))
    return Content("\n").join(parts)


def _intervention(step: Step) -> Content:
    proposed = proposed_by_sampler(step)
    before = f"{_quoted(proposed.text)} {proposed.score:.2f}" if proposed else "another word"
    score = f" {step.score:.2f}" if step.score is not None else ""
    lines = [
        Content(f"◆ token {step.step}: ")
        + Content(before)
        + Content(" → ")
        + Content.styled(f"{_quoted(step.text)}{score}", "bold $text-warning")
    ]
    others = sorted(step.candidates, key=lambda c: -c.logprob)[:_MAX_CANDIDATES]
    lines += [_candidate(candidate, step) for candidate in others]
    return Content("\n").join(lines)


def _candidate(candidate: Candidate, step: Step) -> Content:
    sign = " "
    if candidate.token_id == step.token_id:
        sign = "✓"
    elif candidate.token_id == step.proposed_token_id:
        sign = "×"
    bar = "▮" * round(candidate.score * 8)
    return Content(f"   {sign} {_quoted(candidate.text):<14.14} {candidate.score:.2f} {bar}")


def heat(steps: list[Step], policy: GuardPolicy | None) -> Content:
    """The answer's tokens: a digit after each that scores is its tenths; colour says the same."""
    threshold = policy.threshold if policy else 0.5
    parts: list[Content] = []
    for step in steps:
        text = strip_control_characters(step.text)
        if step.score is None or not text:
            parts.append(Content(text))
            continue
        tenths = min(9, int(step.score * 10))
        style = ""
        if step.score > threshold:
            style = "bold $text-error"
        elif step.score > threshold / 2:
            style = "$text-warning"
        sign = "◆" if step.opening or not step.accepted else ""
        mark = _SUBSCRIPTS[tenths] if tenths else ""
        parts.append(Content.styled(f"{text}{mark}{sign}", style))
    return Content("").join(parts)


def _quoted(text: str) -> str:
    return f"‘{strip_control_characters(text).strip() or '␣'}’"
