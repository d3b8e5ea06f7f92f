"""An answer that says the same over and over is stopped, and says so, wherever it is asked for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from safesteer_edge.cli.main import main
from safesteer_edge.guard.events import TurnEnded
from safesteer_edge.session.session import open_session
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.tui.plain_chat import PlainChat
from tests.guarded_tiny import GREEDY
from tests.session.turns import ask
from tests.tiny_models import write_tiny_llama


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose next token depends on the last one alone: greedy answers go round and round."""
    path = write_tiny_llama(tmp_path_factory.mktemp("forgetful") / "forgetful.gguf")
    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name.endswith("attn_output.weight"):
            tensor.data[:] = 0
    reader.data.flush()
    return path


def settings_for(model: Path) -> SessionSettings:
    return SessionSettings(
        model=str(model), guard="off", sampling=GREEDY, max_tokens=600, n_ctx=1024, n_threads=1
    )


def test_it_ends_where_the_loop_is_sure_and_can_be_gone_on_with(forgetful: Path):
    with open_session(settings_for(forgetful)) as session:
        first = ask(session, "Hi").ended
        assert first.finish_reason == "loop"
        assert 96 <= first.usage.completion_tokens < 300
        *_, more = session.continue_answer()
        assert isinstance(more, TurnEnded)
        assert session.messages[-1].text.startswith(first.text)
        assert more.finish_reason == "loop"


def test_ask_says_so(forgetful: Path, capsys: pytest.CaptureFixture[str]):
    model = ["--model", str(forgetful), "--guard", "off", "--ctx", "1024"]
    assert main(["ask", "Hi", *model, "--temperature", "0", "--max-tokens", "600", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["finish_reason"] == "loop"
    assert "stopped, because it was repeating itself" in captured.err


def test_a_chat_says_so(forgetful: Path):
    notes = io.StringIO()
    chat = PlainChat(
        open_session,
        settings_for(forgetful),
        None,
        lines=io.StringIO("Hi\n/continue\n"),
        out=io.StringIO(),
        notes=notes,
    )
    chat.run()
    chat.close()
    assert notes.getvalue().count("stopped: it was repeating itself") == 2
