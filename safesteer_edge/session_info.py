"""What runs in a session, for people and reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.guard.policy import GuardMode, GuardPolicy

if TYPE_CHECKING:
    from safesteer_edge.runtime import Runtime


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What runs.

    bundle, policy, probe_provider, hidden_state_route: None where no bundle is loaded; policy is
    the bundle's own, which settings can only tighten. n_candidates: the largest top_k with a guard.
    tensor_table_sha256, probe_sha256: what tells model and guard from others, as `guard.json` has
    them; hashing gigabytes of weights would take longer than loading them. media_warnings: what to
    say besides where a question brings pictures or sound. bundle_sha256, is_calibrated: see
    GuardBundle; None where no bundle is loaded.
    """

    model_name: str
    model_path: Path
    architecture: str
    quantization: str
    tensor_table_sha256: str
    n_ctx: int
    n_candidates: int
    sees: bool
    hears: bool
    mmproj: Path | None
    guard: GuardMode
    bundle: str | None
    probe_sha256: str | None
    policy: GuardPolicy | None
    probe_provider: str | None
    hidden_state_route: str | None
    template_sha256: str
    warnings: tuple[str, ...]
    load_s: float
    media_warnings: tuple[str, ...] = ()
    bundle_sha256: str | None = None
    is_calibrated: bool | None = None


def session_info(runtime: Runtime, guard: GuardMode) -> SessionInfo:
    """Describe a runtime whose next turn is guarded in this mode."""
    bundle, projector = runtime.bundle, runtime.projector
    return SessionInfo(
        model_name=runtime.choice.name,
        model_path=runtime.choice.path,
        architecture=runtime.info.architecture,
        quantization=runtime.info.quantization,
        tensor_table_sha256=runtime.info.tensor_table_sha256,
        n_ctx=runtime.context.n_ctx,
        n_candidates=runtime.context.n_candidates,
        sees=projector is not None and projector.sees,
        hears=projector is not None and projector.hears,
        mmproj=runtime.mmproj,
        guard=guard,
        bundle=bundle.config.name if bundle else None,
        probe_sha256=bundle.config.probe.sha256 if bundle else None,
        policy=bundle.policy if bundle else None,
        probe_provider=bundle.probe.provider if bundle else None,
        hidden_state_route=runtime.route.name if runtime.route else None,
        template_sha256=runtime.template.sha256,
        warnings=(*_guard_warnings(guard), *runtime.warnings),
        load_s=runtime.load_s,
        media_warnings=_media_warnings(runtime, guard),
        bundle_sha256=bundle.sha256 if bundle else None,
        is_calibrated=bundle.is_calibrated if bundle else None,
    )


def _guard_warnings(guard: GuardMode) -> tuple[str, ...]:
    if guard == "off":
        return ("the guard is off: answers are the model's own, unchecked",)
    if guard == "monitor":
        return ("the guard only watches (monitor): nothing is steered or refused",)
    return ()


def _media_warnings(runtime: Runtime, guard: GuardMode) -> tuple[str, ...]:
    bundle = runtime.bundle
    if guard == "off" or bundle is None or bundle.control_vector is not None:
        return ()
    return (
        "the bundle has no alignment vector: prompts with media are guarded by the probe alone",
    )
