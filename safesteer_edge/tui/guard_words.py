"""What the guard does and did, in the words and figures that every view uses."""

from __future__ import annotations

import shlex
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from safesteer_edge.chats.chat_log import FIRST_WORDS
from safesteer_edge.guard.policy import MAX_PATIENCE, GuardMode
from safesteer_edge.session.protocol import SessionInfo
from safesteer_edge.tui.shown_turn import ShownTurn

MODE_LABELS: dict[GuardMode, str] = {
    "steer": "guard: steer",
    "refuse": "guard: refuse",
    "monitor": "MONITOR ONLY",
    "off": "GUARD OFF",
}
MODE_MEANINGS: dict[GuardMode, str] = {
    "steer": "the guard steers away from harmful words, and refuses if that fails",
    "refuse": "the guard stops an answer that turns harmful",
    "monitor": "the guard only watches; it changes and stops nothing",
    "off": "nothing is checked",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
UNCALIBRATED = "UNCALIBRATED"
UNCALIBRATED_MEANING = "nobody has measured which answers this guard stops"
NOTICES = ("nothing noticed", "slightly suspicious", "suspicious", "very suspicious")
_NOTICE_SHARES = (0.25, 0.5, 0.8)  # of the limit


def is_uncalibrated(info: SessionInfo | None, mode: GuardMode) -> bool:
    return mode != "off" and info is not None and info.is_calibrated is False


def better_guard(info: SessionInfo | None) -> str | None:
    """How to make a better guard than one that was made quickly; None: this one was not."""
    if info is None or not info.is_quick:
        return None
    return (
        "this guard was made quickly; make a better one overnight, from what was read for it and "
        f"more: safesteer-edge calibrate {shlex.quote(str(info.model_path))} --effort standard"
    )


def notice(risk: float, limit: float | None) -> str:
    """What the guard makes of an answer, on the one scale that people are shown.

    limit: the risk that ends an answer; None: not known.
    """
    return NOTICES[bisect_right(_NOTICE_SHARES, risk / limit if limit else risk)]


def passages(count: int) -> str:
    return f"{count} word was steered" if count == 1 else f"{count} words were steered"


def verdict_lines(turn: ShownTurn) -> list[str]:
    """What the guard did with an answer, in sentences."""
    lines = [f"{turn.guard}: {MODE_MEANINGS[turn.guard]}"]
    if turn.is_uncalibrated:
        lines.append(f"{UNCALIBRATED}: {UNCALIBRATED_MEANING}")
    if turn.guard != "off":
        if turn.risk is not None:
            found = notice(turn.risk, turn.policy.risk_limit if turn.policy else None)
            limits = " (which does not mean that it is safe)" if found == NOTICES[0] else ""
            lines.append(f"This answer: {found}{limits}")
        n_steered, n_tokens = turn.n_interventions, len(turn.steps)
        lines.append(f"{n_steered} of {n_tokens} tokens (words or parts of them) were steered")
        if turn.n_restarts:
            began = f" with “{turn.opening.strip()}”" if turn.opening else ""
            lines.append(
                f"the guard stopped a harmful start before it was shown, and the model began "
                f"again{began}"
            )
        if turn.prefill is not None and turn.prefill.vector_active:
            lines.append("The correction for pictures and sound was on")
    if turn.refusal is not None:
        lines.append(f"refused at token {turn.refusal.step}: {turn.refusal.detail}")
    if not turn.steps and turn.is_over:
        lines.append("details are not saved with chats; regenerate the answer to see them")
    return [line[:1].upper() + line[1:] for line in lines]


def score_lines(turn: ShownTurn) -> list[str]:
    """The figures behind the verdict, with what they mean; none where nothing was scored."""
    if not turn.scores:
        return []
    mean = sum(turn.scores) / len(turn.scores)
    lines = [f"0 is harmless, 1 is harmful: mean {mean:.2f}, highest {max(turn.scores):.2f}"]
    if turn.prefill is not None and turn.prefill.prompt_score is not None:
        lines[0] += f", question {turn.prefill.prompt_score:.2f}"
    policy = turn.policy
    lines.append(f"Risk {turn.risk or 0:.2f}: a running average of the scores")
    if policy is not None and turn.guard in ("steer", "refuse"):
        lines[-1] += f". The guard refuses above {policy.risk_limit:.2f}"
        if policy.hard_patience < MAX_PATIENCE:
            lines[-1] += (
                f", or at {policy.hard_patience} tokens in a row above {policy.hard_threshold:.2f}"
            )
    if policy is not None and turn.guard == "steer":
        lines.append(
            f"It steers words above {policy.threshold:.2f}, with strength {policy.strength:,.0f} "
            "(larger is stricter)"
        )
    return lines


def refusal_advice(turn: ShownTurn) -> str:
    if turn.refusal is not None and turn.refusal.reason == "guard_failed":
        return "The guard itself failed, so nothing was shown. Try again, or run 'doctor'."
    return "Try other words, or see what the guard saw."


def turn_notes(turn: ShownTurn, *, can_go_on: bool = True) -> list[str]:
    """Sentences on how a turn went, beyond its text. can_go_on: /continue can take it up."""
    notes = []
    how = "; type /continue for more" if can_go_on else ""
    if turn.refusal is None and turn.opening:
        notes.append("the guard led this answer to a refusal in the model's own words")
    elif turn.refusal is None and turn.n_restarts:
        notes.append("the guard had the model begin this answer again")
    elif turn.refusal is None and turn.n_interventions:
        notes.append(passages(turn.n_interventions) + " by the guard")
    if turn.end == "cancelled":
        notes.append("stopped by you" if turn.text else "stopped before the answer began")
    if turn.end == "length":
        notes.append(f"cut off at the token limit{how}")
    if turn.end == "loop":
        notes.append("stopped: it was repeating itself; a higher temperature helps")
    if turn.left_out is not None and turn.left_out.n_new:
        n_new = turn.left_out.n_new
        turns = "the oldest turn is" if n_new == 1 else f"the {n_new} oldest turns are"
        notes.append(f"the context was full: {turns} left out from here on; /compact makes room")
    if turn.is_summary:
        notes.append(
            "the model's own summary left out too much: from here on it has these first words in "
            "place of what was said; /undo takes them back"
            if turn.text.startswith(FIRST_WORDS)
            else "from here on the model has this summary in place of what was said"
        )
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
