"""Whether the CUDA libraries that onnxruntime-gpu needs can be loaded on this machine.

Asking onnxruntime itself is no way to find out: `get_available_providers()` lists CUDA on
machines that have none, and asking for a CUDA session there prints alarming lines on stderr
before it falls back to the CPU. So the libraries are loaded first, by name, with the loader
that onnxruntime uses. A library that an `nvidia-*` wheel brought is loaded by its full path,
after which the system's loader gives the same copy to onnxruntime.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# cuDNN 9 and cuRAND 10 go with both CUDA 12 and CUDA 13 builds of onnxruntime.
_LINUX_LIBRARIES = (
    "libcudart.so.{major}",
    "libcublasLt.so.{major}",
    "libcublas.so.{major}",
    "libcurand.so.10",
    "libcudnn.so.9",
)
_WINDOWS_LIBRARIES = (
    "cudart64_{major}.dll",
    "cublasLt64_{major}.dll",
    "cublas64_{major}.dll",
    "cudnn64_9.dll",
)
_WHEEL_FOLDERS = ("*/lib", "*/bin", "*/bin/x86_64")


def missing_cuda_libraries(cuda_version: str, site_packages: Path) -> tuple[str, ...]:
    """Return what stands between this machine and a CUDA session; empty if nothing does.

    cuda_version: what onnxruntime was built for, such as '13.0'; '' means a build without CUDA.
    site_packages: the folder that holds onnxruntime; `nvidia/*/lib` in it is searched first.
    The driver is tried first and alone: without it no other library is touched. Libraries that
    load stay loaded. Takes up to a second where CUDA is there, well under 1 ms where it is not.
    """
    major = cuda_version.partition(".")[0]
    if not major.isdigit() or sys.platform == "darwin":
        return ("a CUDA build of onnxruntime",)
    driver_problem = _driver_problem()
    if driver_problem:
        return (driver_problem,)
    templates = _WINDOWS_LIBRARIES if sys.platform == "win32" else _LINUX_LIBRARIES
    names = [template.format(major=major) for template in templates]
    folders = _wheel_folders(site_packages)
    return tuple(name for name in names if not _load_first(_places(name, folders)))


def _driver_problem() -> str:
    """Say why the NVIDIA driver cannot be used; '' if it can and sees a device."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        n_devices = ctypes.c_int(0)
        # CUresult cuInit(unsigned int flags); CUresult cuDeviceGetCount(int *count); 0 = success
        if driver.cuInit(ctypes.c_uint(0)) or driver.cuDeviceGetCount(ctypes.byref(n_devices)):
            return f"a working NVIDIA driver ({name} does not start)"
    except (OSError, AttributeError):
        return f"the NVIDIA driver ({name})"
    return "" if n_devices.value > 0 else "an NVIDIA GPU (the driver sees none)"


def _wheel_folders(site_packages: Path) -> list[Path]:
    """List the folders in which `nvidia-*` wheels keep their libraries, in a fixed order."""
    root = site_packages / "nvidia"
    return sorted(folder for pattern in _WHEEL_FOLDERS for folder in root.glob(pattern))


def _places(name: str, folders: Sequence[Path]) -> Iterable[str]:
    """Yield the paths to try for a library: the wheels' copies, then the system's own search."""
    yield from (str(folder / name) for folder in folders if (folder / name).is_file())
    yield name


def _load_first(places: Iterable[str]) -> bool:
    """Load the first of these libraries that loads; False if none does."""
    for place in places:
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return True
    return False
