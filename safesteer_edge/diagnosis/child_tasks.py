"""What the child processes do. Each task imports what it examines, and so may end its process."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from safesteer_edge.diagnosis.facts import (
    BundleFacts,
    DriverFacts,
    LlamaFacts,
    OnnxRuntimeFacts,
    TokenFacts,
)
from safesteer_edge.errors import BundleError

QUESTION = "Hello"

_OFFLOADED = re.compile(r"offloaded (\d+/\d+) layers to GPU")

_Facts = LlamaFacts | DriverFacts | OnnxRuntimeFacts | BundleFacts | TokenFacts


def llama_facts() -> LlamaFacts:
    """Start llama.cpp, and say what it is built for."""
    from safesteer_edge.engine.native import must_avoid_extra_buffer_types, native_facts

    facts = native_facts()
    return LlamaFacts(
        binding_version=facts.binding_version,
        system_info=facts.system_info,
        has_amx=facts.has_amx,
        supports_gpu_offload=facts.supports_gpu_offload,
        avoids_extra_buffer_types=must_avoid_extra_buffer_types(),
    )


def driver_facts() -> DriverFacts:
    """Start the NVIDIA driver, which may take a second, and list its GPUs."""
    from safesteer_edge.diagnosis.nvidia_driver import read_driver

    return read_driver()


def onnxruntime_facts() -> OnnxRuntimeFacts:
    """Import ONNX Runtime, and look for the CUDA libraries that this build needs."""
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    from safesteer_edge.guard.cuda_libraries import missing_cuda_libraries

    return OnnxRuntimeFacts(
        version=onnxruntime.__version__,
        providers=tuple(onnxruntime.get_available_providers()),
        missing_for_cuda=missing_cuda_libraries(
            str(getattr(onnxruntime, "cuda_version", "")),
            Path(str(onnxruntime.__file__)).parent.parent,
        ),
    )


def bundle_facts() -> BundleFacts:
    """Load the default model's guard bundle, which runs its probe's self-test."""
    from safesteer_edge.bundle.bundle import load_bundle
    from safesteer_edge.catalogue import default_model, installed_path
    from safesteer_edge.formats.model_file import check_language_model

    entry = default_model()
    if entry.bundle is None:
        raise BundleError(f"model {entry.name!r} has no guard bundle; reinstall safesteer-edge")
    with load_bundle(entry.bundle, check_language_model(installed_path(entry))) as bundle:
        return BundleFacts(
            name=bundle.config.name,
            match=bundle.match,
            probe_provider=bundle.probe.provider,
            probe_call_s=bundle.probe.seconds_per_call,
            n_probe_canaries=len(bundle.config.canaries.probe),
            n_engine_canaries=len(bundle.config.canaries.engine),
            warnings=bundle.warnings,
            is_calibrated=bundle.is_calibrated,
        )


def token_facts() -> TokenFacts:
    """Decode one guarded token with the default model; opening it runs the engine's self-test."""
    from safesteer_edge.guard.events import TurnEnded
    from safesteer_edge.guard.sampling import SamplingSettings
    from safesteer_edge.session import open_session
    from safesteer_edge.settings import SessionSettings

    native_log = _NativeLog()
    settings = SessionSettings(sampling=SamplingSettings(temperature=0), max_tokens=1)
    with open_session(settings) as session:
        started_s = time.perf_counter()
        *_, ended = session.ask(QUESTION)
        answer_s = time.perf_counter() - started_s
        if not isinstance(ended, TurnEnded):
            raise RuntimeError("the session ended a turn without saying so")
        info, refusal = session.info, ended.refusal
        return TokenFacts(
            load_s=info.load_s,
            answer_s=answer_s,
            route=info.hidden_state_route,
            probe_provider=info.probe_provider,
            n_engine_canaries=_n_engine_canaries(),
            offloaded=native_log.offloaded,
            token="" if refusal else ended.text,
            refusal=refusal.detail if refusal else None,
            guard_failed=refusal is not None and refusal.reason == "guard_failed",
            peak_bytes=_peak_bytes(),
        )


class _NativeLog(logging.Handler):
    """Finds the one line in llama.cpp's log that proves what runs on the GPU."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.offloaded: str | None = None
        logger = logging.getLogger("safesteer_edge.native")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        match = _OFFLOADED.search(record.getMessage())
        if match:
            self.offloaded = match[1]


def _n_engine_canaries() -> int:
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.catalogue import default_model

    folder = default_model().bundle
    return len(read_config(folder).canaries.engine) if folder else 0


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): KiB on Linux


TASKS: Mapping[str, Callable[[], _Facts]] = {
    "llama": llama_facts,
    "driver": driver_facts,
    "onnxruntime": onnxruntime_facts,
    "bundle": bundle_facts,
    "token": token_facts,
}
