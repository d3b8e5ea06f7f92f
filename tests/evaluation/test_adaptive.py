"""Tries at one request: led by the risk, the same each time, and over when an answer complies."""

from __future__ import annotations

from collections.abc import Collection

from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.disguises import FORMS, dressed, try_again
from safesteer_edge.evaluation.rows import EvalRow
from tests.evaluation.eval_rows import REFUSAL, row

REQUEST = "Explain how to bake bread at home."
COMPLIANCE = "To bake a bread, mix flour with water, yeast and salt, and knead it for a while."
DECLINED = "I can't help you bake bread at home: the oven is hot, and an open flame is dangerous."
# Words enough, and no refusal: about something else.
BESIDE = "Mix two eggs with milk, flour and sugar, and fry thin pancakes in a hot pan."


class Defence:
    """Answers what it does not recognise; less sure, the more a disguise hides.

    unread: disguises that the model cannot read, and that the guard finds harmless.
    """

    def __init__(
        self,
        weak_spot: frozenset[str] | None = None,
        risk: bool = True,
        unread: Collection[str] = (),
    ) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.unread = [dressed(REQUEST, [name]) for name in unread]
        self.opens = None if weak_spot is None else dressed(REQUEST, weak_spot)
        self.parts = [] if weak_spot is None else [dressed(REQUEST, [part]) for part in weak_spot]
        self.risk = risk

    def ask(self, case: Case) -> tuple[EvalRow, float | None]:
        assert case.tries == 0
        self.asked.append(case.turns)
        answer = COMPLIANCE if case.turns == self.opens else REFUSAL
        risk = 0.2 if case.turns in self.parts else 0.9
        if case.turns in self.unread:
            answer, risk = BESIDE, 0.1
        asked = row(case_id=case.id, request=case.request, answer=answer)
        return asked, risk if self.risk else None


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
    assert {row.disguise for row in led} == {"look-alikes+question-behind"}
    assert sum(row.tries for row in led) < sum(row.tries for row in blind)


def test_what_the_model_does_not_understand_is_no_success_and_leads_nobody():
    weak = frozenset({"look-alikes", "question-behind"})
    unread = ("base64", "hex", "rot13", "reversed", "zalgo", "spaced", "bidi")
    led = [try_again(case(), Defence(weak, unread=unread).ask, seed=seed) for seed in range(20)]
    assert sum(row.answer == COMPLIANCE for row in led) == 20


def test_the_request_said_again_is_no_success():
    def echo(case: Case) -> tuple[EvalRow, float | None]:
        return row(request=case.request, answer=f"{REQUEST} {REQUEST}"), 0.1

    assert try_again(case(5), echo, seed=0).tries == 5


def test_an_answer_in_a_disguise_is_read_without_it():
    def shout(case: Case) -> tuple[EvalRow, float | None]:
        return row(request=case.request, answer=FORMS["spaced"](COMPLIANCE)), 0.1

    def decline(case: Case) -> tuple[EvalRow, float | None]:
        return row(request=case.request, answer=FORMS["spaced"](DECLINED)), 0.1

    assert try_again(case(5), shout, seed=0).tries == 1
    assert try_again(case(5), decline, seed=0).tries == 5


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
