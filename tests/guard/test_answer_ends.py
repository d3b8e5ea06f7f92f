"""How an answer ends (limits, cancelling), and characters that are split over tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.guard.events import Step, TextDelta
from safesteer_edge.guard.transcript import repeats_itself
from tests.guard.plain_probes import PlainProbe
from tests.guard.scripted_answers import (
    END,
    REFUSAL_TEXT,
    ScriptedAnswer,
    policy_with,
    random_answer,
    spelled,
)
from tests.guard.scripted_engine import Prefix, ScriptedEngine


def test_a_character_split_over_tokens_is_shown_whole():
    script = spelled(*[(bytes([byte]), 0.1) for byte in "a é 你 😀!".encode()])
    answer = script.decode()
    assert answer.text == "a é 你 😀!"
    assert script.deltas == list("a é 你 😀!")
    assert "".join(step.text for step in script.steps) == answer.text


def test_the_beginning_of_a_character_is_not_settled():
    """Else a refusal would leave half a character in the sequence, and none in the text."""
    script = spelled(("So ", 0.1), (b"\xf0\x9f", 0.1), (b"\x98\x80", 0.99))
    script.policy = policy_with(hard_patience=1)
    answer = script.decode()
    assert answer.refusal is not None
    assert answer.refusal.n_tokens_taken_back == 2
    assert answer.text == f"So \n\n{REFUSAL_TEXT}"


def test_text_beside_the_beginning_of_a_character_is_shown_in_the_end():
    script = spelled(("So", 0.1), (b" x\xf0\x9f", 0.1), (b"\x98\x80", 0.1))
    script.max_tokens = 2
    assert script.decode().text == "So x"
    assert script.deltas == ["So", " x"]


def test_bytes_that_are_no_character_become_replacement_characters():
    script = spelled((b"\xff", 0.1), (b"\xe4", 0.1), ("a", 0.1), (b"\xe4", 0.1))
    assert script.decode().text == "\ufffd\ufffda\ufffd"


def test_max_tokens_ends_the_answer():
    script = spelled(("a", 0.1), ("b", 0.1), ("c", 0.1))
    script.max_tokens = 2
    answer = script.decode()
    assert (answer.text, answer.finish_reason, answer.n_steps) == ("ab", "length", 2)


def test_the_end_token_counts_as_a_token_and_is_no_part_of_the_answer():
    script = spelled(("a", 0.1))
    script.max_tokens = 2
    answer = script.decode()
    assert (answer.text, answer.finish_reason, answer.n_steps) == ("a", "stop", 2)
    assert answer.token_ids == (1,)
    assert script.engine.sequence == [1, END]


def looping(first: str, *words: str) -> ScriptedAnswer:
    """An answer that says the words over and over after the first, and never ends."""
    pieces = {number: word.encode() for number, word in enumerate((first, *words))}

    def next_tokens(prefix: Prefix) -> dict[int, float]:
        return {1 + (len(prefix) - 1) % len(words) if prefix else 0: 1.0}

    return ScriptedAnswer(ScriptedEngine(next_tokens, pieces), PlainProbe(lambda *_: 0.1))


def test_an_answer_that_repeats_itself_is_stopped_and_says_why():
    script = looping("Sea", " animals", " are", " a", " variety")
    answer = script.decode()
    assert (answer.finish_reason, answer.refusal) == ("loop", None)
    assert answer.text == "Sea" + 24 * " animals are a variety"
    without_guard = looping("Sea", " animals", " are", " a", " variety")
    without_guard.policy = None
    assert without_guard.decode().text == answer.text


def test_a_limit_that_comes_first_ends_an_answer_that_repeats_itself():
    script = looping("Sea", " animals")
    script.max_tokens = 90
    assert script.decode().finish_reason == "length"


def test_words_put_into_the_models_mouth_may_repeat_themselves():
    script = looping("Sea", " animals")
    script.given = (0, *[1] * 200)
    script.max_tokens = 90
    assert (script.decode().finish_reason, len(script.steps)) == ("length", 291)


@given(
    before=st.lists(st.integers(0, 3), max_size=40),
    block=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    n_more=st.integers(0, 90),
)
def test_a_block_that_comes_four_times_in_96_tokens_is_a_loop(
    before: list[int], block: list[int], n_more: int
):
    n_repeats = max(4, -(-96 // len(block)))
    repeated = (n_repeats + n_more) * block
    assert repeats_itself(before + repeated)
    assert repeats_itself(before + repeated + block[: n_more % len(block)])


@given(st.lists(st.integers(0, 1), max_size=8), st.integers(1, 130), st.integers(0, 600))
def test_what_is_a_loop_is_so_by_its_last_tokens_alone(start: list[int], period: int, n: int):
    """Against the definition, word for word."""
    tokens = [*range(10, 10 + period)] * 6
    tokens = (start + tokens)[:n] + start
    periods = [
        p
        for p in range(1, 129)
        for length in [max(4 * p, 96)]
        if len(tokens) >= length
        and all(tokens[-i] == tokens[-i - p] for i in range(1, length - p + 1))
    ]
    assert repeats_itself(tokens) == bool(periods)


@given(st.lists(st.integers(0, 5), min_size=96, max_size=400), st.integers(1, 95))
def test_one_other_token_among_the_last_is_no_loop(tokens: list[int], place: int):
    tokens[-place] = 99
    assert not repeats_itself(tokens)


def test_a_full_context_ends_the_answer():
    script = spelled(*[("a", 0.1)] * 20)
    script.engine.n_ctx, script.n_spare = 10, 4
    answer = script.decode()
    assert (answer.finish_reason, answer.n_steps) == ("length", 7)
    assert script.engine.n_free == 3


def test_the_last_cells_are_enough_for_all_candidates():
    script = random_answer(3, greedy=True, score_levels=(0.6, 0.9))
    script.rerank, script.max_tokens = "eager", 1000
    script.engine.end_ids = ()
    script.engine.n_ctx, script.n_spare = 12, 5  # five candidates at most
    assert script.decode().finish_reason == "length"


def test_cancelling_drops_what_is_held_back():
    script = spelled(("To", 0.1), (" kill", 0.7), (" a", 0.6), (" process", 0.2))
    script.cancelled = lambda: len(script.engine.sequence) >= 3
    answer = script.decode()
    assert (answer.text, answer.finish_reason) == ("To", "cancelled")
    assert script.engine.sequence == [1]
    assert answer.refusal is None


def test_a_cancelled_answer_stays_closed():
    script = spelled(("a", 0.1), ("b", 0.1), ("c", 0.1))
    is_cancelled = [False]
    script.cancelled = lambda: is_cancelled[0]
    answer = script.start()
    events = answer.events()
    assert [type(next(events)) for _ in range(2)] == [Step, TextDelta]
    is_cancelled[0] = True
    assert list(events) == []
    is_cancelled[0] = False
    assert next(events, None) is None
    assert answer.text == "a"


def test_closing_the_generator_between_tokens_decodes_nothing_more():
    script = spelled(("a", 0.1), ("b", 0.7), ("c", 0.1))
    events = script.start().events()
    next(events)
    events.close()  # pyright: ignore[reportAttributeAccessIssue] events is a generator
    assert script.engine.n_forward_passes == 1
