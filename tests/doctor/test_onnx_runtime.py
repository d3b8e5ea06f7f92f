"""ONNX Runtime: a listed provider is not a working one."""

from __future__ import annotations

from dataclasses import replace

from safesteer_edge.doctor.check import Check
from safesteer_edge.doctor.children import ChildFailure, DriverFacts, OnnxRuntimeFacts
from safesteer_edge.doctor.runtimes import check_nothing_phones_home, check_onnxruntime
from tests.doctor.sample_facts import H100, NO_DRIVER, ONNXRUNTIME


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


def test_an_import_that_leaves_nothing_phones_nobody():
    (check,) = check_nothing_phones_home(ONNXRUNTIME)
    assert check.status == "ok"
    assert check.finding.startswith("checked: ONNX Runtime 1.31.1")
    assert check.finding.endswith("wrote no file and opened no socket")
    (elsewhere,) = check_nothing_phones_home(replace(ONNXRUNTIME, n_sockets=None))
    assert elsewhere.finding.endswith("wrote no file")


def test_files_or_sockets_of_the_import_are_a_warning():
    left = replace(ONNXRUNTIME, files_written=(".cache/Microsoft/deviceid",), n_sockets=2)
    (check,) = check_nothing_phones_home(left)
    assert check.status == "warn"
    assert "left .cache/Microsoft/deviceid, a socket," in check.finding
    assert "<1.29" in str(check.remedy)


def test_what_cannot_be_imported_is_not_called_checked():
    (check,) = check_nothing_phones_home(ChildFailure("crash", "it died"))
    assert (check.status, check.finding) == (
        "warn",
        "not checked: ONNX Runtime does not import",
    )
