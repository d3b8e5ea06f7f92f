"""The guard's view of one answer: scores, tokens by heat, interventions, vector."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.guard.events import Candidate, Step
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.tui.guard_words import (
    MODE_MEANINGS,
    UNCALIBRATED,
    UNCALIBRATED_MEANING,
    sparkline,
)
from safesteer_edge.tui.shown_turn import ShownTurn, proposed_by_sampler

_MAX_HEAT_STEPS = 600
_MAX_INTERVENTIONS = 50
_MAX_CANDIDATES = 6


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

    def __init__(self) -> None:
        super().__init__(id="inspector")
        self._turn: ShownTurn | None = None

    def compose(self) -> ComposeResult:
        """Headings with a text under each."""
        for name, heading in (
            ("verdict", "What the guard did"),
            ("scores", "Harmful score per token"),
            ("steered", "Steered words"),
            ("heat", "Tokens by score"),
        ):
            yield Static(Content(heading), classes="heading", id=f"{name}-heading")
            yield Static(id=name)

    @property
    def is_shown(self) -> bool:
        """True if it can be seen."""
        return self.has_class("-shown")

    @property
    def turn(self) -> ShownTurn | None:
        """The turn that it shows."""
        return self._turn

    def show_turn(self, turn: ShownTurn | None) -> None:
        """Show a turn, whole."""
        self._turn = turn
        self._update(("verdict", "scores", "steered", "heat"))

    def show_live(self, turn: ShownTurn) -> None:
        """Keep up with a turn that streams; cheap while the panel is hidden."""
        if self.is_shown:
            self._turn = turn
            self._update(("verdict", "scores", "steered"))

    def _update(self, names: tuple[str, ...]) -> None:
        turn = self._turn
        for name in names:
            text = Content("ask something first") if turn is None else self._section(name, turn)
            self.query_one(f"#{name}", Static).update(text)
            shown = bool(text.plain) and (turn is not None or name == "verdict")
            self.query_one(f"#{name}", Static).display = shown
            self.query_one(f"#{name}-heading", Static).display = shown

    def _section(self, name: str, turn: ShownTurn) -> Content:
        if name == "verdict":
            return verdict(turn)
        if name == "scores":
            return self._scores(turn)
        if name == "steered":
            return interventions(turn)
        return heat(turn.steps, turn.policy)

    def _scores(self, turn: ShownTurn) -> Content:
        scores = turn.scores
        if not scores:
            return Content("")
        width = max(8, (self.size.width or 44) - 4)
        lines = [Content.styled(sparkline(scores, width), "$primary")]
        mean = sum(scores) / len(scores)
        lines.append(Content(f"mean {mean:.2f}   highest {max(scores):.2f}"))
        if turn.policy is not None:
            policy = turn.policy
            lines.append(
                Content(f"steers above {policy.threshold:.2f}, hard {policy.hard_threshold:.2f}")
            )
            lines.append(Content(f"strength {policy.strength:.0f}"))
        if turn.prefill is not None and turn.prefill.prompt_score is not None:
            lines.append(Content(f"the prompt itself {turn.prefill.prompt_score:.2f}"))
        return Content("\n").join(lines)


def verdict(turn: ShownTurn) -> Content:
    """What the guard did, in lines."""
    mode = turn.guard
    lines = [f"{mode}: {MODE_MEANINGS[mode]}"]
    if turn.is_uncalibrated:
        lines.append(f"{UNCALIBRATED}: {UNCALIBRATED_MEANING}")
    if mode != "off":
        steps = len(turn.steps)
        lines.append(f"steps    {steps}, {turn.n_interventions} steered")
        if turn.risk is not None:
            limit = f", limit {turn.policy.risk_limit:.2f}" if turn.policy is not None else ""
            lines.append(f"risk     {turn.risk:.2f} at the end{limit}")
        if turn.prefill is not None:
            state = "on: there are pictures or sounds" if turn.prefill.vector_active else "off"
            lines.append(f"vector   {state}")
    if turn.refusal is not None:
        lines.append(f"refused  at step {turn.refusal.step}: {turn.refusal.detail}")
    if not turn.steps and turn.is_over:
        lines.append("steps are not kept with saved chats; regenerate to see them")
    return Content(strip_control_characters("\n".join(lines)))


def interventions(turn: ShownTurn) -> Content:
    """The steps at which the guard chose another word: what for what, and the scores."""
    parts = [_intervention(step) for step in turn.interventions[:_MAX_INTERVENTIONS]]
    n_left = len(turn.interventions) - len(parts)
    if n_left:
        parts.append(Content(f"and {n_left} more; /trace writes all of them"))
    return Content("\n").join(parts)


def _intervention(step: Step) -> Content:
    proposed = proposed_by_sampler(step)
    before = f"{_quoted(proposed.text)} {proposed.score:.2f}" if proposed else "the proposal"
    score = f" {step.score:.2f}" if step.score is not None else ""
    lines = [
        Content(f"◆ step {step.step}: ")
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
    for step in steps[:_MAX_HEAT_STEPS]:
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
        sign = "◆" if not step.accepted else ""
        mark = _SUBSCRIPTS[tenths] if tenths else ""
        parts.append(Content.styled(f"{text}{mark}{sign}", style))
    return Content("").join(parts)


_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"


def _quoted(text: str) -> str:
    return f"‘{strip_control_characters(text).strip() or '␣'}’"
