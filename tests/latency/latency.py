"""How quick the chat is on this machine: `python -m tests.latency.latency`.

It drives the real application on the embedded model in a pseudo-terminal, and prints when the
input was usable, how long a key takes to appear while an answer streams, and what the application
costs the decoding, against the same engine with nothing drawn. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from statistics import median

from tests.latency.measured_terminal import MeasuredTerminal, p95

_QUESTION = "Write a long story about a lighthouse keeper and the sea."
_N_TOKENS = 384  # some thirty lines
_OPTIONS = ("--temperature", "0", "--max-tokens", str(_N_TOKENS))
_FIGURES = re.compile(rb"([\d.]+) tokens/s \xc2\xb7 first text")
_N_KEYS = 25


@dataclass(frozen=True, slots=True)
class Latency:
    """start_s: until a key shows, the model not loaded yet. key_ms: while an answer streams."""

    start_s: float
    key_ms_median: float
    key_ms_p95: float
    n_keys: int
    app_tokens_per_second: float
    engine_tokens_per_second: float

    @property
    def overhead_percent(self) -> float:
        """What the application takes of the decoding speed."""
        return 100 * (1 - self.app_tokens_per_second / self.engine_tokens_per_second)


def measure(n_rounds: int, n_threads: int | None) -> Latency:
    """Measure, rounds of application and bare engine in turn. Takes half a minute a round."""
    starts: list[float] = []
    keys: list[float] = []
    app_speeds: list[float] = []
    engine_speeds: list[float] = []
    options = (*_OPTIONS, *(("--threads", str(n_threads)) if n_threads else ()))
    for _ in range(n_rounds):
        with tempfile.TemporaryDirectory() as folder:
            terminal = MeasuredTerminal(folder, ["-m", "safesteer_edge", "chat", *options])
            try:
                starts.append(_time_start(terminal))
                app_speeds.append(_app_speed(terminal))
                keys += _time_keys(terminal)
            finally:
                terminal.close()
        engine_speeds.append(_engine_speed(n_threads))
    return Latency(
        start_s=median(starts),
        key_ms_median=1000 * median(keys),
        key_ms_p95=1000 * p95(keys),
        n_keys=len(keys),
        app_tokens_per_second=median(app_speeds),
        engine_tokens_per_second=median(engine_speeds),
    )


def _time_start(terminal: MeasuredTerminal) -> float:
    """Until a key that is typed as soon as the input is there has been drawn."""
    terminal.wait_for(b"new line")
    waited_s = time.perf_counter() - terminal.started_s + terminal.time_key()
    terminal.type("\x7f")
    return waited_s


def _time_keys(terminal: MeasuredTerminal) -> list[float]:
    """Ask again, and type while the answer streams."""
    terminal.type(_QUESTION + "\r")
    terminal.wait_for("▁".encode())
    keys: list[float] = []
    while len(keys) < _N_KEYS:
        keys.append(terminal.time_key())
        if _FIGURES.search(terminal.output):
            break
    return keys


def _app_speed(terminal: MeasuredTerminal) -> float:
    """Speed of an answer that nobody types into."""
    terminal.wait_for(b"ready")  # the model is loaded
    terminal.type(_QUESTION + "\r")
    terminal.wait_for(b"first text")
    return float(_FIGURES.findall(terminal.output)[-1])


def _engine_speed(n_threads: int | None) -> float:
    """The same question to the same engine, with nothing drawn."""
    from safesteer_edge.guard.events import TurnEnded
    from safesteer_edge.guard.policy import SamplingSettings
    from safesteer_edge.session.isolated_session import open_isolated_session
    from safesteer_edge.session.settings import SessionSettings

    settings = SessionSettings(
        sampling=SamplingSettings(temperature=0), max_tokens=_N_TOKENS, n_threads=n_threads
    )
    speed = 0.0
    with open_isolated_session(settings) as session:
        for event in session.ask(_QUESTION):
            if isinstance(event, TurnEnded):
                speed = event.timings.tokens_per_second
    return speed


def _print_long(n_lines: int, *, as_json: bool) -> None:
    from tests.latency.long_latency import measure_long

    found = measure_long(n_lines)
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
        return
    for each in found:
        print(
            f"{each.what:<44} {each.done_s:6.1f} s; a key waits {each.p95_ms:.0f} ms p95, "
            f"{each.worst_ms:.0f} ms at worst"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.latency.latency")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--long",
        type=int,
        nargs="?",
        const=10_000,
        metavar="LINES",
        help="measure very long answers and chats instead, without a model (default: 10000 lines)",
    )
    options = parser.parse_args()
    if options.long:
        _print_long(options.long, as_json=options.json)
        return
    found = measure(options.rounds, options.threads)
    if options.json:
        print(json.dumps({**asdict(found), "overhead_percent": found.overhead_percent}))
        return
    print(f"usable input after        {found.start_s:.2f} s (the model loads behind it)")
    print(
        f"a key while it streams    {found.key_ms_median:.0f} ms median, "
        f"{found.key_ms_p95:.0f} ms p95 ({found.n_keys} keys)"
    )
    print(
        f"decoding                  {found.app_tokens_per_second:.1f} tokens/s, bare engine "
        f"{found.engine_tokens_per_second:.1f}: {found.overhead_percent:.1f} % less"
    )


if __name__ == "__main__":
    main()
