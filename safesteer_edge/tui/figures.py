"""Figures of a turn in a few words: speed, time to the first text, how full the context is."""

from __future__ import annotations

from safesteer_edge.tui.shown_turn import ShownTurn


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


def context_used(n_tokens: int, n_ctx: int) -> str:
    """How full the context is."""
    return f"context {100 * n_tokens / n_ctx:.0f} %"
