"""SafeSteer Edge: quantized multimodal models that stay safe while they decode."""

from __future__ import annotations

__version__ = "0.1.0"
