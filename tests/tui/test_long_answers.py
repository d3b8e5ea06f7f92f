"""Very long answers: their end is laid out, all of them can be read."""

from __future__ import annotations

import pytest
from textual.widgets import Static, TextArea

from safesteer_edge.tui.widgets.answer import KEPT_LINES, MAX_LINES, LongAnswer, tail_of
from safesteer_edge.tui.widgets.transcript import TurnView
from tests.latency.long_latency import measure_long
from tests.tui.app_driver import driven, opened
from tests.tui.scripted_session import Script, ScriptedModel, Word


def numbered(n_lines: int) -> str:
    return "\n\n".join(f"line {i}" for i in range(1, n_lines // 2 + 1))


@pytest.mark.parametrize(
    ("text", "n_lines", "expected"),
    [
        ("a\nb", 2, (0, "a\nb")),
        ("a\nb\nc\nd\n\ne\nf\ng\nh", 8, (1, "b\nc\nd\n\ne\nf\ng\nh")),
        ("a\nb\n\nc\nd\ne\nf\ng\nh", 8, (3, "c\nd\ne\nf\ng\nh")),
        ("```py\n1\n2\n3\n4", 2, (3, "```py\n3\n4")),
        ("```py\n1\n```\n2\n3", 2, (3, "2\n3")),
        ("~~~~\n~~~\n1\n2\n3", 2, (3, "~~~~\n2\n3")),
    ],
)
def test_a_tail_means_in_markdown_what_it_meant(text: str, n_lines: int, expected: object):
    assert tail_of(text, n_lines) == expected


def test_a_very_long_answer_shows_its_end_and_a_key_shows_all():
    text = numbered(4 * MAX_LINES)
    words = [Word(piece) for piece in text.splitlines(keepends=True)]
    last = text.splitlines()[-1]

    async def test():
        async with opened(ScriptedModel({"long?": Script(words)})) as driver:
            await driver.send("long?")
            await driver.ready()
            await driver.sees(last)
            answer = driver.app.chat.query_one(LongAnswer)
            n_blocks = len(answer.query("MarkdownBlock"))
            assert n_blocks <= MAX_LINES
            assert answer.n_hidden_lines > 2 * MAX_LINES
            first = answer.query("MarkdownParagraph").first(Static)
            assert answer.n_hidden_lines == text.splitlines().index(str(first.content))
            assert n_blocks >= KEPT_LINES / 2
            driver.app.chat.query_one(TurnView).focus()
            await driver.press("a")
            await driver.sees("The whole answer")
            await driver.sees("line 1 ")
            assert driver.app.screen.query_one(TextArea).text == text
            await driver.press("escape")
            await driver.sees_no("The whole answer")

    driven(test())


def test_what_is_long_is_measured():
    found = measure_long(40, kinds=["answer"], n_keys=2)
    assert found[0].what == "an answer of 40 lines goes on"
    assert all(each.worst_ms >= each.p95_ms >= 0 for each in found)
