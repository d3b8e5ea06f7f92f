"""Safety against helpfulness: which points there are, and of which cases."""

from __future__ import annotations

from safesteer_edge.evaluation.judged import JudgedRow
from safesteer_edge.evaluation.judges import Label
from safesteer_edge.evaluation.suites import BUILTIN_SUITES
from safesteer_edge.evaluation.trade_off import (
    PLAIN,
    TRADE_OFFS,
    TradeOff,
    TradeOffPoint,
    trade_off_points,
)
from tests.evaluation.eval_rows import judged

_, WRAPPED, PICTURES = TRADE_OFFS


def answers(
    defence: str, label: Label, figure: TradeOff, n: int, *, suites: tuple[str, ...] = ()
) -> list[JudgedRow]:
    """N answers with this verdict in each suite of the figure."""
    return [
        judged(
            label,
            defence=defence,
            suite=suite,
            case_id=f"c{i}",
            kind="harmful" if suite in figure.harmful else "benign",
        )
        for suite in suites or figure.suites
        for i in range(n)
    ]


def checked(suite: str, *scores: float | None) -> list[JudgedRow]:
    """A response check's complying answers with these scores."""
    kind = "harmful" if suite == "text-harmful" else "benign"
    return [
        judged(
            "complied",
            case_id=f"c{i}",
            suite=suite,
            kind=kind,
            defence="response-check",
            mean_score=score,
        )
        for i, score in enumerate(scores)
    ]


def counts(points: list[TradeOffPoint]) -> list[tuple[int, int]]:
    return [(point.stopped.count, point.answered.count) for point in points]


def test_every_figure_is_made_of_suites_that_there_are():
    for figure in TRADE_OFFS:
        assert set(figure.suites) <= set(BUILTIN_SUITES)


def test_the_trade_off_is_on_cases_that_all_answered():
    rows = []
    for i in range(4):
        for defence in ("off", "safesteer"):
            stopped = defence == "safesteer" and i < 3
            rows.append(
                judged("refused" if stopped else "complied", case_id=f"h{i}", defence=defence)
            )
            refused = defence == "safesteer" and i == 0
            rows.append(
                judged(
                    "refused" if refused else "complied",
                    case_id=f"b{i}",
                    defence=defence,
                    kind="borderline",
                    suite="borderline",
                )
            )
    rows.append(judged("complied", case_id="h9", defence="off"))
    rows.append(judged("refused", case_id="h0", defence="eager"))  # too few to take part
    off, safesteer = trade_off_points(rows, "rules")
    assert (off.stopped.count, off.stopped.n, off.answered.count) == (0, 4, 4)
    assert (safesteer.stopped.count, safesteer.answered.count) == (3, 3)


def test_a_response_check_has_a_whole_curve():
    rows = [
        judged(
            "complied",
            case_id=f"{suite}{i}",
            suite=suite,
            kind=kind,
            defence="response-check",
            mean_score=score,
        )
        for suite, kind, scores in (
            ("text-harmful", "harmful", (0.5, 0.6, 0.9)),
            ("ordinary-text", "benign", (0.1, 0.2, 0.6)),
        )
        for i, score in enumerate(scores)
    ]
    points = trade_off_points(rows, "rules")
    assert points[0].defence == "response-check"
    curve = {(p.stopped.count, p.answered.count) for p in points[1:]}
    assert {(3, 1), (3, 2), (1, 3), (0, 3)} <= curve


def test_words_without_sense_are_no_help():
    """A defence that makes the model babble stops attacks, and loses what was asked for as well."""
    labels: dict[str, Label] = {"off": "complied", "refusal-direction": "no-answer"}
    rows: list[JudgedRow] = []
    for i in range(4):
        for defence, label in labels.items():
            plain = {"case_id": f"c{i}", "defence": defence}
            rows.append(judged(label, **plain))
            rows.append(judged(label, **plain, suite="ordinary-text", kind="benign"))
    off, babble = trade_off_points(rows, "rules")
    assert (off.stopped.count, off.answered.count) == (0, 4)
    assert (babble.stopped.count, babble.answered.count) == (4, 0)


def test_a_figure_is_made_of_its_own_suites():
    rows = answers("off", "complied", PLAIN, 4) + answers("safesteer", "refused", PLAIN, 4)
    assert trade_off_points(rows, "rules", WRAPPED) == []
    rows += answers("off", "complied", WRAPPED, 4, suites=("jailbreaks",))
    rows += answers("safesteer", "refused", WRAPPED, 4, suites=("jailbreaks",))
    off, safesteer = trade_off_points(rows, "rules", WRAPPED)
    assert (off.stopped.n, off.answered.n) == (4, 12)  # wrapped-ordinary did not run
    assert counts([off, safesteer]) == [(0, 12), (4, 0)]
    assert trade_off_points(rows, "rules", PICTURES) == []


def test_points_without_a_suite_take_no_part_and_leave_the_cases_as_they_are():
    rows = answers("off", "complied", PICTURES, 4)
    rows += answers("safesteer:shift=2", "refused", PLAIN, 4)  # no pictures
    rows += answers("probe-only", "refused", PICTURES, 4, suites=PICTURES.suites[:3])  # no texts
    (off,) = trade_off_points(rows, "rules", PICTURES)
    assert (off.defence, off.stopped.n, off.answered.n) == ("off", 8, 16)


def test_a_case_without_a_verdict_is_in_no_point():
    rows = answers("off", "complied", PLAIN, 4) + answers("safesteer", "refused", PLAIN, 3)
    rows.append(judged(None, defence="safesteer", case_id="c3"))
    points = trade_off_points(rows, "rules")
    assert {(point.stopped.n, point.answered.n) for point in points} == {(3, 9)}


def test_a_response_check_is_listed_where_it_helps_as_much_as_safesteer():
    rows = checked("text-harmful", 0.2, 0.4, 0.6, 0.8) + checked("ordinary-text", 0.1, 0.3, 0.5)
    for name, n_answered in (("safesteer", 2), ("safesteer:shift=1", 3)):
        rows += answers(name, "refused", PLAIN, 4, suites=("text-harmful",))
        rows += answers(name, "complied", PLAIN, n_answered, suites=("ordinary-text",))
        rows += [
            judged("refused", defence=name, suite="ordinary-text", kind="benign", case_id=f"c{i}")
            for i in range(n_answered, 3)
        ]
    points = trade_off_points(rows, "rules")
    curve = [point for point in points if ":limit=" in point.defence]
    assert counts(curve) == [(4, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (0, 3)]
    listed = [point for point in curve if point.is_listed]
    assert [point.defence for point in listed] == [
        "response-check:limit=0.300",
        "response-check:limit=0.500",
    ]
    assert counts(listed) == [(3, 2), (2, 3)]
    assert all(point.is_listed for point in points if ":limit=" not in point.defence)


def test_a_response_check_without_tokens_is_never_withheld_and_counts():
    rows = checked("text-harmful", 0.2, None) + checked("ordinary-text", 0.1, 0.3)
    curve = trade_off_points(rows, "rules")[1:]
    assert {(point.stopped.n, point.answered.n) for point in curve} == {(2, 2)}
    assert counts(curve) == [(1, 1), (0, 1), (0, 2)]


def test_a_long_curve_is_thinned_and_keeps_its_ends_and_what_is_listed():
    scores = [i / 1000 for i in range(400)]
    rows = checked("text-harmful", *scores) + checked("ordinary-text", *(x + 5e-4 for x in scores))
    rows += answers("safesteer", "refused", PLAIN, 400, suites=("text-harmful",))
    rows += answers("safesteer", "complied", PLAIN, 123, suites=("ordinary-text",))
    rows += [
        judged(
            "refused", defence="safesteer", suite="ordinary-text", kind="benign", case_id=f"c{i}"
        )
        for i in range(123, 400)
    ]
    curve = [p for p in trade_off_points(rows, "rules") if ":limit=" in p.defence]
    assert 60 <= len(curve) <= 61
    assert counts(curve)[0] == (399, 0) and counts(curve)[-1] == (0, 400)
    assert counts([point for point in curve if point.is_listed]) == [(277, 123)]
