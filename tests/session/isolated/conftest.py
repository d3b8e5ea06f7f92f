"""One engine process that many tests share: starting one takes 0.4 s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.session.isolated_session import IsolatedSession, open_isolated_session
from tests.guarded_tiny import PATIENT_POLICY, WAVERING, GuardedTiny

Open = Callable[..., IsolatedSession]


@pytest.fixture(scope="package")
def shared_session(guarded_tiny: GuardedTiny) -> Iterator[IsolatedSession]:
    """A session on the wavering probe, with a projector; a new conversation is its user's task."""
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    settings = guarded_tiny.settings(bundle, mmproj=guarded_tiny.projector)
    with open_isolated_session(settings) as session:
        yield session


@pytest.fixture
def isolated(shared_session: IsolatedSession) -> Iterator[IsolatedSession]:
    """The shared session with a new conversation and the settings that it was opened with."""
    before = shared_session.turn_settings
    shared_session.reset()
    yield shared_session
    if shared_session.turn_settings != before:
        shared_session.change(before)


@pytest.fixture
def opened_isolated(guarded_tiny: GuardedTiny) -> Iterator[Open]:
    """Opens sessions of their own, for tests that end the process."""
    sessions: list[IsolatedSession] = []

    def open_one(bundle: Path | None, **changes: Any) -> IsolatedSession:
        settings = guarded_tiny.settings(bundle, **{"n_ctx": 2048, **changes})
        sessions.append(open_isolated_session(settings))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()
