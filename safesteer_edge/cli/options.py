"""Options that every command which runs a model shares, and the settings they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final, TypeAlias

from safesteer_edge.formats.gguf_header import KV_TYPES
from safesteer_edge.guard.policy import GUARD_MODES, RERANK_NAMES, SamplingSettings
from safesteer_edge.session.settings import SessionSettings

_DEFAULTS = SamplingSettings()

OptionGroup: TypeAlias = argparse._ActionsContainer  # parsers and groups share no public base


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, which guard bundle, how much of the machine."""
    group = parser.add_argument_group("model")
    add_model_choice(group)
    group.add_argument("--mmproj", type=Path, metavar="F", help="the model's projector file")
    add_machine_options(group)
    group.add_argument(
        "--kv-type",
        choices=KV_TYPES,
        default="f16",
        help="number format of the KV cache (default: f16; q8_0 takes half of it, q4_0 a quarter)",
    )
    group.add_argument(
        "--chat-template", metavar="builtin:NAME", help="instead of the model's own template"
    )
    group.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="have a thinking model reason first, or not (default: as its template does)",
    )


def add_model_choice(group: OptionGroup) -> None:
    """The model and its guard bundle."""
    group.add_argument(
        "--model", metavar="NAME|F.gguf", help="catalogue name or file (default: embedded)"
    )
    group.add_argument("--bundle", type=Path, metavar="DIR", help="guard bundle (default: its own)")


def add_machine_options(group: OptionGroup) -> None:
    """How much of the machine a model gets."""
    group.add_argument("--ctx", type=int, metavar="N", help="context in tokens (default: 4096)")
    group.add_argument(
        "--gpu-layers", type=int, metavar="N", help="layers on the GPU (default: what fits)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def add_guard_options(parser: argparse.ArgumentParser) -> None:
    """How the guard acts."""
    group = parser.add_argument_group("guard")
    group.add_argument(
        "--guard",
        choices=GUARD_MODES,
        default="steer",
        help="steer: re-rank, refuse if that fails (default); refuse; monitor: only watch; off",
    )
    group.add_argument("--strength", type=float, metavar="X", help="larger λ than the bundle's")
    group.add_argument("--threshold", type=float, metavar="X", help="smaller τ than the bundle's")
    group.add_argument(
        "--rerank", choices=RERANK_NAMES, default="lazy", help="lazy (default), eager, or paper"
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """How the sampler draws."""
    group = parser.add_argument_group("sampling")
    for flag, kind, default, text in (
        ("--temperature", float, _DEFAULTS.temperature, "0 is greedy"),
        ("--top-k", int, _DEFAULTS.top_k, "candidates that the guard re-ranks"),
        ("--top-p", float, _DEFAULTS.top_p, "nucleus"),
        ("--min-p", float, _DEFAULTS.min_p, "relative floor"),
        ("--repeat-penalty", float, _DEFAULTS.repeat_penalty, "1 is off"),
        ("--seed", int, _DEFAULTS.seed, "the same seed gives the same answer"),
    ):
        metavar = "N" if kind is int else "X"
        group.add_argument(
            flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {default})"
        )
    group.add_argument("--max-tokens", type=int, default=256, metavar="N", help="default: 256")


def session_settings(options: argparse.Namespace) -> SessionSettings:
    """The settings that all three groups of options make. Raises SettingsError."""
    return SessionSettings(
        model=options.model,
        mmproj=options.mmproj,
        bundle=options.bundle,
        guard=options.guard,
        rerank=options.rerank,
        strength=options.strength,
        threshold=options.threshold,
        sampling=SamplingSettings(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repeat_penalty=options.repeat_penalty,
            seed=options.seed,
        ),
        max_tokens=options.max_tokens,
        n_ctx=options.ctx,
        kv_type=options.kv_type,
        n_gpu_layers=options.gpu_layers,
        n_threads=options.threads,
        chat_template=options.chat_template,
        thinking=options.think,
    )


# -- what the command line's exit codes mean -------------------------------------------------------

OK: Final = 0
RUNTIME_ERROR: Final = 1
BAD_INPUT: Final = 2
REFUSED: Final = 4  # only where --fail-on-refusal asks for it
INTERRUPTED: Final = 130
