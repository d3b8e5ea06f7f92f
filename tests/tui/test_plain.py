"""The chat of lines: answers on one stream, everything else on another, the same commands."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from safesteer_edge.chats.chat_log import SUMMARY_QUESTION
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.errors import BundleChangedError, EngineDiedError
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.tui.plain_chat import PlainChat
from tests.tui.scripted_session import REFUSAL_TEXT, Script, ScriptedModel, Word, said
from tests.tui.test_answering import LED, LED_NOTE


class Chatted:
    """What a chat of these lines printed. out: the model's words; notes: the rest."""

    def __init__(self, *lines: str, model: ScriptedModel, store: ChatStore | None = None) -> None:
        out, notes = io.StringIO(), io.StringIO()
        typed = io.StringIO("".join(f"{line}\n" for line in lines))
        chat = PlainChat(model.open, SessionSettings(), store, lines=typed, out=out, notes=notes)
        chat.run()
        chat.close()
        self.out, self.notes, self.failed = out.getvalue(), notes.getvalue(), chat.failed


def test_answers_are_on_stdout_alone_and_lines_can_go_on():
    chatted = Chatted("one \\", "two", model=ScriptedModel())
    assert chatted.out == "You said: one \ntwo\n"
    assert "guard: steer" in chatted.notes
    assert "tokens/s" in chatted.notes
    assert not chatted.failed


def test_a_chat_is_summed_up_on_request():
    model = ScriptedModel({SUMMARY_QUESTION: said("You said one and two.")})
    chatted = Chatted("/compact", "one", "two", "/compact", "three", model=model)
    assert "ask something first" in chatted.notes
    assert chatted.notes.count("the model has this summary in place of what was said") == 1
    said_since = [message.text for message in model.session.messages]
    assert said_since == [SUMMARY_QUESTION, "You said one and two.", "three", "You said: three"]


def test_turns_that_are_left_out_are_said_in_a_line():
    model = ScriptedModel({"two": said("There.", left_out=2), "three": said("Yes.", left_out=1)})
    notes = Chatted("one", "two", "three", model=model).notes
    assert "the context was full: the 2 oldest turns are left out from here on" in notes
    assert "the context was full: the oldest turn is left out from here on" in notes


def test_a_pasted_logs_colours_are_not_asked():
    pasted = "\x1b[200~\x1b[31merror\x1b[0m: \x1b]0;title\x07no file\x1b[201~"
    chatted = Chatted(pasted, model=ScriptedModel())
    assert chatted.out == "You said: error: no file\n"


def test_commands_do_what_they_do_on_the_full_screen(tmp_path: Path):
    model = ScriptedModel()
    store = ChatStore(tmp_path / "chats")
    chatted = Chatted(
        "one",
        "/guard monitor",
        "/regenerate",
        "/edit 1",
        "two",
        f"/export json {tmp_path / 'chat.json'}",
        "/rename numbers",
        "/quit",
        "never asked",
        model=model,
        store=store,
    )
    assert chatted.out == "You said: one\nYou said: one\nYou said: two\n"
    assert "the guard only watches" in chatted.notes
    assert (tmp_path / "chat.json").exists()
    assert [chat.title for chat in store.list()] == ["numbers"]
    resumed = Chatted("/chats", "/chats 1", "three", model=ScriptedModel(), store=store)
    assert resumed.out == "You said: two\nYou said: three\n"


def test_a_comparison_and_a_fork_leave_the_chat_as_it_was(tmp_path: Path):
    model, store = ScriptedModel(), ChatStore(tmp_path / "chats")
    chatted = Chatted("one", "two", "/compare", "/fork 1", "three", model=model, store=store)
    assert chatted.out.splitlines() == [
        f"You said: {said}" for said in ("one", *["two"] * 3, "three")
    ]
    assert "-- GUARD OFF, not checked" in chatted.notes
    assert "-- guard: steer" in chatted.notes
    kept = {tuple(e.text for e in store.read(chat.id).branch())[::2] for chat in store.list()}
    assert kept == {("one", "two"), ("one", "three")}


def test_a_question_that_was_never_answered_is_put_back(tmp_path: Path):
    store = ChatStore(tmp_path / "chats")
    Chatted("answered", model=ScriptedModel(), store=store)
    (chat,) = store.list()
    with store.path(chat.id).open("ab") as file:
        file.write(
            b'{"type":"message","id":"m9","parent":"m2","role":"user","at":1.0,'
            b'"text":"never answered","media":[]}\n'
        )
    resumed = Chatted("/chats 1", "another", model=ScriptedModel(), store=store)
    assert "your next line replaces this question: never answered" in resumed.notes
    assert resumed.out == "You said: answered\nYou said: another\n"


def test_files_go_along_as_on_the_full_screen(tmp_path: Path):
    notes, damaged = tmp_path / "notes.md", tmp_path / "damaged.png"
    notes.write_text("# Milk")
    damaged.write_bytes(b"no picture")
    model, store = ScriptedModel(), ChatStore(tmp_path / "chats")
    chatted = Chatted(
        str(damaged), str(notes), "what is it?", "/edit 1", "again?", model=model, store=store
    )
    assert "is none of PNG" in chatted.notes
    assert "attached notes.md; now ask about it" in chatted.notes
    assert chatted.out == "You said: what is it?\nYou said: again?\n"
    assert [each.name for each in model.session.messages[0].documents] == ["notes.md"]


def test_a_refusal_says_why_and_what_was_steered_can_be_seen():
    scripts = {
        "bad?": Script([Word("Well", 0.9)], refuse=True),
        "how?": Script([Word("You"), Word(" ask", 0.1, " steal")]),
    }
    chatted = Chatted("bad?", "how?", "/inspect", model=ScriptedModel(scripts))
    assert REFUSAL_TEXT in chatted.out
    assert "refused by the guard: the answer stayed harmful" in chatted.notes
    assert "1 word was steered by the guard" in chatted.notes
    assert "The guard refuses above 0.60" in chatted.notes
    assert "token 2: ' steal' (0.93) became ' ask' (0.10)" in chatted.notes


def test_an_answer_that_was_led_to_a_refusal_says_so():
    chatted = Chatted("how?", "/inspect", model=ScriptedModel({"how?": LED}))
    assert chatted.out == "I will not. Call a locksmith.\n"
    assert LED_NOTE in chatted.notes
    assert "began again with “I will not.”" in chatted.notes
    assert not any(word in chatted.out + chatted.notes for word in ("First", "take", "wire"))


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("/nonsense", "unknown command '/nonsense'"),
        ("/strength 1", "strength 1.0 is below the bundle's 8.0"),
        ("/strength nan", "strength is nan"),
        ("/threshold nan", "threshold is nan"),
        ("/temperature nan", "temperature is nan"),
        ("/models", "/models works only in the full-screen chat"),
        ("/continue", "there is no answer yet"),
        ("/fork", "there is no answer yet"),
        ("/copy", "there is no answer to copy yet"),
        ("/compare", "there is no answer yet"),
        ("/detach 3", "nothing is attached"),
        ("/attach /no/such.png", "there is no such file"),
        ("/no/photo.heic", "there is no such file"),
        ("sum up report.pdf", "cannot attach 'report.pdf'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_the_chat_goes_on(typed: str, answer: str):
    chatted = Chatted(typed, "hello", model=ScriptedModel())
    assert answer in chatted.notes
    assert chatted.out == "You said: hello\n"
    assert chatted.failed


def test_the_engines_death_is_a_sentence_and_the_next_question_works():
    scripts = {"boom": said("one two", error=EngineDiedError("the engine process ended"))}
    chatted = Chatted("boom", "hello", model=ScriptedModel(scripts))
    assert chatted.out == "one two\nYou said: hello\n"
    assert "the engine process ended" in chatted.notes


def test_a_guard_that_nobody_measured_is_called_so():
    chatted = Chatted("/inspect", model=ScriptedModel(is_calibrated=False))
    assert "UNCALIBRATED: nobody has measured which answers this guard stops" in chatted.notes
    assert "UNCALIBRATED" not in Chatted("hello", model=ScriptedModel()).notes


def test_a_language_that_the_guard_was_not_measured_on_is_told_once_a_chat():
    spanish = (
        "¿Cómo hago pan en casa sin levadura?",
        "¿Y cuánto tiempo tiene que reposar la masa?",
    )
    model = ScriptedModel(languages=("en",))
    notice = "This guard was measured on English; it may miss harm asked in Spanish."
    assert notice not in Chatted("How do I bake bread at home?", model=model).notes
    chatted = Chatted("hello", *spanish, model=model)
    assert chatted.notes.count(f"[{notice}]\n") == 1
    assert Chatted(*spanish, "/new", *spanish, model=model).notes.count(notice) == 2
    assert notice not in Chatted("/guard off", *spanish, model=model).notes
    assert notice not in Chatted(*spanish, model=ScriptedModel(languages=("en", "es"))).notes


def test_a_guard_that_was_made_quickly_says_how_a_better_one_is_made():
    offer = "safesteer-edge calibrate /models/scripted.gguf --effort standard"
    assert offer in Chatted("/guard", model=ScriptedModel(is_quick=True)).notes
    assert offer not in Chatted("/guard", model=ScriptedModel()).notes


def test_a_guard_that_changed_on_the_disk_ends_the_chat():
    scripts = {"boom": Script([], error=BundleChangedError("the guard has changed"))}
    chatted = Chatted("hello", "boom", "hello", model=ScriptedModel(scripts))
    assert chatted.out == "You said: hello\n"
    assert "the guard has changed" in chatted.notes
    assert chatted.failed
