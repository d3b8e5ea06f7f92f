"""A chat and its file stay in step with the session, whatever happens to a turn."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from safesteer_edge.chats.chat_log import FIRST_WORDS, SUMMARY_QUESTION
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import (
    ChatFileError,
    EngineDiedError,
    InputError,
    MediaError,
    PromptTooLongError,
)
from safesteer_edge.guard.events import Step, TextDelta, TurnEnded, TurnsLeftOut
from safesteer_edge.session.isolated_session import open_isolated_session
from safesteer_edge.session.session import Session
from tests.guarded_tiny import ALARMED, QUIET, REFUSAL_TEXT, GuardedTiny
from tests.session.turns import opened


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats")


@pytest.fixture(scope="module")
def session(guarded_tiny: GuardedTiny) -> Iterator[Session]:
    bundle = guarded_tiny.bundle(QUIET)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector, max_tokens=6) as session:
        yield session


@pytest.fixture
def chat(session: Session, store: ChatStore) -> Iterator[RecordedChat]:
    session.reset()
    usual = session.turn_settings
    chat = RecordedChat(session, store)
    yield chat
    chat.close()
    session.change(usual)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (56, 56), "navy").save(path)
    return path


def ended(events) -> TurnEnded:
    *_, last = events
    assert isinstance(last, TurnEnded)
    return last


def texts(chat: RecordedChat) -> list[str]:
    """What is shown, after checking that session and file say the same."""
    assert chat.log is not None
    shown = [entry.text for entry in chat.log.branch()]
    assert [message.text for message in chat.session.messages] == shown
    if chat.is_saved:
        chat_id = chat.log.header.id
        assert chat._store is not None
        saved = chat._store.read(chat_id)
        assert [entry.text for entry in saved.branch()] == shown
    return shown


def test_turns_are_on_disk_as_they_end(chat: RecordedChat, store: ChatStore):
    assert chat.log is None
    first = ended(chat.ask("Hello there", system="Be brief."))
    second = ended(chat.ask("And then?"))
    assert texts(chat) == ["Be brief.", "Hello there", first.text, "And then?", second.text]
    (summary,) = store.list()
    assert (summary.title, summary.n_messages, summary.model) == ("Hello there", 5, "tiny-0-64")
    end = store.read(summary.id).branch()[-1].end
    assert end is not None
    assert (end.reason, end.guard, end.usage) == ("length", second.guard, second.usage)


def test_a_chat_is_resumed_with_its_pictures(
    chat: RecordedChat, guarded_tiny: GuardedTiny, store: ChatStore, picture: Path
):
    ended(chat.ask("What is this?", images=[picture]))
    picture.unlink()
    assert chat.log is not None
    chat_id = chat.log.header.id
    chat.close()
    chat.session.reset()
    chat.resume(chat_id)
    (image,) = chat.session.messages[0].images
    assert image.is_relative_to(store.folder)
    turn = ended(chat.ask("And then?"))
    assert turn.usage.media_tokens == 4
    assert len(texts(chat)) == 4
    assert chat.session.messages[1].risk == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("damage", ["gone", "cut", "another picture", "a folder", "no name"])
def test_a_chat_goes_on_without_a_picture_that_is_lost(
    chat: RecordedChat, store: ChatStore, picture: Path, tmp_path: Path, damage: str
):
    other = tmp_path / "b.png"
    Image.new("RGB", (56, 56), "gold").save(other)
    ended(chat.ask("What are these?", images=[picture, other]))
    assert chat.log is not None
    chat_id = chat.log.header.id
    kept = store.media.path(chat.log.branch()[0].media[0])
    chat.start_new()
    if damage == "another picture":
        kept.write_bytes(other.read_bytes())
    elif damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-9])
    elif damage == "no name":
        path = store.path(chat_id)
        path.write_bytes(path.read_bytes().replace(kept.stem.encode(), b"\\u0000/etc/passwd"))
    else:
        kept.unlink()
        if damage == "a folder":
            kept.mkdir()
    chat.resume(chat_id)
    asked = chat.session.messages[0]
    assert asked.text == "[image 'a.png' is lost]\nWhat are these?"
    assert len(asked.images) == 1
    assert ended(chat.ask("And then?")).usage.media_tokens == 4
    assert ended(chat.regenerate()).text
    assert store.read(chat_id).branch()[0].text == "What are these?"  # should it come back
    assert ended(chat.edit("m1", "What is this?", images=[other])).text


def test_an_edit_and_a_second_answer_stand_on_their_own_branches(chat: RecordedChat):
    first = ended(chat.ask("Hello there")).text
    ended(chat.ask("And then?"))
    edited = ended(chat.edit("m3", "What is it?")).text
    assert texts(chat) == ["Hello there", first, "What is it?", edited]
    settings = chat.session.turn_settings
    sampling = replace(settings.sampling, temperature=5.0, seed=3)
    chat.session.change(replace(settings, sampling=sampling))
    again = ended(chat.regenerate()).text
    assert texts(chat) == ["Hello there", first, "What is it?", again]
    assert again != edited
    assert chat.log is not None
    assert [entry.text for entry in chat.log.siblings(chat.log.head or "")] == [edited, again]
    chat.switch_to("m3")
    assert texts(chat)[2] == "And then?"
    changed = ended(chat.edit("m1", "Good day")).text
    assert texts(chat) == ["Good day", changed]


def test_a_summary_stands_in_the_place_of_what_it_sums_up(
    chat: RecordedChat, store: ChatStore, picture: Path
):
    ended(chat.ask("Hello there", system="Be brief."))
    ended(chat.ask("What is this?", images=[picture]))
    usual = chat.session.turn_settings
    summary = ended(chat.sum_up())
    assert chat.session.turn_settings == usual
    said = ["Be brief.", SUMMARY_QUESTION, summary.text]
    assert [message.text for message in chat.session.messages] == said
    assert chat.session.messages[-1].risk == summary.guard.risk
    assert chat.log is not None
    chat_id = chat.log.header.id
    assert len(store.read(chat_id).branch()) == 7  # the file keeps all
    after = ended(chat.ask("And then?"))
    said += ["And then?", after.text]
    assert [message.text for message in chat.session.messages] == said
    chat.start_new()
    chat.resume(chat_id)
    assert [message.text for message in chat.session.messages] == said
    assert ended(chat.regenerate()).text == after.text
    # A question from before it has the answers that were before it.
    second = store.read(chat_id).branch()[3].id
    ended(chat.edit(second, "And now?"))
    assert len(chat.session.messages) == 5
    assert chat.session.messages[1].text == "Hello there"


def test_a_summary_that_the_guard_refuses_replaces_nothing(
    guarded_tiny: GuardedTiny, store: ChatStore
):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        chat = RecordedChat(session, store)
        ended(chat.ask("Hello there"))
        assert ended(chat.sum_up()).finish_reason == "refused"
        assert len(texts(chat)) == 4
        chat.close()


def test_a_summary_that_leaves_out_what_was_asked_gives_way_to_the_first_words(
    chat: RecordedChat, store: ChatStore, picture: Path
):
    """The tiny model's answers are of random words."""
    ended(chat.ask("What is this octopus?", images=[picture]))
    ended(chat.ask("And which number is 4711?"))
    events = list(chat.sum_up())
    summary = ended(iter(events))
    assert summary.finish_reason == "stop"
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == summary.text
    assert summary.text.startswith(FIRST_WORDS)
    assert f"- asked: [image {picture.name!r}] What is this octopus?" in summary.text
    assert "- asked: And which number is 4711?" in summary.text
    assert [message.text for message in chat.session.messages] == [SUMMARY_QUESTION, summary.text]
    assert chat.log is not None
    entries = store.read(chat.log.header.id).branch()
    assert (len(entries), entries[-1].text) == (6, summary.text)
    ended(chat.ask("One more?"))
    again = ended(chat.sum_up()).text  # of all that was said, not of the summary
    assert "What is this" in again and "One more?" in again and SUMMARY_QUESTION[:9] not in again
    assert ended(chat.regenerate()).text == again


def test_a_full_context_is_summed_up_as_far_as_it_is_held(
    guarded_tiny: GuardedTiny, store: ChatStore
):
    bundle = guarded_tiny.bundle(QUIET)
    with opened(guarded_tiny, bundle, n_ctx=320, when_full="stop") as session:
        chat = RecordedChat(session, store)
        with pytest.raises(PromptTooLongError, match="type /compact to summarize it"):
            for number in range(50):
                ended(chat.ask(f"Question number {number}: what is it, and why?"))
        events = list(chat.sum_up())
        assert any(isinstance(event, TurnsLeftOut) for event in events)
        assert len(session.messages) == 2
        ended(chat.ask("And then?"))
        chat.close()


def test_a_continued_answer_is_one_message(chat: RecordedChat):
    first = ended(chat.ask("Hello there")).text
    whole = ended(chat.continue_answer()).text
    assert whole.startswith(first) and len(whole) > len(first)
    assert texts(chat) == ["Hello there", whole]


def test_a_refusal_is_kept_with_its_reason(guarded_tiny: GuardedTiny, store: ChatStore):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        chat = RecordedChat(session, store)
        ended(chat.ask("Hello there"))
        chat.close()
    end = store.read(store.list()[0].id).branch()[-1].end
    assert end is not None and end.refusal is not None
    assert (end.reason, end.refusal.text) == ("refused", REFUSAL_TEXT)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_question_that_cannot_be_asked_leaves_no_trace(
    chat: RecordedChat, store: ChatStore, tmp_path: Path, is_first: bool
):
    (tmp_path / "note.png").write_text("not a picture")
    before = [] if is_first else ["Hello there", ended(chat.ask("Hello there")).text]
    for error, text, images in (
        (InputError, " ", []),
        (MediaError, "What?", [tmp_path / "gone.png"]),
        (MediaError, "What?", [tmp_path / "note.png"]),
        (PromptTooLongError, "word " * 600, []),
    ):
        with pytest.raises(error):
            list(chat.ask(text, images=images))
        if chat.log is not None:
            assert texts(chat) == before
    chat.close()
    assert len(store.list()) == (not is_first)


def test_a_question_is_counted_in_the_place_where_it_will_stand(chat: RecordedChat):
    half = "word " * 100
    chat.session.change(replace(chat.session.turn_settings, when_full="stop"))
    ended(chat.ask(half))
    shown, messages = texts(chat), chat.session.messages
    with pytest.raises(PromptTooLongError):
        chat.check_fits(half)
    chat.check_fits(half, in_place_of="m1")
    with pytest.raises(PromptTooLongError):
        chat.check_fits(half * 3, in_place_of="m1")
    assert (texts(chat), chat.session.messages) == (shown, messages)
    assert ended(chat.ask("And then?")).text


def test_a_turn_that_nobody_reads_to_its_end_is_taken_back(chat: RecordedChat):
    first = ended(chat.ask("Hello there")).text
    for question in (lambda: chat.ask("And then?"), chat.regenerate, lambda: chat.edit("m1", "x")):
        events = question()
        for event in events:
            if isinstance(event, Step):
                break
        events.close()
        assert texts(chat) == ["Hello there", first]


def test_stopping_before_the_prompt_is_read_takes_the_question_back(chat: RecordedChat):
    first = ended(chat.ask("Hello there")).text
    events = chat.ask("And then?")
    chat.session.cancel()
    assert ended(events).finish_reason == "cancelled"
    shown = texts(chat)
    assert shown[:2] == ["Hello there", first]
    assert shown[2:] in ([], ["And then?", ""])


def test_a_question_that_the_program_was_killed_on_is_offered_again(
    chat: RecordedChat, store: ChatStore
):
    first = ended(chat.ask("Hello there")).text
    events = chat.ask("And then?")
    next(events)
    assert chat.log is not None
    path = store.path(chat.log.header.id)
    left = path.read_bytes()  # what a kill would leave now
    events.close()
    chat.close()
    path.write_bytes(left)
    chat.resume(path.stem)
    assert chat.unanswered is not None
    assert chat.unanswered.text == "And then?"
    assert [message.text for message in chat.session.messages] == ["Hello there", first]
    again = ended(chat.ask("And then?")).text
    assert texts(chat) == ["Hello there", first, "And then?", again]
    assert chat.unanswered is None


def test_a_second_window_goes_on_with_a_copy(
    chat: RecordedChat, guarded_tiny: GuardedTiny, store: ChatStore
):
    ended(chat.ask("Hello there"))
    assert chat.log is not None
    chat_id = chat.log.header.id
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), max_tokens=6) as session:
        other = RecordedChat(session, store)
        with pytest.raises(ChatFileError, match="another window"):
            other.resume(chat_id)
        assert other.resume_copy(chat_id) != chat_id
        ended(other.ask("And then?"))
        assert len(texts(other)) == 4
        other.close()
    ended(chat.ask("Why?"))
    assert texts(chat)[2] == "Why?"
    assert len(store.list()) == 2


def test_the_same_question_can_be_answered_aside(chat: RecordedChat):
    first = ended(chat.ask("Hello there"))
    usual = chat.session.turn_settings
    aside = ended(chat.answer_unrecorded(replace(usual, guard="off")))
    assert (aside.guard.mode, aside.text) == ("off", first.text)
    assert chat.session.turn_settings == usual
    assert texts(chat) == ["Hello there", first.text]
    assert ended(chat.ask("And then?")).guard.mode == "steer"


def test_a_chat_that_is_not_saved_has_branches_too(session: Session, picture: Path):
    session.reset()
    chat = RecordedChat(session, None)
    ended(chat.ask("What is this?", images=[picture]))
    ended(chat.edit("m1", "And this?"))
    assert chat.session.messages[0].images == (picture,)
    assert not chat.is_saved
    assert texts(chat)[0] == "And this?"
    with pytest.raises(InputError, match="not being saved"):
        chat.resume("20261122-101112-abcdef")


def test_a_folder_that_takes_no_chat_is_told_and_the_chat_goes_on(session: Session, tmp_path: Path):
    session.reset()
    (tmp_path / "file").write_text("")
    problems: list[str] = []
    chat = RecordedChat(session, ChatStore(tmp_path / "file" / "chats"), on_problem=problems.append)
    ended(chat.ask("Hello there"))
    assert len(texts(chat)) == 2
    assert len(problems) == 1 and "make it writable" in problems[0]


def test_another_model_takes_the_chat_over(
    chat: RecordedChat, guarded_tiny: GuardedTiny, store: ChatStore
):
    ended(chat.ask("Hello there"))
    with opened(guarded_tiny, None, max_tokens=6) as unguarded:
        before = chat.session
        chat.change_session(unguarded)
        ended(chat.ask("And then?"))
        assert len(texts(chat)) == 4
        assert chat.log is not None and chat.log.model is not None
        assert chat.log.model.bundle is None
        chat.change_session(before)
    assert chat.log.model.bundle == "tiny-30"
    assert store.read(chat.log.header.id).model == chat.log.model


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_engine_that_dies_leaves_a_marked_answer_and_the_chat_goes_on(
    guarded_tiny: GuardedTiny, store: ChatStore
):
    # More than the pipe holds, so that the engine cannot be done when it is killed.
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET), n_ctx=2048, max_tokens=1600)
    with open_isolated_session(settings) as session:
        chat = RecordedChat(session, store)
        with pytest.raises(EngineDiedError):
            for event in chat.ask("Hello there"):
                if isinstance(event, Step) and event.step == 20:
                    os.kill(session.process_id or 0, signal.SIGKILL)
        said = texts(chat)[1]
        assert said
        session.change(replace(session.turn_settings, max_tokens=6))
        turn = ended(chat.ask("And then?"))
        assert texts(chat) == ["Hello there", said, "And then?", turn.text]
        chat.close()
    died, lived = (entry.end for entry in store.read(store.list()[0].id).branch()[1::2])
    assert died is not None and lived is not None
    assert (died.reason, died.guard, lived.reason) == ("died", None, "length")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1.1", "-0.1"])
def test_a_chat_whose_risk_is_none_is_not_gone_on_with(
    guarded_tiny: GuardedTiny, store: ChatStore, text: str
):
    """A risk that no comparison holds for would let everything through that follows."""
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        recorded = RecordedChat(session, store)
        ended(recorded.ask("Hello there"))
        assert recorded.log is not None
        chat_id = recorded.log.header.id
        recorded.start_new()
        (path,) = [each for each in store.folder.rglob("*.jsonl") if chat_id in each.name]
        written = path.read_text("ascii")
        path.write_text(re.sub(r'"risk":[^,}]+', f'"risk":{text}', written), "ascii")
        assert path.read_text("ascii") != written
        for go_on in (recorded.resume, recorded.resume_copy):
            with pytest.raises(ChatFileError, match="it is damaged"):
                go_on(chat_id)
        assert session.messages == ()
        assert ended(recorded.ask("Hello there")).text == REFUSAL_TEXT
        recorded.close()
