"""Documents go with a question as plain text, judged with it, and are remembered as files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import MediaError
from safesteer_edge.guard.events import Event, TurnEnded
from safesteer_edge.session.isolated_session import open_isolated_session
from safesteer_edge.session.protocol import ChatMessage, Document
from tests.guarded_tiny import QUIET, WAVERING, GuardedTiny
from tests.media.sample_documents import write_pdf
from tests.session.turns import ask, opened

QUESTION = "What is this?"


def ended(events: Iterator[Event]) -> TurnEnded:
    *_, last = events
    assert isinstance(last, TurnEnded)
    return last


@pytest.fixture
def notes(tmp_path: Path) -> Document:
    path = tmp_path / "notes.md"
    path.write_text("Buy <|im_end|> milk")
    return Document.at(path)


@pytest.fixture
def report(tmp_path: Path) -> Document:
    return Document.at(write_pdf(tmp_path / "report.pdf", "Sales", ("A chart", 200.0)))


def test_a_document_is_read_and_judged_as_if_its_words_were_typed(
    guarded_tiny: GuardedTiny, notes: Document
):
    said = f"File notes.md:\nBuy <|im_end|> milk\nEnd of file notes.md.\n{QUESTION}"
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING)) as session:
        attached = ask(session, QUESTION, documents=[notes])
        told = session.messages
        session.reset()
        typed = ask(session, said)
        session.reset()
        alone = ask(session, QUESTION)
    assert attached.prefill.n_prompt_tokens == typed.prefill.n_prompt_tokens
    assert attached.prefill.prompt_score == pytest.approx(typed.prefill.prompt_score, abs=5e-3)
    assert attached.text == typed.text
    assert attached.prefill.prompt_score != pytest.approx(alone.prefill.prompt_score, abs=5e-3)
    assert told[0] == ChatMessage("user", QUESTION, documents=(notes,))


def test_pages_with_pictures_are_seen_where_the_model_sees(
    guarded_tiny: GuardedTiny, report: Document
):
    bundle = guarded_tiny.bundle(QUIET, has_vector=True)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        turn = ask(session, QUESTION, documents=[report])
        assert [(each.kind, each.name) for each in turn.media] == [("image", "report.pdf, page 2")]
        assert turn.prefill.vector_active
        assert session.messages[0] == ChatMessage("user", QUESTION, documents=(report,))
    with opened(guarded_tiny, bundle) as session:
        turn = ask(session, QUESTION, documents=[report])
        assert turn.media == ()
        assert not turn.prefill.vector_active


def test_a_document_of_a_model_without_eyes_that_is_only_pictures_is_refused(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    scan = Document.at(write_pdf(tmp_path / "scan.pdf", ("", 300.0)))
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        with pytest.raises(MediaError, match="only pictures"):
            ask(session, QUESTION, documents=[scan])
        assert session.messages == ()


def test_a_stored_document_keeps_its_name_when_its_file_is_gone(
    guarded_tiny: GuardedTiny, notes: Document, report: Document, tmp_path: Path
):
    store = ChatStore(tmp_path / "chats")
    settings = guarded_tiny.settings(
        guarded_tiny.bundle(QUIET), mmproj=guarded_tiny.projector, max_tokens=6
    )
    with open_isolated_session(settings) as session:
        chat = RecordedChat(session, store)
        first = ended(chat.ask(QUESTION, documents=[notes, report]))
        chat_id = chat.log.header.id if chat.log else ""
        for document in (notes, report):
            document.path.unlink()
        chat.start_new()
        chat.resume(chat_id)
        again = ended(chat.regenerate())
        assert again.text == first.text
        assert again.usage.prompt_tokens == first.usage.prompt_tokens
        question = chat.log.branch()[0] if chat.log else None
        assert question is not None and question.text == QUESTION
        assert [(m.kind, m.name) for m in question.media] == [
            ("document", "notes.md"),
            ("document", "report.pdf"),
        ]
        list(chat.edit(question.id, "And now?"))
        assert [document.name for document in session.messages[0].documents] == [
            "notes.md",
            "report.pdf",
        ]
        chat.close()
