"""Which packages are installed, against what our own package metadata asks for."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from safesteer_edge.doctor.check import Check, fail, isolated, ok, warn
from safesteer_edge.formats.version import VERSION
from safesteer_edge.processes.pip_commands import (
    LLAMA_PACKAGE,
    build_llama_command,
    install_command,
    reinstall_command,
    uninstall_command,
)

OWN_PACKAGE = "safesteer-edge"
ONNX_PACKAGE = "onnxruntime" if sys.platform == "darwin" else "onnxruntime-gpu"
# As in `media.picture_words`, which needs NumPy and Pillow: here they may be what is broken.
READER_PACKAGE = "rapidocr"
# All of these bring a module `onnxruntime`; the one that was installed last wins, file by file.
ONNX_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
)

_EXAMINED = (LLAMA_PACKAGE, "numpy", ONNX_PACKAGE, "pillow", "textual", "jinja2", "platformdirs")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*\(?(==|>=)\s*([0-9A-Za-z.+!-]+)\)?\s*(?:[;,]|$)")


@dataclass(frozen=True, slots=True)
class _Wanted:
    operator: str
    version: str

    def __str__(self) -> str:
        return f"{self.operator}{self.version}"

    def admits(self, version: str) -> bool:
        if self.operator == "==":
            return version == self.version
        return _release(version) >= _release(self.version)


def check_packages() -> list[Check]:
    """Versions of Python, of this package and of what it runs on; one check each."""
    wanted = _wanted()
    python = f"{platform.python_version()} ({platform.python_implementation()})"
    system = f"{platform.platform()}, {platform.machine()}"
    checks = [ok("python", f"{python} on {system}"), _check_own_package()]
    for name in _EXAMINED:  # broken metadata of one says nothing about the others
        checks += isolated(name, partial(_check_package, name, wanted.get(name)))
    return checks


def check_onnxruntime_packages() -> list[Check]:
    """Warns if several packages bring `onnxruntime`: beside the CPU's, CUDA is hidden.

    Source: github.com/microsoft/onnxruntime/issues/23833 and 26996.
    """
    name = "onnxruntime packages"
    installed = [package for package in ONNX_PACKAGES if installed_version(package)]
    if len(installed) < 2:
        return [ok(name, f"{', '.join(installed) or 'none'}; no other hides it")]
    # Removing one takes files of the other along, so all go and one comes back.
    return [
        warn(
            name,
            f"{' and '.join(installed)} share one module: CUDA may be hidden, or files mixed",
            f"{uninstall_command(*installed)} && {install_command(onnx_requirement())}",
        )
    ]


def check_picture_words() -> list[Check]:
    """Whether the guard reads what is written in pictures: an extra's package."""
    name = "picture words"
    version = installed_version(READER_PACKAGE)
    if version is not None:
        return [ok(name, f"the guard reads them, with {READER_PACKAGE} {version}")]
    return [
        warn(
            name,
            "the guard cannot read text in pictures",
            install_command(READER_PACKAGE),
        )
    ]


def installed_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def build_llama(*cmake_options: str) -> str:
    """The command that builds the pinned llama-cpp-python from source with these options."""
    wanted = _wanted().get(LLAMA_PACKAGE)
    return build_llama_command(wanted.version if wanted else None, *cmake_options)


def repair_command(package: str) -> str:
    """The command that puts a package in order that is missing or damaged."""
    version, wanted = installed_version(package), _wanted().get(package)
    if version is None:
        return install_command(f"{package}{wanted or ''}")
    right = wanted is None or wanted.admits(version)
    requirement = f"{package}=={version}" if right else f"{package}{wanted}"
    return reinstall_command("--no-cache-dir", requirement)


def onnx_requirement(extras: str = "") -> str:
    """What to give pip to get ONNX Runtime, as it is installed or as we ask for it."""
    version = installed_version(ONNX_PACKAGE)
    wanted = _wanted().get(ONNX_PACKAGE)
    return f"{ONNX_PACKAGE}{extras}" + (f"=={version}" if version else str(wanted or ""))


def _check_own_package() -> Check:
    version = installed_version(OWN_PACKAGE)
    if version == VERSION:
        return ok(OWN_PACKAGE, VERSION)
    if version is None:
        finding = f"{VERSION}, not installed as a package: its requirements cannot be looked up"
    else:
        finding = f"{VERSION} is running, and the installed metadata is of {version}"
    return warn(OWN_PACKAGE, finding, f"{install_command('-e', '.')} (in the source folder)")


def _check_package(package: str, wanted: _Wanted | None) -> list[Check]:
    version = installed_version(package)
    install = install_command(f"{package}{wanted or ''}")
    if version is None:
        return [fail(package, "not installed", install)]
    if wanted is None:
        return [ok(package, version)]
    if not wanted.admits(version):
        return [fail(package, f"{version}; {wanted} is needed", install)]
    return [ok(package, f"{version}, as pinned" if wanted.operator == "==" else version)]


def _wanted() -> Mapping[str, _Wanted]:
    """What our metadata requires, extras left out; {} where we are not installed."""
    try:
        lines = metadata.requires(OWN_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    wanted: dict[str, _Wanted] = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match and "extra ==" not in line:
            wanted[match[1].lower()] = _Wanted(match[2], match[3])
    return wanted


def _release(version: str) -> tuple[int, ...]:
    """The release part as numbers: 1.31.1rc2 is (1, 31, 1)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
