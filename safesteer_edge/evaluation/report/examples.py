"""Some answers for a report, masked: what an attack got out of a model is not for skimming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from safesteer_edge.evaluation.running.rows import EvalRow

_SHOWN_CHARACTERS: Final = 24
_N_EXAMPLES: Final = 12
_MASK: Final = "█"
_COMPARED: Final = ("off", "safesteer")


@dataclass(frozen=True, slots=True)
class Example:
    """One case and its answers by defence."""

    suite: str
    attack: str
    kind: str
    request: str
    answers: dict[str, str]


def choose_examples(rows: Sequence[EvalRow], *, with_texts: bool) -> list[Example]:
    """Cases whose answers differ, spread over suites. Harmful ones are masked but for a start."""
    by_case: dict[tuple[str, str], dict[str, EvalRow]] = {}
    for row in rows:
        if row.status == "ok" and row.defence in _COMPARED:
            by_case.setdefault((row.suite, row.case_id), {})[row.defence] = row
    differing = [
        answers
        for answers in by_case.values()
        if len(answers) == len(_COMPARED) and len({r.answer for r in answers.values()}) > 1
    ]
    per_suite: dict[str, int] = {}
    examples: list[Example] = []
    for answers in differing:
        row = answers[_COMPARED[0]]
        n_before = per_suite.get(row.suite, 0)
        if n_before >= 3 or len(examples) >= _N_EXAMPLES:
            continue
        per_suite[row.suite] = n_before + 1
        is_masked = row.kind == "harmful" and not with_texts
        show = mask if is_masked else str
        examples.append(
            Example(
                row.suite,
                row.attack,
                row.kind,
                show(row.request),
                {name: show(each.answer) for name, each in answers.items()},
            )
        )
    return examples


def mask(text: str) -> str:
    """The first characters of a text, and every later letter or digit hidden."""
    start, rest = text[:_SHOWN_CHARACTERS], text[_SHOWN_CHARACTERS:]
    return start + "".join(_MASK if character.isalnum() else character for character in rest)
