"""The version of this program, as its files and reports name their maker."""

from __future__ import annotations

VERSION = "0.1.0"
