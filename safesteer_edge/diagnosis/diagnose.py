"""All examinations in order, each behind its own wall."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from safesteer_edge.catalogue import default_model
from safesteer_edge.diagnosis.check import Check, isolated
from safesteer_edge.diagnosis.child_process import ChildFailure, ask_child
from safesteer_edge.diagnosis.default_model import (
    check_bundle,
    check_default_model,
    check_first_token,
)
from safesteer_edge.diagnosis.facts import (
    BundleFacts,
    DriverFacts,
    LlamaFacts,
    OnnxRuntimeFacts,
    TokenFacts,
)
from safesteer_edge.diagnosis.llama_build import check_llama, check_llama_gpu, check_processor
from safesteer_edge.diagnosis.memory import check_memory
from safesteer_edge.diagnosis.nvidia_driver import has_nvidia_device
from safesteer_edge.diagnosis.onnx_runtime import check_nothing_phones_home, check_onnxruntime
from safesteer_edge.diagnosis.packages import (
    check_onnxruntime_packages,
    check_packages,
    check_picture_words,
)
from safesteer_edge.diagnosis.user_folders import check_folders

# A cold disk, a virus scanner or a GPU's first start can take long; a hang takes for ever.
_START_LIMIT_S = 60.0
_TOKEN_LIMIT_S = 300.0


class _Machine:
    """What the child processes report, asked once."""

    @cached_property
    def llama(self) -> LlamaFacts | ChildFailure:
        return ask_child("llama", LlamaFacts, limit_s=_START_LIMIT_S)

    @cached_property
    def driver(self) -> DriverFacts | ChildFailure:
        return ask_child("driver", DriverFacts, limit_s=_START_LIMIT_S)

    @cached_property
    def onnxruntime(self) -> OnnxRuntimeFacts | ChildFailure:
        return ask_child("onnxruntime", OnnxRuntimeFacts, limit_s=_START_LIMIT_S)

    def bundle(self) -> BundleFacts | ChildFailure:
        return ask_child("bundle", BundleFacts, limit_s=_START_LIMIT_S)

    def token(self) -> TokenFacts | ChildFailure:
        return ask_child("token", TokenFacts, limit_s=_TOKEN_LIMIT_S)


def diagnose() -> Iterator[Check]:
    """Examine everything, and yield each check as it is done. Takes some 3 s, never raises."""
    for name, examine in _examinations(_Machine()):
        yield from isolated(name, examine)


def _examinations(machine: _Machine) -> list[tuple[str, Callable[[], Sequence[Check]]]]:
    return [
        ("packages", check_packages),
        ("llama.cpp", lambda: check_llama(machine.llama)),
        ("cpu", lambda: check_processor(machine.llama)),
        ("llama.cpp gpu", lambda: _check_gpu(machine)),
        ("onnxruntime packages", check_onnxruntime_packages),
        ("onnxruntime", lambda: check_onnxruntime(machine.onnxruntime, machine.driver)),
        ("nothing phones home", lambda: check_nothing_phones_home(machine.onnxruntime)),
        ("picture words", check_picture_words),
        ("folders", check_folders),
        ("memory", lambda: check_memory(_default_model_bytes())),
        ("default model", check_default_model),
        ("guard bundle", lambda: check_bundle(machine.bundle())),
        ("guarded token", lambda: check_first_token(machine.token())),
    ]


def _check_gpu(machine: _Machine) -> Sequence[Check]:
    return check_llama_gpu(machine.llama, machine.driver, has_nvidia_device=has_nvidia_device())


def _default_model_bytes() -> int | None:
    path = default_model().path
    return None if path is None else path.stat().st_size
