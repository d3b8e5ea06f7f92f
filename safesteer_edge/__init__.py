"""SafeSteer Edge: quantized multimodal models that stay safe while they decode.

The public names below are imported when they are first used, so that the package itself (and the
command line's `--help`) loads nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safesteer_edge.formats.version import VERSION as __version__

if TYPE_CHECKING:
    from safesteer_edge.bundle.bundle import (
        GuardBundle,
    )
    from safesteer_edge.chats.chat_store import (
        ChatStore,
    )
    from safesteer_edge.chats.recorded_chat import (
        RecordedChat,
    )
    from safesteer_edge.converters.probe_conversion import ConversionReport
    from safesteer_edge.converters.vector_source import LayerBase
    from safesteer_edge.errors import (
        BundleChangedError,
        BundleError,
        CacheError,
        ChatFileError,
        ChatStoreError,
        DownloadError,
        EngineDiedError,
        EngineError,
        GuardError,
        HubError,
        InputError,
        MediaError,
        ModelFileError,
        NoBundleError,
        ProbeFileError,
        ProbeShapeError,
        PromptTooLongError,
        RequestDataError,
        SafeSteerError,
        SettingsError,
        TemplateError,
        VectorFileError,
    )
    from safesteer_edge.formats.control_vector_file import ControlVector
    from safesteer_edge.guard.events import (
        AnswerPart,
        Candidate,
        Event,
        FinishReason,
        GuardSummary,
        MediaPrepared,
        PrefillDone,
        Refused,
        Step,
        TextDelta,
        Timings,
        TurnEnded,
        TurnsLeftOut,
        Usage,
        event_from_json,
        event_to_json,
    )
    from safesteer_edge.guard.policy import (
        GuardMode,
        GuardPolicy,
        RerankName,
        SamplingSettings,
    )
    from safesteer_edge.guard.risk import (
        RefusalReason,
    )
    from safesteer_edge.probe.probe import OnnxProbe as Probe
    from safesteer_edge.session.async_session import (
        AsyncSession,
        open_async_session,
    )
    from safesteer_edge.session.choice import (
        ModelChoice,
        choose_model,
    )
    from safesteer_edge.session.isolated_session import (
        IsolatedSession,
        open_isolated_session,
    )
    from safesteer_edge.session.protocol import (
        Answer,
        AskOptions,
        ChatMessage,
        ChatSession,
        Document,
        SessionInfo,
        TurnSettings,
    )
    from safesteer_edge.session.session import (
        Session,
        open_session,
    )
    from safesteer_edge.session.settings import (
        SessionSettings,
    )
    from safesteer_edge.session.token_guard import (
        TokenGuard,
    )

__all__ = [
    "Answer",
    "AnswerPart",
    "AskOptions",
    "AsyncSession",
    "BundleChangedError",
    "BundleError",
    "CacheError",
    "Candidate",
    "ChatFileError",
    "ChatMessage",
    "ChatSession",
    "ChatStore",
    "ChatStoreError",
    "Document",
    "DownloadError",
    "EngineDiedError",
    "EngineError",
    "Event",
    "FinishReason",
    "GuardBundle",
    "GuardError",
    "GuardMode",
    "GuardPolicy",
    "GuardSummary",
    "HubError",
    "InputError",
    "IsolatedSession",
    "MediaError",
    "MediaPrepared",
    "ModelChoice",
    "ModelFileError",
    "NoBundleError",
    "PrefillDone",
    "Probe",
    "ProbeFileError",
    "ProbeShapeError",
    "PromptTooLongError",
    "RecordedChat",
    "RefusalReason",
    "Refused",
    "RequestDataError",
    "RerankName",
    "SafeSteerError",
    "SamplingSettings",
    "Session",
    "SessionInfo",
    "SessionSettings",
    "SettingsError",
    "Step",
    "TemplateError",
    "TextDelta",
    "Timings",
    "TokenGuard",
    "TurnEnded",
    "TurnSettings",
    "TurnsLeftOut",
    "Usage",
    "VectorFileError",
    "__version__",
    "calibrate",
    "choose_model",
    "convert_probe",
    "convert_vector",
    "evaluate",
    "event_from_json",
    "event_to_json",
    "open_async_session",
    "open_isolated_session",
    "open_session",
]

_NAMES = {
    "bundle.bundle": "GuardBundle",
    "chats.chat_store": "ChatStore",
    "chats.recorded_chat": "RecordedChat",
    "errors": (
        "BundleChangedError BundleError CacheError ChatFileError "
        "ChatStoreError DownloadError EngineDiedError EngineError "
        "GuardError HubError InputError MediaError ModelFileError "
        "NoBundleError ProbeFileError ProbeShapeError PromptTooLongError "
        "RequestDataError SafeSteerError SettingsError TemplateError "
        "VectorFileError"
    ),
    "guard.events": (
        "AnswerPart Candidate Event FinishReason GuardSummary "
        "MediaPrepared PrefillDone Refused Step TextDelta Timings "
        "TurnEnded TurnsLeftOut Usage event_from_json event_to_json"
    ),
    "guard.policy": "GuardMode GuardPolicy RerankName SamplingSettings",
    "guard.risk": "RefusalReason",
    "session.async_session": "AsyncSession open_async_session",
    "session.choice": "ModelChoice choose_model",
    "session.isolated_session": "IsolatedSession open_isolated_session",
    "session.protocol": (
        "Answer AskOptions ChatMessage ChatSession Document SessionInfo TurnSettings"
    ),
    "session.session": "Session open_session",
    "session.settings": "SessionSettings",
    "session.token_guard": "TokenGuard",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
StrPath = str | os.PathLike[str]


def calibrate(
    model: StrPath,
    folder: StrPath,
    *,
    mmproj: StrPath | None = None,
    requests: StrPath | None = None,
    name: str | None = None,
    false_alarms: float | None = None,
    effort: Literal["quick", "standard", "thorough"] = "quick",
    progress: Callable[[str, int, int], None] = lambda *_: None,
    **settings: Any,
) -> Path:
    """Make a guard bundle for a model, in a folder; returns the folder. Minutes to hours.

    model: a catalogue name or a .gguf file. requests: a .jsonl file; None: the package's own.
    false_alarms: share of ordinary answers that the guard may act on; None: 0.01. effort: how much
    is read and tried: minutes, about an hour, hours; what one has read a later one goes on with.
    progress: told what is done, how much of it, and of how much. settings: n_ctx, n_gpu_layers …
    Given again, it goes on where it was stopped. Raises InputError for what cannot work before it
    begins, SafeSteerError.
    """
    from safesteer_edge.bundle.writer import check_replaceable
    from safesteer_edge.calibration.make_bundle import make_bundle
    from safesteer_edge.calibration.settings import (
        check_media,
        check_requests,
        default_settings,
        targets_for,
        with_pictures,
    )
    from safesteer_edge.requests.requests import load_requests, read_requests
    from safesteer_edge.session.protocol import make_settings

    session = make_settings(model, {**settings, "mmproj": mmproj, "guard": "off"})
    targets = targets_for(false_alarms)
    chosen = default_settings(session, name=name, targets=targets, effort=effort)
    source = load_requests() if requests is None else read_requests(Path(requests))
    learned = tuple(request for request in source if request.split != "test")
    check_requests(learned, "the requests", chosen.targets)
    check_media(session, learned, hears=False)
    check_replaceable(Path(folder))
    if chosen.harvest.plan.draws:
        learned = with_pictures(session, learned)
    return make_bundle(Path(folder), chosen, learned, progress)


def convert_probe(
    source: StrPath,
    output: StrPath,
    *,
    layers: Sequence[int] = (),
    model: StrPath | None = None,
    check_states: StrPath | None = None,
    harmful_class: int | None = None,
    **source_options: Any,
) -> ConversionReport:
    """Write a probe made elsewhere as probe.onnx, and compare the two; returns the report.

    layers: whose states it takes, 0 is the first block's output. model: the .gguf that it is for.
    check_states: an .npz of `states` and `labels` (1: harmful). harmful_class: 0 or 1, where the
    source does not say. source_options: fields of `formats.probe_onnx.SourceOptions`.
    Raises InputError where the source cannot be read or more must be said, ProbeFileError.
    """
    from safesteer_edge.converters import probe_conversion
    from safesteer_edge.formats.probe_onnx import SourceOptions

    settings = probe_conversion.ConversionSettings(
        output=Path(output),
        layers=tuple(layers),
        model=Path(model) if model is not None else None,
        check_states=Path(check_states) if check_states is not None else None,
        harmful_class=harmful_class,
    )
    options = SourceOptions(**source_options)
    return probe_conversion.convert_probe(Path(source), settings, options)


def convert_vector(
    sources: StrPath | Sequence[StrPath],
    output: StrPath,
    *,
    layer_base: LayerBase | None = None,
    layers: tuple[int, int] | None = None,
    scale: float = 1.0,
    model: StrPath | None = None,
) -> ControlVector:
    """Write steering directions as a control vector (.gguf), or one of those as .npz; returns it.

    sources: added up. layer_base: what they call the first block's output. layers: the first and
    last block to keep. model: the .gguf that it is for. Raises InputError, VectorFileError.
    """
    from safesteer_edge.converters import vector_conversion, vector_export
    from safesteer_edge.formats.model_file import check_language_model

    files = [sources] if isinstance(sources, str | os.PathLike) else sources
    request = vector_conversion.VectorRequest(
        sources=tuple(map(Path, files)),
        layer_base=layer_base,
        layers=layers,
        scale=scale,
        model=check_language_model(Path(model)) if model is not None else None,
    )
    vector = vector_conversion.convert_vector(request).vector
    vector_export.export_vector(Path(output), vector)
    return vector


def evaluate(
    model: StrPath | None,
    folder: StrPath,
    *,
    suites: Sequence[str] = ("quick",),
    defences: Sequence[str] = (),
    judges: Sequence[str] = ("rules",),
    limit: int | None = None,
    narrate: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> dict[str, Any]:
    """Compare a model with its guard and without, in a folder; returns what report.json says.

    limit: requests of each suite at most. settings: as of `open_session`. Minutes to hours; given
    again, it goes on where it was stopped. Raises InputError for what cannot be used, EngineError.
    """
    from safesteer_edge.evaluation.plan import EvalSettings, SuiteChoice
    from safesteer_edge.evaluation.report_pages import write_reports
    from safesteer_edge.evaluation.run import run_evaluation
    from safesteer_edge.session.protocol import make_settings

    usual = {"temperature": 0.0, "max_tokens": 48}
    chosen = EvalSettings(
        session=make_settings(model, {**usual, **settings}),
        folder=Path(folder),
        suites=tuple(map(SuiteChoice, suites)),
        defences=tuple(defences),
        judges=tuple(judges),
        limit=limit,
    )
    run_evaluation(chosen, narrate=narrate)
    return write_reports(Path(folder))


def __getattr__(name: str) -> object:
    if name == "Probe":
        return import_module("safesteer_edge.probe.probe").OnnxProbe
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"safesteer_edge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
