"""What runs in a session, for people and reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.runtime import Runtime


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What runs. probe_provider, hidden_state_route: None with the guard off."""

    model_name: str
    model_path: Path
    architecture: str
    quantization: str
    n_ctx: int
    bundle: str | None
    probe_provider: str | None
    hidden_state_route: str | None
    template_sha256: str
    warnings: tuple[str, ...]
    load_s: float


def session_info(runtime: Runtime) -> SessionInfo:
    """Describe a runtime."""
    bundle = runtime.bundle
    return SessionInfo(
        model_name=runtime.choice.name,
        model_path=runtime.choice.path,
        architecture=runtime.info.architecture,
        quantization=runtime.info.quantization,
        n_ctx=runtime.context.n_ctx,
        bundle=bundle.config.name if bundle else None,
        probe_provider=bundle.probe.provider if bundle else None,
        hidden_state_route=runtime.route.name if runtime.route else None,
        template_sha256=runtime.template.sha256,
        warnings=runtime.warnings,
        load_s=runtime.load_s,
    )
