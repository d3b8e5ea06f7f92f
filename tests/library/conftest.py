"""A hub on this machine, an empty data folder, and what pulls from the one into the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safesteer_edge.library.index import InstalledModel
from safesteer_edge.library.pull import PullReport, pull
from tests.library.hub_server import Hub, running_hub

REPOSITORY = "tiny/Tiny-GGUF"
MODEL, PROJECTOR = "tiny-F32.gguf", "mmproj-tiny-F32.gguf"
_ELSEWHERE = ("OLLAMA_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE")
_HUB_SETTINGS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home: no data, no settings, no other program's models."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name, folder in (
        ("XDG_DATA_HOME", "data"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_CACHE_HOME", "cache"),
    ):
        monkeypatch.setenv(name, str(home / folder))
    for name in (*_ELSEWHERE, *_HUB_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that huggingface_hub takes for the real one, here and in child processes."""
    from huggingface_hub import constants

    with running_hub() as hub:
        # The library reads the variables once, when it is imported.
        template = "{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.format(endpoint=hub.endpoint)
        )
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        yield hub


@pytest.fixture
def stocked(hub: Hub, tiny_llama_path: Path, tiny_projector_path: Path) -> Hub:
    """The hub with a repository of a tiny model and its projector."""
    hub.put(REPOSITORY, "README.md", b"# Tiny")
    hub.put(REPOSITORY, MODEL, tiny_llama_path.read_bytes())
    hub.put(REPOSITORY, PROJECTOR, tiny_projector_path.read_bytes())
    return hub


@dataclass(slots=True)
class Told:
    """What a pull has told."""

    lines: list[str] = field(default_factory=list)
    expected: int = 0
    advanced: int = 0

    def report(self) -> PullReport:
        return PullReport(self.lines.append, self._expect, self._advance)

    def _expect(self, n_bytes: int) -> None:
        self.expected += n_bytes

    def _advance(self, n_bytes: int) -> None:
        self.advanced += n_bytes


@pytest.fixture
def told() -> Told:
    """Where the pulls of a test tell what they do."""
    return Told()


Pull = Callable[..., InstalledModel]


@pytest.fixture
def pulled(told: Told) -> Pull:
    """Pull, telling `told`."""

    def run(spec: str = f"hf:{REPOSITORY}", *, with_projector: bool = True) -> InstalledModel:
        return pull(spec, told.report(), with_projector=with_projector)

    return run
