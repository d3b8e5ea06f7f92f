"""How many answers there are, and why there are no more: errors, crashes, missing verdicts."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def count_lines(report: Json) -> list[str]:
    """What was asked and what is no answer, in lines for people."""
    counts, facts = report["counts"], report["facts"]
    lines = [
        f"{counts['answered']} of {counts['planned']} answers; {counts['errors']} errors, "
        f"{counts['crashed']} crashes, {counts['unreadable_rows']} unreadable rows of files. None "
        "of these counts as an answer."
    ]
    lines += [f"{r['n']} × {r['status']}: {r['error']}" for r in counts["reasons"]]
    lines += [
        f"unreadable: {row['suite']}, {row['where']}: {row['problem']}"
        for row in counts["unreadable_examples"]
    ]
    for judge, failed in counts["judge_errors"].items():
        if failed["n"]:
            errors = "; ".join(f"{n} × {error}" for error, n in failed["errors"].items())
            lines.append(f"judge {judge} gave no verdict on {failed['n']} answers: {errors}")
    lines += [f"not run: {name}, {why}" for name, why in facts["skipped_suites"].items()]
    return lines
