"""The live line over the input while an answer streams: the guard's scores, and the risk."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from safesteer_edge.tui.guard_words import passages, risk_word
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.sparkline import sparkline


class RiskLine(Static):
    """Hidden while nothing streams."""

    DEFAULT_CSS = """
    RiskLine { height: 1; padding: 0 2; color: $foreground 75%; display: none;
               &.-shown { display: block; } }
    """

    def show(self, turn: ShownTurn, limit: float | None, stop_key: str) -> None:
        """Show where the turn stands. limit: the risk that ends a turn."""
        self.set_class(True, "-shown")
        self.update(self._line(turn, limit, stop_key), layout=False)

    def hide(self) -> None:
        """Nothing streams any more."""
        self.set_class(False, "-shown")

    def _line(self, turn: ShownTurn, limit: float | None, stop_key: str) -> Content:
        if turn.prefill is None:
            return Content(f"reading the prompt …   {stop_key} stops")
        scores = turn.scores[-24:]
        if not scores:
            words = "answering, unguarded" if turn.guard == "off" else "the guard is looking"
            return Content(f"{words} …   {stop_key} stops")
        risk = turn.risk or 0.0
        word = risk_word(risk, limit)
        style = {"raised": "$text-warning", "near the limit": "bold $text-error"}.get(word, "")
        parts = [Content("risk "), Content.styled(f"{risk:.2f} {word}", style)]
        if limit is not None:
            parts.append(Content(f" (limit {limit:.2f})"))
        if turn.n_interventions:
            parts.append(Content.styled(f"  ◆ {passages(turn.n_interventions)}", "$text-warning"))
        elif turn.text == "" and turn.guard in ("steer", "refuse"):
            parts.append(Content("  weighing before showing"))
        parts.append(Content(f"  {sparkline(scores, 24)}"))
        return Content("").join(parts)
