"""Opening a session: what does not fit together is refused before the first question."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.errors import BundleError, MediaError, ModelFileError, SettingsError
from safesteer_edge.library.catalogue import CatalogueModel
from safesteer_edge.session import choice as model_choice_module
from safesteer_edge.session import runtime as runtime_module
from safesteer_edge.session.choice import choose_model, require_projector
from safesteer_edge.session.runtime import open_runtime
from safesteer_edge.session.session import open_session
from safesteer_edge.session.settings import SessionSettings
from tests.guarded_tiny import QUIET, GuardedTiny, make_guarded_tiny
from tests.session.turns import ask, opened
from tests.tiny_models import write_tiny_llama, write_tiny_projector


def test_a_model_without_a_bundle_names_the_two_ways_on(guarded_tiny: GuardedTiny):
    with pytest.raises(BundleError, match=r"there is no guard bundle for.*--bundle.*--guard off"):
        open_session(guarded_tiny.settings(None, guard="steer"))


def test_a_bundle_of_the_same_model_with_other_weights_is_refused(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    twin = make_guarded_tiny(tmp_path, seed=5)
    bundle = twin.bundle(QUIET)
    with pytest.raises(BundleError, match=r"self-test 1 of 2 failed") as caught:
        open_session(guarded_tiny.settings(bundle))
    assert repr(str(bundle)) in str(caught.value)


def test_a_bundle_of_another_model_is_refused_by_name(guarded_tiny: GuardedTiny, tmp_path: Path):
    bundle = make_guarded_tiny(tmp_path, n_embd=96).bundle(QUIET)
    with pytest.raises(BundleError, match=r"made for another model: n_embd 96.*64") as caught:
        open_session(guarded_tiny.settings(bundle))
    assert repr(str(bundle)) in str(caught.value)


def test_a_bundle_of_another_quantization_is_used_with_a_warning(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    quantized = write_tiny_llama(tmp_path / "tiny-q8.gguf", quantization="Q8_0")
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), model=str(quantized)) as session:
        assert any("calibrated on F32" in warning for warning in session.info.warnings)
        assert ask(session, "Hello there").text


def test_layers_read_in_the_wrong_order_are_found(guarded_tiny: GuardedTiny, tmp_path: Path):
    parts = replace(guarded_tiny.parts(bias=QUIET), probe_layers=(2, 1))
    bundle = write_bundle(tmp_path / "bundle", parts)
    with pytest.raises(BundleError, match="self-test"):
        open_session(guarded_tiny.settings(bundle))


def test_a_projector_of_another_width_is_refused(guarded_tiny: GuardedTiny, tmp_path: Path):
    wide = write_tiny_projector(tmp_path / "wide.gguf", n_embd=96)
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET), mmproj=wide)
    with pytest.raises(ModelFileError, match=r"wide\.gguf.*width 96"):
        open_session(settings)


@pytest.mark.parametrize("is_template", [True, False])
def test_what_was_opened_is_closed_again_when_a_later_step_fails(
    guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch, is_template: bool
):
    def fail(*_arguments: object) -> None:
        raise SettingsError("made to fail")

    closed: list[str] = []
    for name in ("NativeModel", "NativeContext"):
        monkeypatch.setattr(runtime_module, name, _noted(getattr(runtime_module, name), closed))
    monkeypatch.setattr(
        runtime_module, "_open_template" if is_template else "check_engine_canaries", fail
    )
    before = set(threading.enumerate())
    with pytest.raises(SettingsError, match="made to fail"):
        open_session(guarded_tiny.settings(guarded_tiny.bundle(QUIET)))
    assert closed == (["NativeModel"] if is_template else ["NativeContext", "NativeModel"])
    for thread in set(threading.enumerate()) - before:  # the template's ends with its process
        thread.join(120)
        assert not thread.is_alive(), f"waited in vain for thread {thread.name!r} to end"


def _noted(original: type, closed: list[str]) -> type:
    """A class like this one that notes when it is closed."""

    class Noted(original):
        def close(self) -> None:
            closed.append(original.__name__)
            super().close()

    return Noted


def test_a_runtime_without_a_guard_reads_the_layers_it_is_asked_for(guarded_tiny: GuardedTiny):
    runtime = open_runtime(guarded_tiny.settings(None), layers=(0, 3))
    try:
        assert runtime.bundle is None
        assert runtime.route is not None
        assert runtime.route.name == "eval_callback"  # the last block's output is no layer's input
    finally:
        runtime.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"guard": "on"},
        {"rerank": "fast"},
        {"max_tokens": 0},
        {"n_ctx": 63},
        {"n_gpu_layers": -1},
        {"n_threads": 0},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(wrong: dict[str, object]):
    (name,) = wrong
    with pytest.raises(SettingsError, match=name):
        SessionSettings(**wrong)  # pyright: ignore[reportArgumentType]  # wrong on purpose


def test_a_template_by_name_is_used(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(QUIET)
    prompts = set()
    for template in (None, "builtin:chatml", "builtin:gemma"):
        with opened(guarded_tiny, bundle, chat_template=template) as session:
            prompts.add(session.prompt_token_ids("Hello there"))
    assert len(prompts) == 2  # the tiny model's own is ChatML
    with pytest.raises(SettingsError, match="builtin:NAME"):
        open_session(guarded_tiny.settings(bundle, chat_template="chatml"))


def catalogue_entry(
    path: Path | None, bundle: Path | None, mmproj: Path | None = None
) -> CatalogueModel:
    return CatalogueModel(
        name="tiny",
        title="Tiny",
        architecture="llama",
        licence="Apache-2.0",
        package="tiny_package",
        install="tiny-package",
        file="tiny.gguf",
        bundle=bundle,
        path=path,
        mmproj=mmproj,
    )


def test_a_catalogue_model_brings_its_bundle_by_name_and_by_path(
    guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    bundle = guarded_tiny.bundle(QUIET)
    entry = catalogue_entry(guarded_tiny.model, bundle)
    monkeypatch.setattr(model_choice_module, "load_catalogue", lambda: (entry,))
    monkeypatch.setattr(model_choice_module, "find_model", lambda _name: entry)
    monkeypatch.setattr(model_choice_module, "default_model", lambda: entry)
    link = tmp_path / "link.gguf"
    link.symlink_to(guarded_tiny.model)
    for chosen in (None, "tiny", str(guarded_tiny.model), str(link)):
        choice = choose_model(chosen)
        assert (choice.name, choice.bundle) == ("tiny", bundle)
    with opened(guarded_tiny, None, model="tiny", guard="steer") as session:
        assert (session.info.model_name, session.info.bundle) == ("tiny", "tiny-30")


def test_a_catalogue_model_brings_its_projector_and_another_can_be_chosen(
    guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    entry = catalogue_entry(guarded_tiny.model, None, guarded_tiny.projector)
    monkeypatch.setattr(model_choice_module, "find_model", lambda _name: entry)
    settings = guarded_tiny.settings(None, model="tiny")
    require_projector(settings, images=True, sounds=False)
    with pytest.raises(MediaError, match="cannot hear"):
        require_projector(settings, images=True, sounds=True)
    runtime = open_runtime(settings)
    assert runtime.projector is not None
    runtime.close()
    with pytest.raises(ModelFileError, match=r"missing\.gguf"):
        open_runtime(replace(settings, mmproj=tmp_path / "missing.gguf"))


def test_a_missing_projector_is_named_before_anything_is_loaded(
    guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch
):
    entry = catalogue_entry(guarded_tiny.model, None)
    monkeypatch.setattr(model_choice_module, "find_model", lambda _name: entry)
    settings = guarded_tiny.settings(None, model="tiny")
    require_projector(settings, images=False, sounds=False)
    with pytest.raises(MediaError, match=r"'tiny' cannot take images: its projector.*--mmproj"):
        require_projector(settings, images=True, sounds=False)
    with pytest.raises(MediaError, match=r"cannot take sound.*mmproj-64\.gguf lies beside it"):
        require_projector(settings, images=False, sounds=True)
    pulled = replace(entry, repository="maker/tiny-GGUF", projector="mmproj-tiny.gguf")
    monkeypatch.setattr(model_choice_module, "find_model", lambda _name: pulled)
    with pytest.raises(MediaError, match=r"'mmproj-tiny\.gguf' is missing; .*models pull tiny"):
        require_projector(settings, images=True, sounds=False)


def test_the_header_of_each_file_is_read_once(
    guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch
):
    read: list[Path] = []
    open_path = Path.open

    def noting(path: Path, *arguments: Any, **options: Any) -> Any:
        read.append(path)
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", noting)
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET), mmproj=guarded_tiny.projector)
    files = require_projector(settings, images=True, sounds=False)
    open_session(settings, files=files).close()
    assert read.count(guarded_tiny.model) == read.count(guarded_tiny.projector) == 1


def test_another_file_is_known_by_its_own_name(tmp_path: Path):
    choice = choose_model(str(tmp_path / "mine.gguf"))
    assert (choice.name, choice.bundle) == ("mine", None)
