"""Versions against what our metadata asks for, read from metadata on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safesteer_edge import __version__
from safesteer_edge.doctor.check import Check
from safesteer_edge.doctor.packages import (
    ONNX_PACKAGE,
    check_onnxruntime_packages,
    check_packages,
    check_picture_words,
    onnx_requirement,
    repair_command,
)
from tests.doctor.dist_info import write_dist_info

REQUIRES = (
    "llama-cpp-python==0.3.36",
    "numpy>=1.26,<3",
    'onnxruntime-gpu>=1.20; sys_platform != "darwin"',
    "pillow>=12.2",
    'scikit-learn>=1.5; extra == "calibration"',
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that packages are looked up in; it holds our own metadata."""
    write_dist_info(tmp_path, "safesteer-edge", __version__, requires=REQUIRES)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def check_of(package: str) -> Check:
    return next(check for check in check_packages() if check.name == package)


def test_this_installation_is_as_its_metadata_asks():
    assert [check.name for check in check_packages() if check.status == "fail"] == []


def test_the_pinned_version_is_ok(site: Path):
    write_dist_info(site, "llama-cpp-python", "0.3.36")
    check = check_of("llama-cpp-python")
    assert (check.status, check.finding) == ("ok", "0.3.36, as pinned")


def test_another_version_than_the_pinned_one_fails(site: Path):
    write_dist_info(site, "llama-cpp-python", "0.3.37")
    check = check_of("llama-cpp-python")
    assert check.status == "fail"
    assert check.finding == "0.3.37; ==0.3.36 is needed"
    assert str(check.remedy).endswith("-m pip install llama-cpp-python==0.3.36")


@pytest.mark.parametrize(
    ("version", "status"), [("1.26.0", "ok"), ("2.4.6", "ok"), ("1.9", "fail"), ("1.25.9", "fail")]
)
def test_versions_compare_as_numbers(site: Path, version: str, status: str):
    write_dist_info(site, "numpy", version)
    assert check_of("numpy").status == status


def test_a_missing_package_fails_with_the_command_that_installs_it(site: Path):
    check = check_of("pillow")
    assert (check.status, check.finding) == ("fail", "not installed")
    assert str(check.remedy).endswith('-m pip install "pillow>=12.2"')


def test_broken_metadata_of_one_package_leaves_the_others_alone(site: Path):
    write_dist_info(site, "numpy", "2.0.0")
    write_dist_info(site, "pillow", "12.2.0")
    metadata = site / "numpy-2.0.0.dist-info" / "METADATA"
    metadata.write_text("Name: numpy\n")
    assert check_of("numpy").status == "fail"
    assert check_of("pillow").status == "ok"


def test_metadata_of_an_older_installation_of_ours_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_dist_info(tmp_path, "safesteer-edge", "0.0.1")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    check = check_of("safesteer-edge")
    assert check.status == "warn"
    assert "0.0.1" in check.finding


def test_without_our_own_metadata_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_dist_info(tmp_path, "numpy", "2.0.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert check_of("safesteer-edge").status == "warn"
    assert check_of("numpy").status == "ok"


def test_one_onnxruntime_is_ok(site: Path):
    write_dist_info(site, ONNX_PACKAGE, "1.31.1")
    (check,) = check_onnxruntime_packages()
    assert check.status == "ok"


def test_onnxruntime_beside_onnxruntime_gpu_is_a_warning_that_removes_both(site: Path):
    write_dist_info(site, "onnxruntime", "1.31.1")
    write_dist_info(site, "onnxruntime-gpu", "1.31.1")
    (check,) = check_onnxruntime_packages()
    assert check.status == "warn"
    remove, _, install = str(check.remedy).partition(" && ")
    assert remove.endswith("-m pip uninstall -y onnxruntime onnxruntime-gpu")
    assert install.endswith(f"-m pip install {ONNX_PACKAGE}==1.31.1")


def test_reading_pictures_is_an_extra(site: Path):
    (check,) = check_picture_words()
    assert check.status == "warn"
    assert str(check.remedy).endswith("-m pip install rapidocr")
    write_dist_info(site, "rapidocr", "3.10.0")
    (check,) = check_picture_words()
    assert check.status == "ok"


def test_extras_come_at_the_installed_version(site: Path):
    write_dist_info(site, ONNX_PACKAGE, "1.31.1")
    assert onnx_requirement("[cuda,cudnn]") == f"{ONNX_PACKAGE}[cuda,cudnn]==1.31.1"


def test_a_damaged_package_is_put_back_as_it_is_pinned(site: Path):
    assert repair_command("llama-cpp-python").endswith("install llama-cpp-python==0.3.36")
    write_dist_info(site, "llama-cpp-python", "0.3.1")
    command = repair_command("llama-cpp-python")
    assert "--force-reinstall --no-deps" in command
    assert command.endswith("llama-cpp-python==0.3.36")
