"""NVIDIA display controllers on the PCI bus, from files as Linux shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.doctor.children import has_nvidia_device


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [
        ("0x10de", "0x030200", True),  # 3D controller
        ("0x10de", "0x030000", True),  # VGA
        ("0x10de", "0x040300", False),  # the card's sound
        ("0x8086", "0x030000", False),
    ],
)
def test_only_nvidias_display_controllers_count(
    tmp_path: Path, vendor: str, kind: str, expected: bool
):
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    (tmp_path / "0000:02:00.0").mkdir()  # its files cannot be read
    assert has_nvidia_device(tmp_path) is expected


def test_a_system_without_such_files_has_none(tmp_path: Path):
    assert not has_nvidia_device(tmp_path / "missing")
