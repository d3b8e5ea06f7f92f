"""What the guard does and did, in the words and figures that every view uses."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from safesteer_edge.guard.policy import GuardMode
from safesteer_edge.session.protocol import SessionInfo
from safesteer_edge.tui.shown_turn import ShownTurn

MODE_LABELS: dict[GuardMode, str] = {
    "steer": "guard: steer",
    "refuse": "guard: refuse",
    "monitor": "MONITOR ONLY",
    "off": "GUARD OFF",
}
MODE_MEANINGS: dict[GuardMode, str] = {
    "steer": "harmful turns are steered away from, and refused when that fails",
    "refuse": "nothing is steered; an answer that turns harmful is refused",
    "monitor": "the guard only watches; answers are the model's own",
    "off": "no guard: answers are the model's own, unchecked",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
UNCALIBRATED = "UNCALIBRATED"
UNCALIBRATED_MEANING = "nobody has measured which answers this guard stops"


def is_uncalibrated(info: SessionInfo | None, mode: GuardMode) -> bool:
    return mode != "off" and info is not None and info.is_calibrated is False


def risk_word(risk: float, limit: float | None) -> str:
    words = ("calm", "low", "raised", "near the limit")
    return words[bisect_right((0.25, 0.5, 0.8), risk / limit if limit else risk)]


def passages(count: int) -> str:
    return f"{count} word was steered" if count == 1 else f"{count} words were steered"


def refusal_advice(turn: ShownTurn) -> str:
    if turn.refusal is not None and turn.refusal.reason == "guard_failed":
        return "The guard itself failed, so nothing was shown. Regenerate, or see 'doctor'."
    return "Ask in other words, or see what the guard saw."


def turn_notes(turn: ShownTurn, *, can_go_on: bool = True) -> list[str]:
    """Sentences on how a turn went, beyond its text. can_go_on: /continue can take it up."""
    notes = []
    how = ": /continue goes on" if can_go_on else ""
    if turn.n_interventions and turn.refusal is None:
        notes.append(passages(turn.n_interventions) + " by the guard")
    if turn.end == "cancelled":
        notes.append("stopped by you" if turn.text else "stopped before the answer began")
    if turn.end == "length":
        notes.append(f"cut at the token limit{how}")
    if turn.end == "died" and turn.error is None:
        notes.append(f"cut off when the program ended{how}" if turn.text else "never answered")
    return notes


# -- figures of a turn in a few words: speed, time to the first text, how full the context is ------


def turn_figures(turn: ShownTurn, n_ctx: int | None) -> str:
    """Speed, time to the first text and context of a turn that is over."""
    timings, usage = turn.timings, turn.usage
    if timings is None or usage is None:
        return ""
    parts = [f"{timings.tokens_per_second:.1f} tokens/s"]
    if turn.text:
        parts.append(f"first text {timings.ttft_s:.2f} s")
    if n_ctx:
        parts.append(context_used(usage.prompt_tokens + usage.completion_tokens, n_ctx))
    return " · ".join(parts)


def live_figures(turn: ShownTurn, decode_s: float, n_ctx: int | None) -> str:
    """The same while it streams."""
    n_steps = len(turn.steps)
    if not n_steps or decode_s <= 0:
        return ""
    parts = [f"{n_steps / decode_s:.1f} tokens/s"]
    if n_ctx and turn.prefill is not None:
        parts.append(context_used(turn.prefill.n_prompt_tokens + n_steps, n_ctx))
    return " · ".join(parts)


def size_for_people(size_bytes: int | None) -> str:
    """In GiB, MiB or KiB; empty if nobody knows."""
    if size_bytes is None:
        return ""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size_bytes >= unit:
            size = size_bytes / unit
            return f"{size:.1f} {name}" if size < 10 else f"{size:.0f} {name}"
    return f"{-(-size_bytes // 1024)} KiB"


def context_used(n_tokens: int, n_ctx: int) -> str:
    return f"context {100 * n_tokens / n_ctx:.0f} %"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values, one character each; of a longer row, the largest of each group.

    values in [0, 1]; the lowest block is 0.
    """
    if len(values) > width > 0:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [max(values[low:high]) for low, high in pairwise(edges)]
    return "".join(_BLOCKS[min(7, int(value * 8))] for value in values)
