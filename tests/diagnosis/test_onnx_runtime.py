"""ONNX Runtime: a listed provider is not a working one."""

from __future__ import annotations

from dataclasses import replace

from safesteer_edge.diagnosis.check import Check
from safesteer_edge.diagnosis.child_process import ChildFailure
from safesteer_edge.diagnosis.facts import DriverFacts, OnnxRuntimeFacts
from safesteer_edge.diagnosis.onnx_runtime import check_onnxruntime
from tests.diagnosis.sample_facts import H100, NO_DRIVER, ONNXRUNTIME


def check_of(
    facts: OnnxRuntimeFacts | ChildFailure, driver: DriverFacts | ChildFailure = H100
) -> Check:
    (check,) = check_onnxruntime(facts, driver)
    return check


def test_cuda_whose_libraries_load_is_ok():
    assert check_of(ONNXRUNTIME).status == "ok"


def test_listed_cuda_is_no_worry_without_a_gpu():
    missing = replace(ONNXRUNTIME, missing_for_cuda=("the NVIDIA driver (libcuda.so.1)",))
    check = check_of(missing, NO_DRIVER)
    assert check.status == "ok"
    assert "lists CUDA, CPU" in check.finding
    assert check_of(missing, ChildFailure("crash", "it died")).status == "ok"


def test_cuda_libraries_that_are_missing_beside_a_gpu_are_a_warning():
    check = check_of(replace(ONNXRUNTIME, missing_for_cuda=("libcudnn.so.9", "libcublas.so.13")))
    assert check.status == "warn"
    assert "libcudnn.so.9, libcublas.so.13 cannot be loaded" in check.finding
    assert "[cuda,cudnn]" in str(check.remedy)


def test_a_build_without_cuda_beside_a_gpu_is_a_warning():
    check = check_of(replace(ONNXRUNTIME, providers=("CPUExecutionProvider",)))
    assert check.status == "warn"
    assert "onnxruntime-gpu[cuda,cudnn]" in str(check.remedy)
    assert "uninstall" in str(check.remedy)


def test_an_onnxruntime_that_does_not_import_fails():
    check = check_of(ChildFailure("missing module", "ModuleNotFoundError: 'onnxruntime'"))
    assert check.status == "fail"
    assert " -m pip install " in str(check.remedy)
