"""The default model, its guard bundle and one token: each branch from what a child reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safesteer_edge.doctor import diagnose as examined
from safesteer_edge.doctor.check import Check
from safesteer_edge.doctor.children import ChildFailure, TokenFacts
from safesteer_edge.doctor.diagnose import check_bundle, check_default_model, check_first_token
from safesteer_edge.library import catalogue
from safesteer_edge.library.catalogue import CatalogueModel, load_catalogue
from tests.doctor.sample_facts import BUNDLE, TOKEN
from tests.tiny_models import write_tiny_llama


@pytest.fixture
def use_default(monkeypatch: pytest.MonkeyPatch):
    """Let the catalogue's default have other paths."""

    def use(*, path: Path | None = None, bundle: Path | None = None) -> CatalogueModel:
        entry = replace(load_catalogue()[0], path=path, bundle=bundle)
        monkeypatch.setattr(catalogue, "load_catalogue", lambda: (entry,))
        return entry

    return use


def model_check() -> Check:
    (check,) = check_default_model()
    return check


def token_check(token: TokenFacts | ChildFailure) -> Check:
    (check,) = check_first_token(token)
    return check


# -- the file ------------------------------------------------------------------------------------


def test_an_installed_model_is_described(tmp_path: Path, use_default):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    use_default(path=path)
    check = model_check()
    assert check.status == "ok"
    assert repr(str(path)) in check.finding
    assert "F32" in check.finding or "F16" in check.finding


def test_a_model_that_is_not_installed_fails_with_the_command(use_default):
    entry = use_default()
    check = model_check()
    assert check.status == "fail"
    assert str(check.remedy).endswith(f"-m pip install {entry.install}")


def test_a_damaged_model_is_installed_again(tmp_path: Path, use_default):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:1000])
    entry = use_default(path=path)
    check = model_check()
    assert check.status == "fail"
    assert "tiny.gguf" in check.finding
    assert "--force-reinstall" in str(check.remedy)
    assert entry.install in str(check.remedy)


# -- the guard bundle ----------------------------------------------------------------------------


def test_a_bundle_that_fits_is_ok_and_says_where_the_probe_runs():
    bundle, provider = check_bundle(BUNDLE)
    assert bundle.status == provider.status == "ok"
    assert "match exact" in bundle.finding
    assert "self-test of the probe passed" in bundle.finding
    assert provider.finding == "CPU, really used: 0.012 ms per state"


def test_a_bundle_of_another_quantization_is_a_warning():
    warning = "was calibrated on Q8_0; run 'safesteer-edge calibrate m.gguf'"
    facts = replace(BUNDLE, match="other_quantization", warnings=(warning,))
    bundle, _ = check_bundle(facts)
    assert bundle.status == "warn"
    assert "match other_quantization" in bundle.finding
    assert bundle.remedy == warning


def test_a_missing_bundle_fails_with_the_command_that_brings_it_back(tmp_path: Path, use_default):
    use_default(path=tmp_path / "m.gguf")
    bundle, provider = check_bundle(ChildFailure("error", "no bundle; do it", is_ours=True))
    assert bundle.status == "fail"
    assert "checkout -- models" in str(bundle.remedy)
    assert provider.status == "warn"


def test_in_an_installation_a_missing_bundle_means_reinstalling(
    tmp_path: Path, use_default, monkeypatch: pytest.MonkeyPatch
):
    use_default(path=tmp_path / "m.gguf")
    monkeypatch.setattr(examined, "models_folder", lambda: tmp_path / "safesteer_edge" / "models")
    bundle, _ = check_bundle(ChildFailure("error", "no bundle; do it", is_ours=True))
    assert "--force-reinstall" in str(bundle.remedy)
    assert "safesteer-edge" in str(bundle.remedy)


@pytest.mark.parametrize(
    ("failure", "finding", "remedy"),
    [
        (ChildFailure("error", "it is damaged; get it again", True), "it is damaged", "checkout"),
        (ChildFailure("missing module", "no 'numpy'"), "numpy", "packages"),
        (ChildFailure("crash", "the process ended with SIGSEGV"), "SIGSEGV", "--verbose ask"),
    ],
)
def test_a_bundle_that_does_not_load_fails(
    tmp_path: Path, use_default, failure: ChildFailure, finding: str, remedy: str
):
    use_default(path=tmp_path / "m.gguf", bundle=tmp_path)
    bundle, _ = check_bundle(failure)
    assert bundle.status == "fail"
    assert finding in bundle.finding
    assert remedy in str(bundle.remedy)


# -- one token -----------------------------------------------------------------------------------


def test_a_token_is_described():
    check = token_check(TOKEN)
    assert check.status == "ok"
    assert check.finding == (
        "loaded in 0.20 s, self-test on the engine passed (3 prompts), route layer_input, probe "
        "on CPU, all layers on the CPU, 'Hello' answered with 'Hello' in 0.10 s, at most 300 MiB"
    )


def test_layers_on_the_gpu_are_counted():
    assert "31/31 layers on the GPU" in token_check(replace(TOKEN, offloaded="31/31")).finding


def test_a_bundle_without_an_engine_self_test_does_not_pass_one():
    finding = token_check(replace(TOKEN, n_engine_canaries=0)).finding
    assert "no self-test" in finding
    assert "passed" not in finding


def test_a_guard_that_fails_is_a_failure():
    facts = replace(TOKEN, token="", refusal="a score is not finite", guard_failed=True)
    check = token_check(facts)
    assert check.status == "fail"
    assert "a score is not finite" in check.finding


def test_a_greeting_that_is_refused_is_a_warning():
    check = token_check(replace(TOKEN, token="", refusal="the risk is too high"))
    assert check.status == "warn"
    assert "refused, because the risk is too high" in check.finding


def test_without_a_bundle_the_remedy_is_never_to_leave_the_guard_off(use_default):
    use_default()
    message = "no guard bundle is known; run it without a guard by name: --guard off"
    check = token_check(ChildFailure("error", message, is_ours=True))
    assert (check.status, check.remedy) == ("fail", "see 'guard bundle' above")


def test_a_bundle_error_while_opening_is_a_failure_with_its_own_remedy(tmp_path: Path, use_default):
    use_default(bundle=tmp_path)
    check = token_check(ChildFailure("error", "self-test is off; calibrate", is_ours=True))
    assert (check.status, check.finding, check.remedy) == ("fail", "self-test is off", "calibrate")


def test_an_illegal_instruction_in_a_kernel_is_a_build_for_another_cpu(tmp_path: Path, use_default):
    use_default(bundle=tmp_path)
    check = token_check(ChildFailure("illegal instruction", "the process ended with SIGILL"))
    assert check.status == "fail"
    assert "-DGGML_NATIVE=on" in str(check.remedy)


def test_a_crash_is_a_failure(tmp_path: Path, use_default):
    use_default(bundle=tmp_path)
    check = token_check(ChildFailure("crash", "the process ended with SIGSEGV"))
    assert check.status == "fail"
    assert "--verbose ask" in str(check.remedy)
