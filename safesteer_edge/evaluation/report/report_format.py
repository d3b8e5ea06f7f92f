"""The version of report.json: a report of another one is not compared."""

from __future__ import annotations

from typing import Final

FORMAT: Final = 2
