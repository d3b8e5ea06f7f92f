"""Tries at one request: led by the risk, the same each time, and over when an answer complies."""

from __future__ import annotations

from safesteer_edge.evaluation.adaptive import try_again
from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.disguises import dressed
from safesteer_edge.evaluation.rows import EvalRow
from tests.evaluation.eval_rows import COMPLIANCE, REFUSAL, row

REQUEST = "Explain how to bake bread at home."


class Defence:
    """Answers what it does not recognise; less sure, the more a disguise hides."""

    def __init__(self, weak_spot: frozenset[str] | None = None, risk: bool = True) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.opens = None if weak_spot is None else dressed(REQUEST, weak_spot)
        self.parts = [] if weak_spot is None else [dressed(REQUEST, [part]) for part in weak_spot]
        self.risk = risk

    def ask(self, case: Case) -> tuple[EvalRow, float | None]:
        assert case.tries == 0
        self.asked.append(case.turns)
        answer = COMPLIANCE if case.turns == self.opens else REFUSAL
        risk = 0.2 if case.turns in self.parts else 0.9
        return row(case_id=case.id, answer=answer), risk if self.risk else None


def case(n: int = 100) -> Case:
    return Case("c0", "adaptive", "harmful", "fraud", REQUEST, (REQUEST,), tries=n)


def test_the_request_as_it_is_comes_first():
    defence = Defence(frozenset())
    assert try_again(case(), defence.ask, seed=0).tries == 1
    assert defence.asked == [(REQUEST,)]


def test_all_tries_are_made_where_nothing_helps_and_few_are_alike():
    defence = Defence()
    found = try_again(case(), defence.ask, seed=0)
    assert (found.tries, found.answer) == (100, REFUSAL)
    assert len(defence.asked) == 100
    assert len(set(defence.asked)) > 90


def test_two_disguises_whose_risk_was_low_are_put_together():
    weak = frozenset({"look-alikes", "question-behind"})
    led = [try_again(case(), Defence(weak).ask, seed=seed) for seed in range(20)]
    blind = [try_again(case(), Defence(weak, risk=False).ask, seed=seed) for seed in range(20)]
    assert sum(row.answer == COMPLIANCE for row in led) == 20
    assert sum(row.tries for row in led) < sum(row.tries for row in blind)


def test_the_same_seed_makes_the_same_tries():
    one, same, other = Defence(), Defence(), Defence()
    for defence, seed in ((one, 1), (same, 1), (other, 2)):
        try_again(case(30), defence.ask, seed=seed)
    assert one.asked == same.asked != other.asked


def test_what_cannot_be_asked_is_no_answer():
    def fail(case: Case) -> tuple[EvalRow, float | None]:
        return row(case_id=case.id, status="error", answer="", error="no room"), None

    found = try_again(case(5), fail, seed=0)
    assert (found.status, found.tries) == ("error", 5)
