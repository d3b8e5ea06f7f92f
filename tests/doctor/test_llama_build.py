"""llama.cpp's build against the machine's CPU and GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from safesteer_edge.doctor import runtimes
from safesteer_edge.doctor.check import Check
from safesteer_edge.doctor.children import ChildFailure, DriverFacts, LlamaFacts
from safesteer_edge.doctor.runtimes import (
    check_callback,
    check_llama,
    check_llama_gpu,
    check_processor,
)
from tests.doctor.sample_facts import H100, LLAMA, NO_DRIVER

DEAD = ChildFailure("illegal instruction", "the process ended with SIGILL")


def gpu(
    llama: LlamaFacts | ChildFailure,
    driver: DriverFacts | ChildFailure,
    *,
    has_nvidia_device: bool = False,
) -> Check:
    (check,) = check_llama_gpu(llama, driver, has_nvidia_device=has_nvidia_device)
    return check


def processor(llama: LlamaFacts | ChildFailure, **files: Path) -> dict[str, Check]:
    return {check.name: check for check in check_processor(llama, **files)}


def test_a_build_that_starts_is_ok():
    (check,) = check_llama(LLAMA)
    assert check.status == "ok"


def test_an_illegal_instruction_is_a_build_for_another_cpu():
    (check,) = check_llama(DEAD)
    assert check.status == "fail"
    assert "another CPU" in check.finding
    assert "-DGGML_NATIVE=on" in str(check.remedy)


def test_a_missing_llama_cpp_is_installed_at_the_pinned_version():
    missing = ChildFailure("missing module", "ModuleNotFoundError: No module named 'llama_cpp'")
    (check,) = check_llama(missing)
    assert check.status == "fail"
    assert "llama-cpp-python==" in str(check.remedy)


def test_a_callback_that_was_not_built_is_a_warning_with_the_line_that_builds_it():
    assert [check.status for check in check_callback(LLAMA)] == ["ok"]
    (check,) = check_callback(replace(LLAMA, has_c_callback=False))
    assert check.status == "warn"
    assert "compiler" in str(check.remedy)
    assert "-e ." in str(check.remedy)
    assert check_callback(DEAD)[0].status == "warn"


# -- CPU -----------------------------------------------------------------------------------------


def test_features_are_those_of_the_cpu_backend_that_are_on():
    other = f"CUDA : ARCHS = 890 | {LLAMA.system_info} RPC : X = 1 |"
    for facts in (LLAMA, replace(LLAMA, system_info=other)):
        assert facts.cpu_features == ("SSE3", "AVX2", "SVE_CNT=16", "REPACK")
    assert replace(LLAMA, system_info=other).is_built_with_cuda
    assert not LLAMA.is_built_with_cuda


def test_a_build_that_leaves_avx2_unused_is_a_warning(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx avx2 fma\n")
    basic = replace(LLAMA, system_info="CPU : SSE3 = 1 |")
    assert processor(LLAMA, cpuinfo=cpuinfo)["cpu features"].status == "ok"
    check = processor(basic, cpuinfo=cpuinfo)["cpu features"]
    assert check.status == "warn"
    assert "-DGGML_NATIVE=on" in str(check.remedy)


def test_features_are_fine_where_the_cpu_does_not_list_its_own(tmp_path: Path):
    basic = replace(LLAMA, system_info="CPU : NEON = 1 |")
    check = processor(basic, cpuinfo=tmp_path / "missing")["cpu features"]
    assert (check.status, check.finding) == ("ok", "NEON")


@pytest.mark.parametrize(
    ("text", "status"),
    [("max 100000", "ok"), ("50000 100000", "warn"), ("9900000 100000", "ok"), ("?", "ok")],
)
def test_a_control_group_that_allows_less_than_the_cores_is_a_warning(
    tmp_path: Path, text: str, status: str
):
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    check = processor(LLAMA, cpu_quota=quota)["cpu cores"]
    assert check.status == status
    if status == "warn":
        assert check.remedy == "pass --threads 1"


def test_amx_is_reported_with_what_was_done_about_it():
    amx = replace(LLAMA, has_amx=True, avoids_extra_buffer_types=True)
    check = processor(amx)["amx"]
    assert check.status == "ok"
    assert "extra buffer types are off" in check.finding


def test_amx_that_is_not_avoided_fails():
    check = processor(replace(LLAMA, has_amx=True))["amx"]
    assert check.status == "fail"
    assert "-DGGML_AMX=off" in str(check.remedy)


def test_cores_are_counted_even_if_llama_cpp_does_not_start():
    checks = processor(DEAD)
    assert checks["cpu cores"].status == "ok"
    assert checks["cpu features"].status == "warn"


# -- GPU -----------------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_is_fine():
    assert gpu(LLAMA, NO_DRIVER).status == "ok"


def test_a_driver_library_without_a_gpu_is_fine():
    assert gpu(LLAMA, DriverFacts(True, None, "13.0", ())).status == "ok"


def test_a_build_that_can_offload_is_ok():
    check = gpu(replace(LLAMA, supports_gpu_offload=True), H100)
    assert check.status == "ok"
    assert "NVIDIA H100" in check.finding


def test_a_gpu_that_the_build_cannot_use_is_a_warning_with_the_line_that_builds_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: f"/usr/bin/{name}")
    check = gpu(LLAMA, H100)
    assert check.status == "warn"
    assert "CUDA 13.0" in check.finding
    remedy = str(check.remedy)
    assert " -m pip install " in remedy
    assert "cmake.args=-DGGML_CUDA=on" in remedy
    assert "llama-cpp-python==" in remedy


def test_a_compiler_that_is_not_on_path_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiler = tmp_path / "nvcc"
    compiler.touch()
    monkeypatch.setattr(runtimes, "_CUDA_COMPILER", compiler)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert f"-DCMAKE_CUDA_COMPILER={compiler}" in str(gpu(LLAMA, H100).remedy)
    compiler.unlink()
    assert "install the CUDA toolkit" in str(gpu(LLAMA, H100).remedy)


def test_a_cuda_build_that_sees_no_device_says_so():
    built = replace(LLAMA, system_info=f"CUDA : ARCHS = 890 | {LLAMA.system_info}")
    check = gpu(built, H100)
    assert check.status == "warn"
    assert "sees no device" in check.finding


@pytest.mark.parametrize(
    ("driver", "has_device", "words"),
    [
        (NO_DRIVER, True, "no driver that reaches it"),
        (DriverFacts(True, "cuInit returns CUDA error 999", "13.0", ()), False, "999"),
        (ChildFailure("time limit", "no answer within 60 s"), False, "no answer"),
    ],
)
def test_a_driver_that_does_not_work_is_a_warning(driver, has_device: bool, words: str):
    check = gpu(LLAMA, driver, has_nvidia_device=has_device)
    assert check.status == "warn"
    assert words in check.finding


def test_the_gpu_is_unknown_if_llama_cpp_does_not_start():
    assert gpu(DEAD, H100).status == "warn"
