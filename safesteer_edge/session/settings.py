"""Settings of a session: which model, which guard, how to sample."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.gguf_header import KV_TYPES, KvType
from safesteer_edge.guard.policy import (
    GUARD_MODES,
    RERANK_NAMES,
    GuardMode,
    RerankName,
    SamplingSettings,
    check_policy_number,
)

WhenFull = Literal["drop", "stop"]
ProbeDevice = Literal["auto", "cpu", "cuda"]
DEFAULT_N_CTX = 4096
_MAX_COUNT = 2**31 - 1  # llama.cpp's counts
BUILTIN_TEMPLATE_PREFIX = "builtin:"


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """What may change from one turn to the next. Raises SettingsError for a value out of range.

    guard: `steer` re-ranks and refuses when that fails, `refuse` only refuses, `monitor` scores
        and changes nothing, `off` runs without a guard and must be asked for by name.
    strength, threshold: λ larger, or τ smaller, than the bundle's; None: the bundle's.
    when_full: of a conversation that the context has no room for, `drop` leaves the oldest turns
        out of the prompt, `stop` raises PromptTooLongError.
    """

    guard: GuardMode = "steer"
    rerank: RerankName = "lazy"
    strength: float | None = None
    threshold: float | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_tokens: int = 1024
    when_full: WhenFull = "drop"

    def __post_init__(self) -> None:
        _check_one_of("guard", self.guard, GUARD_MODES)
        _check_one_of("rerank", self.rerank, RERANK_NAMES)
        check_policy_number("strength", self.strength)
        check_policy_number("threshold", self.threshold)
        _check_one_of("when_full", self.when_full, get_args(WhenFull))
        _check_at_least("max_tokens", self.max_tokens, 1)

    @classmethod
    def of(cls, settings: TurnSettings) -> TurnSettings:
        """The part of a session's settings that may change between turns."""
        return TurnSettings(*(getattr(settings, each.name) for each in fields(TurnSettings)))


@dataclass(frozen=True, slots=True)
class SessionSettings(TurnSettings):
    """What `open_session` needs. Every default is the embedded model, guarded.

    model: a name of the catalogue or a path to a .gguf file; None: the embedded default.
    mmproj: projector file, for images and sound.
    bundle: guard bundle folder; None: the model's own.
    n_ctx: context in tokens; None: 4096, or the model's own if that is smaller.
    kv_type: number format of the KV cache: q8_0 takes half of f16's memory, q4_0 a quarter.
    n_gpu_layers: None: as many as fit into the free memory of the GPUs; 0 without one.
    chat_template: `builtin:NAME`; None: the model's own.
    thinking: have a model reason before it answers, or not; None: as its template does.
    prefers_thinking: the same, for every model whose template can; others are left as they are.
    allow_negative_scale: accept a bundle whose vector is applied against its direction.
    """

    model: str | None = None
    mmproj: Path | None = None
    bundle: Path | None = None
    n_ctx: int | None = None
    kv_type: KvType = "f16"
    n_gpu_layers: int | None = None
    n_threads: int | None = None
    probe_device: ProbeDevice = "auto"
    chat_template: str | None = None
    thinking: bool | None = None
    prefers_thinking: bool | None = None
    allow_negative_scale: bool = False

    def __post_init__(self) -> None:
        TurnSettings.__post_init__(self)  # slots make another class of this: no super() here
        _check_one_of("kv_type", self.kv_type, KV_TYPES)
        _check_at_least("n_ctx", self.n_ctx, 64)
        _check_at_least("n_gpu_layers", self.n_gpu_layers, 0)
        _check_at_least("n_threads", self.n_threads, 1)


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingsError(f"{name} is {value!r}; expected one of {known}")


def _check_at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and not low <= value <= _MAX_COUNT:
        expected = f"at least {low}" if value < low else f"at most {_MAX_COUNT}"
        raise SettingsError(f"{name} is {value!r}; expected {expected}")
