"""A calibration's report: one HTML page without script, and the same figures as JSON.

Made from the bundle's own record alone. It holds no request's text, harmful or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from safesteer_edge.bundle.writer import BundleParts
from safesteer_edge.calibration.report_plots import (
    refusals_plot,
    reliability_plot,
    separation_plot,
    state_plots,
    steps_plot,
    trade_off_plot,
)
from safesteer_edge.calibration.report_tables import chosen_policy, report_tables
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.report.page import escaped, html_figure, html_page, html_table

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"
Json = Mapping[str, Any]


def report_files(facts: Json, figures: Json) -> dict[str, str]:
    """The report's files by name.

    facts: of the bundle, shown as they are; "name" is the title's. figures: guard.json's.
    """
    facts, figures = without_nan(dict(facts)), without_nan(dict(figures))
    report = {"facts": facts, "figures": figures}
    return {
        HTML_NAME: report_to_html(facts, figures),
        JSON_NAME: json.dumps(report, ensure_ascii=False, indent=1) + "\n",
    }


def report_to_html(facts: Json, figures: Json) -> str:
    """The whole page."""
    kind = "Recalibration" if figures.get("recalibrated_from") else "Calibration"
    return html_page(
        f"{kind} of {facts['name']}",
        [
            _summary(figures),
            *_plots(figures),
            *(html_table(table) for table in report_tables(figures)),
            _facts(facts),
        ],
    )


def _summary(figures: Json) -> str:
    calibration: Json = figures.get("calibration") or {}
    came_from: Json | None = figures.get("recalibrated_from")
    if came_from:
        lines = [
            f"The probe is that of the bundle {came_from['bundle']} "
            f"({came_from['quantization']}), whose own report says how it was chosen; its scores "
            "and the policy were set anew for this file.",
        ]
    else:
        lines = [
            "Everything here was measured on the requests that the bundle was made from, each "
            "scored by a probe that had not seen it; the test split decided nothing, and what the "
            "finished guard does on some of it is a table of its own.",
        ]
    chosen = figures.get("chosen")
    if chosen:
        layers = ", ".join(str(layer) for layer in chosen["layers"])
        lines.append(f"The probe is {chosen['form']} and reads the outputs of blocks {layers}.")
    n_set_aside = figures.get("n_set_aside")
    if n_set_aside:
        lines.append(
            f"{n_set_aside} of {figures['n_answers']} answers were set aside in its fit, for a "
            "probe without them took them for the opposite of their label."
        )
    vector: Json = calibration.get("vector") or {}
    if vector:
        verb = "is used" if vector.get("enabled") else "is not used"
        lines.append(f"An alignment vector {verb}: {vector.get('why', 'no reason is recorded')}.")
    return "".join(f"<p>{escaped(line)}</p>" for line in lines)


def _plots(figures: Json) -> list[str]:
    calibration: Json = figures.get("calibration") or {}
    policy = chosen_policy(figures)
    pictures: Json = (calibration.get("vector") or {}).get("pictures") or {}
    without, with_vector = state_plots(pictures)
    shares = pictures.get("explained") or []
    where = f"layer {pictures.get('layer')}; the plane holds {100 * sum(shares):.0f} % of variance"
    parts = [
        html_figure(f"Separation by layer: {name}", separation_plot(table))
        for name, table in (calibration.get("separation") or {}).items()
    ]
    nested = figures.get("nested")
    return [
        *parts,
        html_figure("Separation by step: the chosen probe", steps_plot(nested) if nested else ""),
        html_figure("Prompts' states without the vector", without, where),
        html_figure("Prompts' states with the vector on media", with_vector, where),
        html_figure("Scores as chances", reliability_plot(figures.get("score_calibration") or {})),
        html_figure(
            "Safety against benign change: what a threshold touches", trade_off_plot(policy)
        ),
        html_figure(
            "Safety against benign change: what rules of refusal refuse", refusals_plot(policy)
        ),
    ]


def _facts(facts: Json) -> str:
    shown = json.dumps(facts, indent=1, ensure_ascii=False)
    return f"<h2>Made with</h2><pre>{escaped(shown)}</pre>"


# -- the report that lies in a bundle, made from its parts before they are written -----------------


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
