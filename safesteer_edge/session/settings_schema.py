"""Every setting of the settings file: its section, name, type, default, bounds and meaning."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.gguf_header import KvType
from safesteer_edge.guard.policy import RerankName, SamplingSettings
from safesteer_edge.session.protocol import TurnSettings
from safesteer_edge.session.settings import SessionSettings

_SAMPLING = SamplingSettings()
_TURN = TurnSettings()

# What a file may make the default. The weaker modes are asked for each time, by name.
DefaultGuardMode = Literal["steer", "refuse"]
ThemeName = Literal["auto", "dark", "light"]
ImagesShown = Literal["auto", "off"]


def _means(meaning: str) -> dict[str, str]:
    return {"meaning": meaning}


@dataclass(frozen=True, slots=True)
class ModelSection:
    """Which model, and how much of the machine."""

    name: str | None = field(
        default=None, metadata=_means("catalogue name or .gguf file; unset: the embedded model")
    )
    mmproj: str | None = field(
        default=None, metadata=_means("projector file, for pictures and sound; unset: its own")
    )
    bundle: str | None = field(
        default=None, metadata=_means("guard bundle folder; unset: the model's own")
    )
    context: int | None = field(
        default=None, metadata=_means("tokens of context; unset: 4096, or the model's own")
    )
    kv_type: KvType = field(
        default="f16", metadata=_means("format of the KV cache: f16, q8_0 (half), q4_0 (a quarter)")
    )
    thinking: bool | None = field(
        default=None,
        metadata=_means("have thinking models reason first, or not; unset: as their template does"),
    )
    threads: int | None = field(default=None, metadata=_means("CPU threads; unset: all cores"))
    gpu_layers: int | None = field(
        default=None, metadata=_means("layers on the GPU; unset: as many as fit")
    )


@dataclass(frozen=True, slots=True)
class SamplingSection:
    """How the sampler draws."""

    temperature: float = field(default=_SAMPLING.temperature, metadata=_means("0 is greedy"))
    top_k: int = field(
        default=_SAMPLING.top_k, metadata=_means("candidates that the guard re-ranks")
    )
    top_p: float = field(default=_SAMPLING.top_p, metadata=_means("nucleus"))
    min_p: float = field(default=_SAMPLING.min_p, metadata=_means("relative floor"))
    repeat_penalty: float = field(default=_SAMPLING.repeat_penalty, metadata=_means("1 is off"))
    seed: int = field(
        default=_SAMPLING.seed, metadata=_means("the same seed gives the same answer")
    )
    max_tokens: int = field(default=1024, metadata=_means("tokens of an answer at most"))


@dataclass(frozen=True, slots=True)
class GuardSection:
    """How the guard acts. `monitor` and `off` cannot be made the default."""

    mode: DefaultGuardMode = field(
        default="steer", metadata=_means("steer: re-rank, refuse if that fails; or refuse")
    )
    rerank: RerankName = field(default=_TURN.rerank, metadata=_means("lazy, eager, or paper"))
    strength: float | None = field(
        default=None, metadata=_means("λ, not below the bundle's; unset: the bundle's")
    )
    threshold: float | None = field(
        default=None, metadata=_means("τ, not above the bundle's; unset: the bundle's")
    )


@dataclass(frozen=True, slots=True)
class ChatsSection:
    """What is kept."""

    save: bool = field(default=True, metadata=_means("save chats as they happen"))


@dataclass(frozen=True, slots=True)
class LookSection:
    """How the chat looks."""

    theme: ThemeName = field(default="auto", metadata=_means("auto, dark, or light"))
    images: ImagesShown = field(
        default="auto", metadata=_means("pictures in the transcript: auto, or off")
    )
    plain: bool = field(
        default=False, metadata=_means("the line-based chat instead of the full-screen one")
    )


@dataclass(frozen=True, slots=True)
class KeysSection:
    """Keys of the chat's commands, as Textual names them; several with commas between."""

    interrupt: str = field(default="escape", metadata=_means("stop the answer"))
    help: str = field(default="f1", metadata=_means("keys and commands"))
    chats: str = field(default="f2", metadata=_means("find, resume, rename, export, delete chats"))
    models: str = field(default="f3", metadata=_means("choose the model"))
    settings: str = field(default="f4", metadata=_means("the settings"))
    inspect: str = field(default="f5", metadata=_means("what the guard saw and did"))
    compare: str = field(
        default="f6", metadata=_means("answer once with the guard and once without")
    )
    new: str = field(default="ctrl+n", metadata=_means("begin a new chat"))
    attach: str = field(default="ctrl+o", metadata=_means("attach a file"))
    regenerate: str = field(default="ctrl+r", metadata=_means("answer the last question anew"))


@dataclass(frozen=True, slots=True)
class UserSettings:
    """The whole file. Raises SettingsError, naming the setting, for a value out of range."""

    model: ModelSection = field(default_factory=ModelSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    guard: GuardSection = field(default_factory=GuardSection)
    chats: ChatsSection = field(default_factory=ChatsSection)
    look: LookSection = field(default_factory=LookSection)
    keys: KeysSection = field(default_factory=KeysSection)

    def __post_init__(self) -> None:
        self.session_settings()  # its own checks: one place for every bound
        keys = [getattr(self.keys, each.name) for each in fields(self.keys)]
        for key in keys:
            if not key.strip():
                raise SettingsError("a key is ''; expected a name such as 'ctrl+n'")
            if keys.count(key) > 1:
                raise SettingsError(f"key {key!r} is given to two commands; change one of them")

    def session_settings(self) -> SessionSettings:
        """The settings of a session that the file describes."""
        model, sampling = self.model, self.sampling
        return SessionSettings(
            model=model.name,
            mmproj=Path(model.mmproj).expanduser() if model.mmproj else None,
            bundle=Path(model.bundle).expanduser() if model.bundle else None,
            guard=self.guard.mode,
            rerank=self.guard.rerank,
            strength=self.guard.strength,
            threshold=self.guard.threshold,
            sampling=SamplingSettings(
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                repeat_penalty=sampling.repeat_penalty,
                seed=sampling.seed,
            ),
            max_tokens=sampling.max_tokens,
            n_ctx=model.context,
            kv_type=model.kv_type,
            prefers_thinking=model.thinking,
            n_gpu_layers=model.gpu_layers,
            n_threads=model.threads,
        )


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting. key: `section.name`."""

    key: str
    section: str
    name: str
    default: str | int | float | bool | None
    meaning: str


def all_settings() -> tuple[SettingInfo, ...]:
    """Every setting, in the order of the file."""
    return tuple(
        SettingInfo(
            f"{section.name}.{each.name}",
            section.name,
            each.name,
            cast("str | int | float | bool | None", each.default),
            each.metadata["meaning"],
        )
        for section in fields(UserSettings)
        for each in fields(section_type(section.name))
    )


def section_type(name: str) -> type[Any]:
    """The dataclass of a section."""
    found = next(each for each in fields(UserSettings) if each.name == name)
    factory = cast("Field[Any]", found).default_factory
    if factory is MISSING or not isinstance(factory, type):
        raise TypeError(f"section {name!r} has no type")
    return factory
