"""Native logs go to `logging`; nothing of llama.cpp reaches the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Loads a file that is refused, a model, a projector; reads an image; answers.
_SCRIPT = """
import json, logging, sys
from pathlib import Path

import numpy as np

class Keep(logging.Handler):
    def emit(self, record):
        records.append((record.name, record.levelname, record.getMessage()))

records = []
model_path, projector_path, damaged_path, records_path = map(Path, sys.argv[1:5])
if records_path.name != "none":
    logging.getLogger("safesteer_edge").addHandler(Keep())
    logging.getLogger("safesteer_edge").setLevel(logging.DEBUG)

from safesteer_edge.engine.context import ContextSettings, NativeContext
from safesteer_edge.engine.llama_engine import LlamaEngine
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import ModelFileError
from safesteer_edge.guard.policy import SamplingSettings

for load in (lambda: NativeModel(damaged_path), lambda: NativeModel(projector_path)):
    try:
        load()
    except ModelFileError:
        pass
    else:
        sys.exit("a damaged file was loaded")
model = NativeModel(model_path)
try:
    Projector(model_path, model, n_threads=1)
except ModelFileError:
    pass
projector = Projector(projector_path, model, n_threads=1)
settings = ContextSettings(n_ctx=256, n_candidates=4, n_threads=1)
context = NativeContext(model, settings)
engine = LlamaEngine(context, None, projector=projector)
sampler = SamplerChain(SamplingSettings(temperature=0), n_vocab=model.n_vocab)
image = projector.encode_image(np.zeros((30, 100, 3), dtype=np.uint8), sha256="0" * 64)
engine.prefill([*image.items, TokenRun((9, 10))], sampler)
engine.evaluate(11)
engine.accept(11)
try:
    engine.append([12] * 300)
except Exception as error:
    assert "is full" in str(error), error
for owned in (sampler, context, projector, model):
    owned.close()
if records_path.name != "none":
    records_path.write_text(json.dumps(records))
"""


def run_in_child(*paths: Path) -> None:
    """Run the script; it must succeed and write nothing to fd 1 and 2."""
    arguments = [sys.executable, "-c", _SCRIPT, *(str(path) for path in paths)]
    done = subprocess.run(arguments, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def damaged_path(tiny_llama_path: Path, tmp_path: Path) -> Path:
    """A model that llama.cpp refuses."""
    path = tmp_path / "damaged.gguf"
    data = tiny_llama_path.read_bytes()
    path.write_bytes(data.replace(b"blk.2.ffn_down.weight", b"blk.2.ffn_dawn.weight"))
    return path


def test_without_a_handler_nothing_is_written_at_all(
    tiny_llama_path: Path, tiny_projector_path: Path, damaged_path: Path
) -> None:
    run_in_child(tiny_llama_path, tiny_projector_path, damaged_path, Path("none"))


def test_with_a_handler_the_lines_arrive_there_with_their_level(
    tiny_llama_path: Path, tiny_projector_path: Path, damaged_path: Path, tmp_path: Path
) -> None:
    records_path = tmp_path / "records.json"
    run_in_child(tiny_llama_path, tiny_projector_path, damaged_path, records_path)
    records: list[tuple[str, str, str]] = json.loads(records_path.read_text())
    assert {name for name, _, _ in records} == {"safesteer_edge.native"}
    by_level = {
        level: [text for _, kept, text in records if kept == level]
        for level in ("DEBUG", "INFO", "WARNING", "ERROR")
    }
    assert any("ffn_down.weight' not found" in text for text in by_level["ERROR"])  # llama.cpp
    assert any("memory slot" in text for text in by_level["WARNING"])
    assert any("loaded meta data" in text for text in by_level["INFO"])
    assert any("clip" in text for texts in by_level.values() for text in texts)  # mtmd
    assert all(text == text.rstrip() and text for _, _, text in records)
