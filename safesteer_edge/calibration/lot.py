"""Lots: what draws at random among requests, and draws the same each time and everywhere."""

from __future__ import annotations

import hashlib


def lot_of(text: str) -> int:
    """A number in [0, 2**32) of the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
