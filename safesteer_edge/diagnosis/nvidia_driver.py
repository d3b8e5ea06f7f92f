"""The NVIDIA driver, asked through its own library. Call it in a child: a driver may hang."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from safesteer_edge.diagnosis.facts import DriverFacts

_NAME_BYTES = 128
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: the library without a GPU, as in CUDA's container images
_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"  # PCI class of VGA, 3D and other display controllers
_PCI_DEVICES = Path("/sys/bus/pci/devices")


def read_driver() -> DriverFacts:
    """What the driver says of itself; takes up to a second where there is one.

    Source: cuda.h; every function returns a CUresult, 0 is success.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return DriverFacts(False, None, "", ())
    # CUresult cuDriverGetVersion(int *version); 13000 is CUDA 13.0, and needs no cuInit.
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    # CUresult cuInit(unsigned int flags)
    status = driver.cuInit(ctypes.c_uint(0))
    if status == _NO_DEVICE:
        return DriverFacts(True, None, cuda_version, ())
    if status != 0:
        return DriverFacts(True, f"cuInit returns CUDA error {status}", cuda_version, ())
    return DriverFacts(True, None, cuda_version, _gpu_names(driver))


def has_nvidia_device(pci_devices: Path = _PCI_DEVICES) -> bool:
    """True if Linux lists an NVIDIA display controller on the PCI bus, with or without driver."""
    for device in pci_devices.glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASS):
            return True
    return False


def _gpu_names(driver: ctypes.CDLL) -> tuple[str, ...]:
    # CUresult cuDeviceGetCount(int *count)
    n_devices = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(n_devices)) != 0:
        return ()
    names: list[str] = []
    for ordinal in range(n_devices.value):
        # CUresult cuDeviceGet(CUdevice *device, int ordinal); CUdevice is an int
        device = ctypes.c_int(0)
        driver.cuDeviceGet(ctypes.byref(device), ctypes.c_int(ordinal))
        # CUresult cuDeviceGetName(char *name, int len, CUdevice dev)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        driver.cuDeviceGetName(name, ctypes.c_int(_NAME_BYTES), device)
        names.append(name.value.decode("utf-8", "replace") or f"GPU {ordinal}")
    return tuple(names)
