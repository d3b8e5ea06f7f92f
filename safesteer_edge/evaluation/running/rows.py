"""A row: one case under one defence, what was answered and what it took. The unit of a run.

A row says whether it holds an answer: what could not be asked, judged or decoded is a row with
status `error`, is counted, and is never taken for an answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from safesteer_edge.evaluation.defences import Defence
from safesteer_edge.evaluation.suites.case import Case, CaseKind

RowStatus = Literal["ok", "error", "crashed"]
RowKey = tuple[str, str, str]  # suite, case, defence


@dataclass(frozen=True, slots=True)
class EvalRow:
    """answer: what a person would read. own_answer: the model's, where a check withheld it.

    n_tokens: of the answer without given ones; n_given: those. scores: of the first tokens, given
    ones included; mean_score: of all. Empty and None without a probe. passes: forward passes of
    decoding. peak_memory_bytes: of the process since this defence was opened.
    """

    suite: str
    case_id: str
    defence: str
    kind: CaseKind
    category: str
    attack: str
    group: str
    request: str
    status: RowStatus
    error: str = ""
    answer: str = ""
    own_answer: str = ""
    finish_reason: str = ""
    withheld: bool = False
    has_media: bool = False
    vector_active: bool = False
    n_tokens: int = 0
    n_given: int = 0
    passes: int = 0
    interventions: int = 0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    scores: tuple[float, ...] = ()
    mean_score: float | None = None
    peak_memory_bytes: int | None = None
    expected: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> RowKey:
        """What makes the row one of its kind in a run."""
        return self.suite, self.case_id, self.defence

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; `row_from_json` reads them back."""
        return asdict(self)


def row_from_json(data: object) -> EvalRow:
    """The row that `to_json` wrote. Raises ValueError for anything else."""
    names = {field.name for field in fields(EvalRow)}
    if not isinstance(data, dict) or not set(cast("dict[str, Any]", data)) <= names:
        raise ValueError("not a row of an evaluation")
    values = dict(cast("dict[str, Any]", data))
    for name in ("scores", "expected", "choices"):
        values[name] = tuple(values.get(name, ()))
    try:
        return EvalRow(**values)
    except TypeError as error:
        raise ValueError(f"not a row of an evaluation: {error}") from error


def unanswered(case: Case, defence: Defence, status: RowStatus, error: str) -> EvalRow:
    """The row of a case that has no answer."""
    return EvalRow(
        suite=case.suite,
        case_id=case.id,
        defence=defence.name,
        kind=case.kind,
        category=case.category,
        attack=case.attack,
        group=case.group or case.id,
        request=case.request,
        status=status,
        error=error,
        has_media=case.image is not None,
        expected=case.expected,
        choices=case.choices,
    )
