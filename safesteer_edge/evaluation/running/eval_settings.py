"""What an evaluation was asked for, and the files that its folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.readers.read import FileChoice
from safesteer_edge.evaluation.running.plan import SuiteChoice
from safesteer_edge.settings import SessionSettings
from safesteer_edge.usable_cores import n_usable_cores

ROWS: Final = "rows.jsonl"
JUDGEMENTS: Final = "judgements.jsonl"
QUALITY: Final = "quality.jsonl"
FACTS: Final = "facts.json"
BENCH: Final = "bench.json"
HELDOUT: Final = "heldout.json"

Narrate = Callable[[str], None]
_LONGEST_JUDGE_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """session: the model, and how it samples. defences: by name; none: all that differ.

    limit: cases of a suite at most. n_quality: harmless cases for KL and perplexity.
    n_workers: at most; fewer where memory is short. n_bench_repeats: of the bench at the end.
    with_heldout: at the very end, the guard on the whole test split (`limit` of each label).
    """

    session: SessionSettings
    folder: Path
    suites: tuple[SuiteChoice, ...] = ()
    files: tuple[FileChoice, ...] = ()
    defences: tuple[str, ...] = ()
    judges: tuple[str, ...] = ("rules",)
    with_curve: bool = False
    limit: int | None = None
    n_quality: int = 12
    n_workers: int = 1
    n_bench_repeats: int = 0
    with_heldout: bool = False
    judge_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.suites and not self.files:
            raise SettingsError("there is nothing to ask; give --suite or --data")
        if not self.judges:
            raise SettingsError("there is no judge; give --judge rules")
        for name, low in (("limit", 1), ("n_quality", 0), ("n_workers", 1), ("n_bench_repeats", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise SettingsError(f"{name} is {value!r}; expected at least {low}")

        if not 0 < self.judge_timeout_s <= _LONGEST_JUDGE_S:  # false for NaN as well
            raise SettingsError(
                f"judge_timeout_s is {self.judge_timeout_s!r}; expected seconds, more than 0 and "
                f"at most {_LONGEST_JUDGE_S:g}"
            )

    def one_worker(self) -> SessionSettings:
        """The session of one of the workers, which share the cores."""
        threads = self.session.n_threads or max(1, n_usable_cores() // self.n_workers)
        return replace(self.session, n_threads=threads)
