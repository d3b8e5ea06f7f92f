"""The report that lies in a bundle, made from its parts before they are written."""

from __future__ import annotations

from dataclasses import asdict

from safesteer_edge.bundle.writer import BundleParts
from safesteer_edge.calibration.report.page import report_files


def bundle_report(parts: BundleParts) -> dict[str, str]:
    """The bundle's pages for people, by file name."""
    facts = {
        "name": parts.name,
        "created_by": parts.created_by,
        "model": asdict(parts.model),
        "probe_layers": parts.probe_layers,
        "hidden_state_route": parts.route_hint,
    }
    return report_files(facts, parts.figures)
