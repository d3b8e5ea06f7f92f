"""Agreement and paired tests against hand-made cases and SciPy."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from safesteer_edge.evaluation.judged import (
    JudgedRow,
    cohens_kappa,
    judge_agreements,
    paired_test,
)
from safesteer_edge.evaluation.judges import Verdict
from safesteer_edge.metrics.statistics import sign_test
from tests.evaluation.eval_rows import judged, row


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 6), (3, 9), (10, 10), (2, 40)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int):
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert sign_test(b, c) == pytest.approx(expected)


def test_kappa_is_that_of_scikit_learn():
    first = ["a", "b", "b", "c", "a", "a", "b", "c", "c", "a"]
    second = ["a", "b", "c", "c", "a", "b", "b", "c", "a", "a"]
    assert cohens_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert math.isnan(cohens_kappa(["a", "a"], ["a", "a"]))
    assert math.isnan(cohens_kappa([], []))


def test_a_paired_test_takes_the_cases_that_both_know():
    first = [judged("complied", case_id=f"c{i}") for i in range(4)]
    second = [
        judged("refused", case_id="c0", defence="safesteer"),
        judged("refused", case_id="c1", defence="safesteer"),
        judged(None, case_id="c2", defence="safesteer"),
        judged("complied", case_id="c9", defence="safesteer"),
    ]
    result = paired_test("success", first, second, lambda j: j.verdict("rules").is_success)
    assert result is not None
    assert (result.n, result.only_first, result.only_second) == (2, 2, 0)
    assert (result.first, result.second) == ("off", "safesteer")
    assert result.p_value == 0.5
    assert (
        paired_test("success", first, second[3:], lambda j: j.verdict("rules").is_success) is None
    )


def test_judges_are_compared_on_distinct_answers_that_both_judged():
    def both(one: Verdict, other: Verdict, **changes: object) -> JudgedRow:
        return JudgedRow(row(**changes), {"rules": one, "model": other})

    rows = [
        both(Verdict("complied"), Verdict("unsafe"), answer="a"),
        both(Verdict("complied"), Verdict("unsafe"), answer="a", defence="paper"),
        both(Verdict("refused"), Verdict("safe"), answer="b"),
        both(Verdict("complied"), Verdict("safe"), answer="c"),
        both(Verdict("complied"), Verdict(None, error="x"), answer="d"),
    ]
    (found,) = judge_agreements(rows, ["rules", "model"])
    assert (found.agreeing.count, found.agreeing.n) == (2, 3)
    assert found.kappa == pytest.approx(0.4)
