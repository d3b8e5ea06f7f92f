"""Opening a model with its projector, template and guard; closing them in the right order.

Every file is checked by pure Python before native code sees it. Whatever was opened is closed
again if a later step fails.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import (
    GuardBundle,
    check_engine_canaries,
    load_bundle,
    read_config,
)
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.engine.context import DEFAULT_N_BATCH, ContextSettings, NativeContext
from safesteer_edge.engine.hidden_states import EvalCallbackRoute, HiddenStateRoute, choose_route
from safesteer_edge.engine.llama_engine import LlamaEngine
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.native import gpu_memory
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import BundleError, NoBundleError, SettingsError, TemplateError
from safesteer_edge.formats.gguf_header import GGML_TYPE_OF_KV, KvType
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.guard.policy import MAX_OPENINGS, MAX_TOP_K, SamplingSettings
from safesteer_edge.library.catalogue import load_catalogue
from safesteer_edge.library.memory_need import MemorySettings
from safesteer_edge.library.memory_plan import Machine, MemoryPlan, free_memory, in_mib, plan_memory
from safesteer_edge.media.decoder import MediaDecoder
from safesteer_edge.media.image_decoding import ImageFit
from safesteer_edge.media.picture_words import PictureReader, picture_reader
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.session.answer_form import ToolFormat, tool_format
from safesteer_edge.session.choice import ModelChoice, ModelFiles, no_bundle_text, read_model_files
from safesteer_edge.session.settings import BUILTIN_TEMPLATE_PREFIX, DEFAULT_N_CTX, SessionSettings
from safesteer_edge.templates.builtin_templates import builtin_template, default_builtin_name
from safesteer_edge.templates.reasoning import reasoning_style, thinking_variables
from safesteer_edge.templates.template import ChatTemplate

# -- the memory that a session would take on this machine, planned before anything is loaded -------


def this_machine() -> Machine:
    """What is free here, now: memory, and that of the GPUs."""
    free_bytes, what = free_memory()
    return Machine(free_bytes, what, gpu_memory())


def plan_for(settings: SessionSettings) -> MemoryPlan:
    """What `open_runtime` would load where, guarded where the settings say so. Loads nothing.

    Raises ModelFileError, SettingsError; the latter if it does not fit.
    """
    return plan_session(settings, read_model_files(settings), has_guard=settings.guard != "off")


def plan_session(settings: SessionSettings, files: ModelFiles, *, has_guard: bool) -> MemoryPlan:
    """The plan for a model whose files were checked. Raises SettingsError if it does not fit."""
    return plan_memory(
        files.shape,
        MemorySettings(
            n_ctx=min(settings.n_ctx or DEFAULT_N_CTX, files.info.n_ctx_train),
            kv_type=settings.kv_type,
            n_sequences=1 + (settings.sampling.top_k + MAX_OPENINGS if has_guard else 1),
            has_guard=has_guard,
        ),
        this_machine(),
        projector_bytes=files.mmproj.stat().st_size if files.mmproj is not None else 0,
        n_gpu_layers=settings.n_gpu_layers,
    )


@dataclass(slots=True)
class Runtime:
    """Everything that a session decodes with. `close()` frees it all, in reverse order.

    fixed_vector: float32 (n_layer, n_embd), a control vector that is on in every turn in place of
    the bundle's, fixed_vector_steers_prompt: on the whole prompt as well: for comparisons.
    picture_reader: for the guard; None without one, without eyes, or where it is not installed.
    """

    choice: ModelChoice
    info: ModelInfo
    model: NativeModel
    projector: Projector | None
    media_decoder: MediaDecoder
    mmproj: Path | None
    template: ChatTemplate
    engine: LlamaEngine
    context: NativeContext
    bundle: GuardBundle | None
    route: HiddenStateRoute | None
    plan: MemoryPlan
    warnings: tuple[str, ...]
    load_s: float
    _undo: ExitStack
    picture_reader: PictureReader | None = None
    fixed_vector: NDArray[np.float32] | None = None
    fixed_vector_steers_prompt: bool = False

    @property
    def tool_format(self) -> ToolFormat | None:
        """How the model calls tools; None: it does not, or in a form of its own."""
        return tool_format(self.template.source)

    @property
    def max_top_k(self) -> int:
        """Candidates that a guarded step may have, openings aside."""
        return self.context.n_candidates - MAX_OPENINGS if self.bundle is not None else MAX_TOP_K

    def check_open(self) -> None:
        """Raise EngineError after `close()`, before anything is started again for nothing."""
        _ = self.model.handle

    def close(self) -> None:
        """Free everything. Idempotent."""
        self._undo.close()


def open_runtime(
    settings: SessionSettings,
    *,
    layers: Sequence[int] | None = None,
    files: ModelFiles | None = None,
) -> Runtime:
    """Check and load all that the settings name. Takes 0.4 s for the embedded default.

    layers: hidden states to read, in this order, instead of those that the bundle's probe needs.
    files: those that the settings name, if they have been read.
    Raises ModelFileError, BundleError, TemplateError, SettingsError, EngineError.
    """
    started_s = time.perf_counter()
    # 1. Files, checked in pure Python.
    files = files or read_model_files(settings)
    choice, info, mmproj = files.choice, files.info, files.mmproj
    fit = ImageFit(files.projector.square_side) if files.projector else ImageFit()
    with ExitStack() as undo:
        # 2. The guard before the model: a bundle that does not fit is found at once.
        bundle = _open_bundle(settings, choice, info)
        if bundle is not None:
            undo.callback(bundle.close)
        plan = plan_session(settings, files, has_guard=bundle is not None)
        # 3. Native objects, each owned as soon as it is there.
        model = undo.enter_context(NativeModel(choice.path, n_gpu_layers=plan.n_gpu_layers))
        template = undo.enter_context(_open_template(settings, info, model))
        template.start()  # its process starts while the rest loads
        n_threads = settings.n_threads or n_usable_cores()
        projector = None
        if mmproj is not None:
            projector = Projector(mmproj, model, n_threads=n_threads)
            undo.callback(projector.close)
        media_decoder = undo.enter_context(MediaDecoder(fit))  # starts no process yet
        route = _open_route(bundle, info, layers)
        # No picture that cannot be cut may be larger than a batch.
        largest = projector.largest_indivisible_chunk(fit.extreme_sizes()) if projector else 0
        n_batch = max(DEFAULT_N_BATCH, largest)
        context = _open_context(model, route, plan.settings, n_threads=n_threads, n_batch=n_batch)
        undo.callback(context.close)
        engine = LlamaEngine(
            context, route, projector=projector, spoken=_spoken_tokens(template, model)
        )
        # 4. The guard's self-test on this very engine.
        if bundle is not None:
            with _naming(bundle.folder, settings.kv_type):
                check_engine_canaries(bundle, lambda ids: last_state_of(engine, model, ids))
            # What a canary leaves would be reused, and was evaluated in another batch than without
            # a guard: from 64 tokens on llama.cpp's attention rounds otherwise (ggml-cpu/ops.cpp).
            engine.forget()
        return Runtime(
            choice=choice,
            info=info,
            model=model,
            projector=projector,
            media_decoder=media_decoder,
            mmproj=mmproj,
            template=template,
            engine=engine,
            context=context,
            bundle=bundle,
            route=route,
            plan=plan,
            warnings=_warnings(bundle, plan),
            load_s=time.perf_counter() - started_s,
            _undo=undo.pop_all(),
            picture_reader=picture_reader(n_threads=n_threads)
            if bundle is not None and projector is not None and projector.sees
            else None,
        )


def last_state_of(
    engine: LlamaEngine, model: NativeModel, token_ids: Sequence[int]
) -> NDArray[np.float32]:
    """State at the last of these tokens, read on the decode path: float32 (n_features,)."""
    sampler = SamplerChain(SamplingSettings(temperature=0, top_k=1), n_vocab=model.n_vocab)
    try:
        return engine.prefill([TokenRun(tuple(token_ids))], sampler).last_state
    finally:
        sampler.close()


def _open_bundle(
    settings: SessionSettings, choice: ModelChoice, info: ModelInfo
) -> GuardBundle | None:
    if settings.guard == "off":
        return None
    folder = settings.bundle or choice.bundle or _shipped_bundle(info)
    if folder is None:
        raise NoBundleError(no_bundle_text(choice, info, n_cores=n_usable_cores()))
    with _naming(folder):
        return load_bundle(
            folder,
            info,
            device=settings.probe_device,
            allow_negative_scale=settings.allow_negative_scale,
        )


def _shipped_bundle(info: ModelInfo) -> Path | None:
    """The catalogue's guard bundle for this very file, whatever its name and path."""
    for entry in load_catalogue():
        with contextlib.suppress(BundleError):  # one that is damaged is told where it is asked for
            if entry.bundle and read_config(entry.bundle).model == fingerprint_model(info):
                return entry.bundle
    return None


@contextmanager
def _naming(folder: Path, kv_type: KvType = "f16") -> Generator[None]:
    """Let an error say which bundle it is about, where it does not name a file of it.

    kv_type: of the cache that the states were computed with; a coarse one can spoil them.
    """
    try:
        yield
    except BundleError as error:
        if str(folder) in str(error):
            raise
        cache = f"; the cache is {kv_type}: try --kv-type f16 first" if kv_type != "f16" else ""
        raise BundleError(f"cannot use guard bundle {str(folder)!r}: {error}{cache}") from error


def _open_template(settings: SessionSettings, info: ModelInfo, model: NativeModel) -> ChatTemplate:
    source = info.chat_template
    wanted = settings.chat_template
    if wanted is not None:
        if not wanted.startswith(BUILTIN_TEMPLATE_PREFIX):
            raise SettingsError(f"chat template {wanted!r}; expected builtin:NAME")
        source = builtin_template(wanted.removeprefix(BUILTIN_TEMPLATE_PREFIX))
    elif source is None:
        source = builtin_template(default_builtin_name(model.special_tokens, model_name=info.name))
    return ChatTemplate(
        source,
        bos_token=model.token_text(model.bos_token_id),
        eos_token=model.token_text(model.eos_token_id),
        name=info.path.name,
        variables={
            **model.named_tokens,
            **_thinking_variables(source, settings, info.path.name),
        },
    )


def _thinking_variables(source: str, settings: SessionSettings, name: str) -> dict[str, bool]:
    if settings.thinking is None and settings.prefers_thinking is not None:
        with contextlib.suppress(TemplateError):  # a preference, and this template has no switch
            return thinking_variables(source, settings.prefers_thinking, name=name)
    return thinking_variables(source, settings.thinking, name=name)


def _spoken_tokens(template: ChatTemplate, model: NativeModel) -> list[int]:
    """Control tokens that the marks of the model's reasoning are made of."""
    style, calls = reasoning_style(template.source), tool_format(template.source)
    marks = style.marks if style else ()
    marks += (calls.opening, calls.closing) if calls else ()
    return [
        token_id
        for text, token_id in model.special_tokens.items()
        if any(text in mark for mark in marks)
    ]


def _open_route(
    bundle: GuardBundle | None, info: ModelInfo, layers: Sequence[int] | None
) -> HiddenStateRoute | None:
    if layers is None:
        if bundle is None:
            return None
        layers = bundle.config.probe.layers
    return choose_route(info.architecture, info.n_layer, layers)


def _open_context(
    model: NativeModel,
    route: HiddenStateRoute | None,
    planned: MemorySettings,
    *,
    n_threads: int,
    n_batch: int,
) -> NativeContext:
    settings = ContextSettings(
        n_ctx=planned.n_ctx,
        n_candidates=planned.n_sequences - 1,
        n_threads=n_threads,
        n_batch=n_batch,
        kv_type=GGML_TYPE_OF_KV[planned.kv_type],
    )
    callback = route.callback if isinstance(route, EvalCallbackRoute) else None
    return NativeContext(model, settings, eval_callback=callback)


def _warnings(bundle: GuardBundle | None, plan: MemoryPlan) -> tuple[str, ...]:
    warnings = bundle.warnings if bundle is not None else ()
    if plan.is_tight:
        warnings += (
            f"memory is tight: about {in_mib(plan.cpu_bytes)} of {in_mib(plan.machine.free_bytes)} "
            f"{plan.machine.what}; a smaller --ctx or --kv-type q8_0 takes less",
        )
    return warnings
