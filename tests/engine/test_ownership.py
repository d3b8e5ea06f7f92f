"""Every native object is freed once, in the right order, also when a later step fails."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from llama_cpp import mtmd_cpp

from safesteer_edge.engine.context import ContextSettings, NativeContext
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.errors import EngineError, ModelFileError
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.library.memory_plan import Machine
from safesteer_edge.session import runtime as runtime_module
from safesteer_edge.session.session import Session, open_session
from safesteer_edge.session.settings import SessionSettings
from tests.engine.open_engine import open_engine, random_prompt
from tests.tiny_models import write_tiny_llama, write_tiny_projector

PROMPT = random_prompt(np.random.default_rng(13), 12)

# What makes a native object, and what frees it.
_PAIRS: list[tuple[Any, str, str]] = [
    (lib, "llama_model_load_from_file", "llama_model_free"),
    (lib, "llama_init_from_model", "llama_free"),
    (lib, "llama_batch_init", "llama_batch_free"),
    (lib, "llama_sampler_chain_init", "llama_sampler_free"),
    (mtmd_cpp, "mtmd_init_from_file", "mtmd_free"),
    (mtmd_cpp, "mtmd_bitmap_init", "mtmd_bitmap_free"),
    (mtmd_cpp, "mtmd_input_chunks_init", "mtmd_input_chunks_free"),
    (mtmd_cpp, "mtmd_input_chunk_copy", "mtmd_input_chunk_free"),
]


class Ledger:
    """Native objects made and freed, by the name of what frees them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: Counter[str] = Counter()
        self.freed: list[str] = []
        for library, make_name, free_name in _PAIRS:
            made = self._noting_made(getattr(library, make_name), free_name)
            freed = self._noting_freed(getattr(library, free_name), free_name)
            monkeypatch.setattr(library, make_name, made)
            monkeypatch.setattr(library, free_name, freed)

    def _noting_made(self, make: Callable[..., Any], free_name: str) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            handle = make(*arguments)
            if handle:
                self.made[free_name] += 1
            return handle

        return noted

    def _noting_freed(self, free: Callable[..., Any], free_name: str) -> Callable[..., Any]:
        def noted(handle: Any) -> None:
            self.freed.append(free_name)
            free(handle)

        return noted

    def assert_balanced(self) -> None:
        assert Counter(self.freed) == self.made

    def freed_main(self) -> list[str]:
        """The large objects, in the order in which they were freed."""
        return [
            name for name in self.freed if name in ("llama_free", "mtmd_free", "llama_model_free")
        ]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Notes what is made and freed from here on."""
    gc.collect()
    return Ledger(monkeypatch)


def settings(model: Path, mmproj: Path | None = None, n_ctx: int = 256) -> SessionSettings:
    return SessionSettings(
        model=str(model),
        mmproj=mmproj,
        guard="off",
        n_ctx=n_ctx,
        n_threads=1,
        max_tokens=4,
        sampling=SamplingSettings(temperature=0, top_k=8),
    )


def answer_once(session: Session) -> None:
    assert list(session.ask("hi"))


@contextmanager
def little_memory(n_bytes: int) -> Iterator[None]:
    """At most this much more address space than now: larger allocations fail."""
    resource = pytest.importorskip("resource")
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_an_engine_that_answered_about_images_leaves_nothing_behind(
    ledger: Ledger, tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path, layers=(1,)) as opened:
        assert opened.projector is not None
        pixels = np.zeros((30, 100, 3), dtype=np.uint8)
        image = opened.projector.encode_image(pixels, sha256="0" * 64).items
        opened.prefill([*image, TokenRun(tuple(PROMPT))])
        opened.feed([50])
        opened.engine.evaluate_candidates([60, 70])
    assert set(ledger.made) == {free_name for _, _, free_name in _PAIRS}
    del opened, image
    gc.collect()
    ledger.assert_balanced()
    assert ledger.freed_main() == ["llama_free", "mtmd_free", "llama_model_free"]


def test_a_session_frees_context_projector_and_model_in_this_order_and_once(
    ledger: Ledger, tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    session = open_session(settings(tiny_llama_path, tiny_projector_path))
    answer_once(session)
    assert ledger.freed_main() == []
    session.close()
    session.close()
    assert ledger.freed_main() == ["llama_free", "mtmd_free", "llama_model_free"]
    ledger.assert_balanced()


def test_objects_that_nobody_closed_are_freed_in_the_right_order(
    ledger: Ledger, tiny_llama_path: Path
) -> None:
    model = NativeModel(tiny_llama_path)
    context = NativeContext(model, ContextSettings(n_ctx=256, n_candidates=2, n_threads=1))
    del model
    gc.collect()
    assert ledger.freed_main() == []  # the context needs its model
    del context
    gc.collect()
    assert ledger.freed_main() == ["llama_free", "llama_model_free"]
    ledger.assert_balanced()


def test_a_projector_that_fails_after_a_good_model_frees_the_model(
    ledger: Ledger, tiny_llama_path: Path, tmp_path: Path
) -> None:
    """A file that the pre-check lets through, and mtmd does not."""
    path = write_tiny_projector(tmp_path / "mmproj.gguf")
    path.write_bytes(path.read_bytes().replace(b"mm.model.mlp.0.bias", b"mm.model.mlp.0.bixs"))
    with pytest.raises(ModelFileError, match="unable to find tensor"):
        open_session(settings(tiny_llama_path, path))
    assert ledger.freed_main() == ["llama_model_free"]
    ledger.assert_balanced()


def test_a_context_too_large_for_the_memory_frees_projector_and_model(
    ledger: Ledger, tiny_projector_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a machine with little free memory refuses it before anything is loaded.
    monkeypatch.setattr(runtime_module, "this_machine", lambda: Machine(None, ""))
    path = write_tiny_llama(tmp_path / "long.gguf", n_ctx_train=2**21)
    with (
        little_memory(512 * 2**20),
        pytest.raises(EngineError, match="cannot make a context of 2097152 tokens"),
    ):
        open_session(settings(path, tiny_projector_path, n_ctx=2**21))
    assert ledger.freed_main() == ["mtmd_free", "llama_model_free"]
    ledger.assert_balanced()


def test_a_failure_after_all_native_objects_frees_them_all(
    ledger: Ledger,
    tiny_llama_path: Path,
    tiny_projector_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise EngineError("no engine today")

    monkeypatch.setattr(runtime_module, "LlamaEngine", fail)
    with pytest.raises(EngineError, match="no engine today"):
        open_session(settings(tiny_llama_path, tiny_projector_path))
    assert ledger.freed_main() == ["llama_free", "mtmd_free", "llama_model_free"]
    ledger.assert_balanced()


def test_a_file_that_is_refused_before_native_code_sees_it_makes_nothing(
    ledger: Ledger, tiny_llama_path: Path, tmp_path: Path
) -> None:
    wide = write_tiny_projector(tmp_path / "wide.gguf", n_embd=96)
    with pytest.raises(ModelFileError, match="width 96"):
        open_session(settings(tiny_llama_path, wide))
    with pytest.raises(ModelFileError):
        open_session(settings(wide))
    assert not ledger.made


def test_a_closed_engine_raises_and_does_not_crash(tiny_llama_path: Path) -> None:
    with open_engine(tiny_llama_path, layers=(1,)) as opened:
        opened.prefill(PROMPT)
        opened.engine.evaluate(50)
    engine, context = opened.engine, opened.context
    context.close()
    uses: list[Callable[[], Any]] = [
        engine.propose,
        lambda: engine.evaluate(60),
        lambda: engine.evaluate_candidates([60]),
        lambda: engine.accept(50),
        lambda: engine.take_back(1),
        lambda: engine.append([60]),
        lambda: engine.is_end(60),
        lambda: engine.piece(60),
        lambda: opened.prefill(PROMPT),
        lambda: context.handle,
        lambda: context.decode([1], [0], [0], n_outputs=1),
        lambda: context.logits(0),
        lambda: context.set_control_vector(np.zeros((4, 64), dtype=np.float32)),
        context.clear,
    ]
    for use in uses:
        with pytest.raises(EngineError):
            use()


def test_a_closed_session_raises_and_does_not_crash(tiny_llama_path: Path) -> None:
    with open_session(settings(tiny_llama_path)) as session:
        answer_once(session)
    with pytest.raises(EngineError, match="is closed"):
        answer_once(session)
    session.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_opening_answering_and_closing_again_and_again_keeps_the_memory_flat(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    def resident_pages() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1])

    def open_answer_close(seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        with open_engine(tiny_llama_path, mmproj=tiny_projector_path, layers=(1,)) as opened:
            assert opened.projector is not None
            image = opened.projector.encode_image(pixels, sha256=f"{seed:064x}").items
            opened.prefill([*image, TokenRun(tuple(PROMPT))])
            for token_id in range(20, 40):
                opened.engine.evaluate(token_id)
                opened.engine.evaluate_candidates([60, 70, 80])
                opened.engine.accept(70)

    for seed in range(5):
        open_answer_close(seed)
    before = resident_pages()
    for seed in range(20):
        open_answer_close(100 + seed)
    assert resident_pages() < 1.05 * before
