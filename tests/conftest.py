"""Tiny models that many tests read: written once a session, never changed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.guarded_tiny import GuardedTiny
    from tests.requantized_tiny import RequantizedTiny


# Examples are cases, not timings: a busy machine may take its time over one, and over finding it.
settings.register_profile(
    "any-machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("any-machine")


# Before NumPy, OpenMP and OpenBLAS are loaded (so nothing above loads them), here and in all child
# processes: threads that wait for others sleep, or there is one. Spinning is faster on an idle
# machine. On a busy one two threads of llama.cpp take four times as long as one, and a calibration
# took eight minutes instead of a quarter of one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny models of this session lie."""
    return tmp_path_factory.mktemp("tiny_models")


@pytest.fixture(scope="session")
def tiny_llama_path(tiny_models_folder: Path) -> Path:
    """A llama of 4 blocks, 64 wide, 320 tokens, F32."""
    from tests.tiny_models import write_tiny_llama

    return write_tiny_llama(tiny_models_folder / "tiny-llama.gguf")


@pytest.fixture(scope="session")
def tiny_mamba_path(tiny_models_folder: Path) -> Path:
    """A recurrent model of the same width, depth and vocabulary."""
    from tests.tiny_models import write_tiny_mamba

    return write_tiny_mamba(tiny_models_folder / "tiny-mamba.gguf")


@pytest.fixture(scope="session")
def tiny_projector_path(tiny_models_folder: Path) -> Path:
    """A projector for the tiny llama: an image of 56 × 56 pixels becomes 4 tokens."""
    from tests.tiny_models import write_tiny_projector

    return write_tiny_projector(tiny_models_folder / "tiny-mmproj.gguf")


@pytest.fixture(scope="session")
def guarded_tiny(tmp_path_factory: pytest.TempPathFactory) -> GuardedTiny:
    """A tiny llama with guard bundles made for it."""
    from tests.guarded_tiny import make_guarded_tiny  # loads llama.cpp, which few tests need

    return make_guarded_tiny(tmp_path_factory.mktemp("guarded_tiny"))


@pytest.fixture(scope="session")
def calling_tiny(tmp_path_factory: pytest.TempPathFactory) -> GuardedTiny:
    """The same with the chat template of Qwen2.5, which offers tools."""
    from tests.guarded_tiny import make_guarded_tiny
    from tests.tiny_models import QWEN25

    return make_guarded_tiny(tmp_path_factory.mktemp("calling_tiny"), chat_template=QWEN25)


@pytest.fixture(scope="session")
def requantized_tiny(
    guarded_tiny: GuardedTiny, tmp_path_factory: pytest.TempPathFactory
) -> RequantizedTiny:
    """That model in Q8_0, and a bundle that was calibrated on it in F32."""
    from tests.requantized_tiny import make_requantized_tiny

    return make_requantized_tiny(guarded_tiny, tmp_path_factory.mktemp("requantized"))


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard() -> None:
    """As in a terminal: what a shell starts in the background ignores them, children included."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Empty folders of data, settings and cache, so that no test sees, or changes, the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        for name in [each for each in os.environ if each.startswith("SAFESTEER_")]:
            patch.delenv(name)  # those that are settings would count
        yield
