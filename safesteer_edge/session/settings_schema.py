"""Every setting, declared once: its key in the file, its flag, and what it means.

Its type and default are those of the dataclass field that `path` names, which checks its bounds.
From this come the settings file, the environment variables, the flags of the command line, the
settings screen, and the table in docs/settings.md.
"""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Final, Literal, Union, get_args, get_origin

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.json_values import shown
from safesteer_edge.session.settings import SessionSettings

VARIABLE_PREFIX: Final = "SAFESTEER_"


@dataclass(frozen=True, slots=True)
class ChatsSection:
    """What is kept."""

    save: bool = True


@dataclass(frozen=True, slots=True)
class LookSection:
    """How the chat looks."""

    theme: Literal["auto", "dark", "light"] = "auto"
    images: Literal["auto", "off"] = "auto"
    plain: bool = False


@dataclass(frozen=True, slots=True)
class KeysSection:
    """Keys of the chat's commands, as Textual names them; several with commas between."""

    interrupt: str = "escape"
    help: str = "f1"
    chats: str = "f2"
    models: str = "f3"
    settings: str = "f4"
    inspect: str = "f5"
    compare: str = "f6"
    new: str = "ctrl+n"
    attach: str = "ctrl+o"
    regenerate: str = "ctrl+r"

    def __post_init__(self) -> None:
        keys = list(asdict(self).values())
        for key in keys:
            if not key.strip():
                raise SettingsError("a key is ''; expected a name such as 'ctrl+n'")
            if keys.count(key) > 1:
                raise SettingsError(f"key {key!r} is given to two commands; change one of them")


@dataclass(frozen=True, slots=True)
class BundlesSection:
    """Whose guard bundles are trusted: "NAME KEY, NAME KEY"."""

    trusted_keys: str = ""

    def __post_init__(self) -> None:
        if bad := [each for each in self._entries() if len(each.split()) != 2]:
            raise SettingsError(f"a trusted key is {shown(bad[0])}; expected a name and a key")

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None: nobody's that is trusted."""
        return {each.split()[1]: each.split()[0] for each in self._entries()}.get(key)

    def _entries(self) -> list[str]:
        return [each for each in self.trusted_keys.split(",") if each.strip()]


@dataclass(frozen=True, slots=True)
class UserSettings:
    """All that a user can set. Its parts raise SettingsError for a value out of range."""

    session: SessionSettings = field(default_factory=SessionSettings)
    chats: ChatsSection = field(default_factory=ChatsSection)
    look: LookSection = field(default_factory=LookSection)
    keys: KeysSection = field(default_factory=KeysSection)
    bundles: BundlesSection = field(default_factory=BundlesSection)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    key: `section.name` in the file. path: the attribute of UserSettings that holds the value; '':
    the key. flag: '' without one; flag_value: what a flag that takes no value sets. kept: what a
    file or variable may say of the choices, where that is not all.
    """

    key: str
    meaning: str
    path: str = ""
    flag: str = ""
    flag_value: str | bool | None = None
    metavar: str | None = None
    kept: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """Such as `sampling`."""
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        """Such as `top_k`."""
        return self.key.partition(".")[2]

    @property
    def parts(self) -> list[str]:
        """The attributes that lead from UserSettings to the value."""
        return (self.path or self.key).split(".")

    @property
    def variable(self) -> str:
        """The environment variable, such as `SAFESTEER_SAMPLING_TOP_K`."""
        return VARIABLE_PREFIX + self.key.replace(".", "_").upper()

    @property
    def default(self) -> Any:
        """The value where nothing is set."""
        return value_of(_DEFAULTS, self)

    @property
    def is_optional(self) -> bool:
        """Whether it may be unset."""
        return type(None) in get_args(self._hint)

    @property
    def kind(self) -> Any:
        """The type of a value that is set."""
        if get_origin(self._hint) in (Union, types.UnionType):
            return next(kind for kind in get_args(self._hint) if kind is not type(None))
        return str if self.choices else self._hint

    @property
    def choices(self) -> tuple[str, ...]:
        """All values, of a setting that has few."""
        return get_args(self._hint) if get_origin(self._hint) is Literal else ()

    @property
    def _hint(self) -> Any:
        hint: Any = UserSettings
        for name in self.parts:
            hint = _hints(hint)[name]
        return hint


SETTINGS: Final = (
    Setting(
        "model.name",
        "name of a model, or .gguf file; unset: the built-in model",
        "session.model",
        "--model",
        metavar="NAME|F.gguf",
    ),
    Setting(
        "model.mmproj",
        "projector file, for pictures and sound; unset: its own",
        "session.mmproj",
        "--mmproj",
        metavar="F",
    ),
    Setting(
        "model.bundle",
        "guard bundle folder; unset: the model's own",
        "session.bundle",
        "--bundle",
        metavar="DIR",
    ),
    Setting(
        "model.context",
        "tokens of context; unset: 4096, or the model's own",
        "session.n_ctx",
        "--ctx",
    ),
    Setting(
        "model.when_full",
        "when a chat outgrows the context: drop leaves out its oldest turns, stop refuses to go on",
        "session.when_full",
    ),
    Setting(
        "model.kv_type",
        "format of the KV cache: f16, q8_0 (half), q4_0 (a quarter)",
        "session.kv_type",
        "--kv-type",
    ),
    Setting(
        "model.thinking",
        "have thinking models reason first, or not; unset: the model's own choice",
        "session.prefers_thinking",
    ),
    Setting("model.threads", "CPU threads; unset: all cores", "session.n_threads", "--threads"),
    Setting(
        "model.gpu_layers",
        "layers on the GPU; unset: as many as fit",
        "session.n_gpu_layers",
        "--gpu-layers",
    ),
    Setting(
        "sampling.temperature",
        "how varied answers are; 0: always the likeliest word",
        "session.sampling.temperature",
        "--temperature",
    ),
    Setting(
        "sampling.top_k", "choose among this many likely words", "session.sampling.top_k", "--top-k"
    ),
    Setting(
        "sampling.top_p",
        "choose among the likeliest words with this total chance",
        "session.sampling.top_p",
        "--top-p",
    ),
    Setting(
        "sampling.min_p",
        "leave out words below this share of the likeliest one's chance",
        "session.sampling.min_p",
        "--min-p",
    ),
    Setting(
        "sampling.repeat_penalty",
        "avoid repeating words; 1: off",
        "session.sampling.repeat_penalty",
        "--repeat-penalty",
    ),
    Setting(
        "sampling.seed", "the same seed gives the same answer", "session.sampling.seed", "--seed"
    ),
    Setting(
        "sampling.max_tokens", "longest answer, in tokens", "session.max_tokens", "--max-tokens"
    ),
    Setting(
        "guard.mode",
        "steer (then refuse), or refuse; with --guard only: monitor (only watch), off",
        "session.guard",
        "--guard",
        kept=("steer", "refuse"),
    ),
    Setting(
        "guard.rerank",
        "how candidates are scored: lazy, eager, or paper",
        "session.rerank",
        "--rerank",
    ),
    Setting(
        "guard.strength",
        "how hard the guard steers; larger is stricter; unset: the guard's own",
        "session.strength",
        "--strength",
    ),
    Setting(
        "guard.threshold",
        "score from which it steers; smaller is stricter; unset: the guard's own",
        "session.threshold",
        "--threshold",
    ),
    Setting("chats.save", "save chats", flag="--no-save", flag_value=False),
    Setting("look.theme", "colours: auto, dark, or light", flag="--theme"),
    Setting(
        "look.images",
        "show pictures in the chat: auto, or off",
        flag="--no-images",
        flag_value="off",
    ),
    Setting(
        "look.plain",
        "chat line by line instead of on the full screen",
        flag="--plain",
        flag_value=True,
    ),
    Setting(
        "bundles.trusted_keys",
        "who may sign guard bundles, each a name and a key, with commas between",
    ),
    Setting("keys.interrupt", "stop the answer"),
    Setting("keys.help", "keys and commands"),
    Setting("keys.chats", "find and reopen earlier chats"),
    Setting("keys.models", "choose a model"),
    Setting("keys.settings", "the settings"),
    Setting("keys.inspect", "show what the guard saw and did"),
    Setting("keys.compare", "answer without the guard, and with it"),
    Setting("keys.new", "start a new chat"),
    Setting("keys.attach", "attach a file"),
    Setting("keys.regenerate", "answer the last question again"),
)


def value_of(settings: UserSettings, setting: Setting) -> Any:
    """The value of one setting."""
    value: Any = settings
    for name in setting.parts:
        value = getattr(value, name)
    return value


_DEFAULTS: Final = UserSettings()
_hints = cache(typing.get_type_hints)
