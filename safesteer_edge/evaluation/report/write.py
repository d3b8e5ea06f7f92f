"""Writing a run's report into its folder: report.json, report.html, report.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safesteer_edge.evaluation.report.content import read_run
from safesteer_edge.evaluation.report.examples import choose_examples
from safesteer_edge.evaluation.report.html import report_to_html
from safesteer_edge.evaluation.report.markdown import report_to_markdown
from safesteer_edge.evaluation.running.eval_settings import ROWS
from safesteer_edge.evaluation.running.journal import read_journal
from safesteer_edge.evaluation.running.rows import row_from_json
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.finite_json import without_nan


def write_reports(folder: Path, *, with_texts: bool = False) -> dict[str, Any]:
    """Write all three from the folder's rows; returns the report.

    with_texts: harmful requests and answers stand in the HTML as they are, folded away.
    Raises InputError for a folder that holds no run.
    """
    report = without_nan(read_run(folder))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    report["facts"]["cases_sha256"] = plan["cases_sha256"]
    rows = tuple(read_journal(folder / ROWS, row_from_json))
    texts = {
        "report.json": json.dumps(report, ensure_ascii=False, indent=1) + "\n",
        "report.html": report_to_html(report, choose_examples(rows, with_texts=with_texts)),
        "report.md": report_to_markdown(report),
    }
    for name, text in texts.items():
        with atomic_write(folder / name, "w") as stream:
            stream.write(text)
    return report
