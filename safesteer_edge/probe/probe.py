"""The Decoding-Probe as an ONNX graph, loaded: hidden states in, harmful scores out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError, ProbeShapeError
from safesteer_edge.formats.onnx_file import LinearProbe, check_onnx, read_linear_probe
from safesteer_edge.probe.sessions import (
    Device,
    ProbeSession,
    Provider,
    SingleState,
    TimedSession,
    checked_run,
    fastest_session,
    open_probe_session,
    plain_run,
    state_width,
    timed_session,
)

__all__ = ["Device", "OnnxProbe", "Provider"]


class OnnxProbe:
    """A loaded probe. Scoring is safe from several threads; each score is checked."""

    def __init__(
        self,
        timed: TimedSession,
        linear: LinearProbe | None,
        *,
        name: str,
        n_features: int,
        metadata: Mapping[str, str],
    ) -> None:
        """name: what error messages call it. metadata: the file's `metadata_props`.

        linear: what it computes, if that is one product, which NumPy does in a third of the time.
        """
        self._session: ProbeSession | None = timed.session
        self._single = SingleState(timed.session, n_features)
        self._linear = linear if timed.provider == "CPU" else None
        self._name = name
        self.n_features = n_features
        self.metadata = dict(metadata)
        self.provider: Provider = timed.provider  # where it really runs
        self.seconds_per_call = timed.median_s[0]  # of one state, the median measured at load

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: Device = "auto") -> OnnxProbe:
        """Load a probe.onnx; as `from_bytes`, and raises OSError."""
        return cls.from_bytes(Path(path).read_bytes(), name=str(path), device=device)

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str, device: Device = "auto") -> OnnxProbe:
        """Load a probe and choose where it runs.

        data: the file's bytes, so that the graph cannot point at other files.
        name: what error messages call it, usually the path.
        Takes about 10 ms on the CPU; a second or more where CUDA starts.
        Raises ProbeFileError for a file that is not a probe, GuardError if device='cuda' and
        CUDA cannot be used.
        """
        info = check_onnx(data, name=name)
        cpu_session = open_probe_session(data, name, "CPU")
        n_features = state_width(cpu_session, name)
        fastest = fastest_session(
            data, name, device, timed_session(cpu_session, "CPU", n_features, name)
        )
        linear = read_linear_probe(data)
        return cls(fastest, linear, name=name, n_features=n_features, metadata=info.metadata)

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score hidden states.

        hidden: float32 (n, n_features), n >= 1. Not changed.
        Returns float32 (n,), harmful scores in [0, 1], same order.
        Costs about 10 µs for 8 states of 576 floats on the CPU.
        Raises ProbeShapeError for another shape or dtype; GuardError after close, for states
        or scores that are not finite, for scores outside [0, 1], and if the provider fails.
        """
        session = self._session
        if session is None:
            raise GuardError(f"probe {self._name!r} is closed; load the guard bundle again")
        # The annotation promises an array; this is the guard's last door, so it is checked.
        if not isinstance(hidden, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ProbeShapeError(f"hidden states are a {type(hidden).__name__}, not an array")
        shape = hidden.shape
        if len(shape) != 2 or shape[1] != self.n_features or not shape[0]:
            raise ProbeShapeError(
                f"hidden states have shape {shape}; probe {self._name!r} expects "
                f"(n, {self.n_features}), n >= 1: is the guard bundle made for this model?"
            )
        if hidden.dtype != np.float32:
            raise ProbeShapeError(f"hidden states are {hidden.dtype}; the probe expects float32")
        if self._linear is not None and (scores := self._linear.score(hidden)) is not None:
            return scores
        # One product tells; only where it overflows too is each number looked at.
        if not math.isfinite(np.vdot(hidden, hidden)) and not np.isfinite(hidden).all():
            raise GuardError("a hidden state is not finite, so the guard cannot judge this step")
        run = self._single.run if shape[0] == 1 else plain_run(session)
        return checked_run(run, hidden, self._name)

    def close(self) -> None:
        """Free the session. Closing twice is safe; scoring afterwards raises GuardError."""
        self._session = None
        self._single.close()

    def __enter__(self) -> OnnxProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
