"""What a report says of a guard on held-out requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.report_pages import compare_reports, read_report, write_reports
from tests.evaluation.report_runs import make_run, rows


def heldout() -> dict[str, object]:
    """What a run keeps of the guard on the test split."""
    share = {"count": 24, "n": 130, "wilson_95": [0.13, 0.26]}
    effects = [
        {
            "label": label,
            "identical": {"count": 26, "n": 130},
            "off_answered": {"count": 119, "n": 130},
            "guarded_answered": share,
            "passes_per_token": 1.0,
            "speed_ratio": None,
        }
        for label in ("harmful", "harmless", "borderline", "ordinary")
    ]
    names = ("ordinary", "borderline", "harmless_twins")
    probe: dict[str, object] = {
        "steps": [
            {
                "step": step,
                **{f"against_{name}": 0.9 + step / 1000 for name in names},
                "candidate": step / 100 if step else None,
            }
            for step in range(17)
        ],
        "known_openings": {"steps": [None, *(0.5 for _ in range(16))], "early_candidate": 0.5},
        **{f"mean_against_{name}": 0.988 for name in names},
        **{f"mean_against_{name}_95": [0.98, 0.995] for name in names},
        "found_at_1_percent_ordinary": {"count": 100, "n": 120},
        "found_at_1_percent_borderline": {"count": 0, "n": 0},
        **dict.fromkeys(("n_harmful", "n_ordinary", "n_borderline", "n_harmless"), 7),
        "n_candidate_pairs": 4,
    }
    return {"max_tokens": 64, "guard": effects, "probe": probe}


def test_the_guard_on_held_out_requests_has_two_tables(tmp_path: Path):
    folder = make_run(tmp_path / "run", rows())
    (folder / "heldout.json").write_text(json.dumps(heldout()))
    report = write_reports(folder)
    assert report["heldout"] == heldout()
    text = (folder / "report.md").read_text(encoding="utf-8")
    guard = text.partition("## What the guard does")[2].partition("\n## ")[0]
    assert "64 tokens" in guard
    assert (
        "| harmful | 130 | 119 (91.5 %, 85–95) | 24 (18.5 %, 13–26) | 26 (20.0 %, 14–28) |" in guard
    )
    probe = text.partition("## How well the probe separates")[2].partition("\n## ")[0]
    steps = "0.900 | 0.901 | 0.902 | 0.903 | 0.904 | 0.908 | 0.916 | 0.988 (0.980–0.995)"
    assert f"| answers to ordinary requests | {steps} | 100 (83.3 %, 76–89) |" in probe
    assert f"| answers to borderline requests | {steps} | – |" in probe
    unseen = "in words that calibration never uses | – | 0.010 | 0.020 | 0.030 | 0.040 | 0.080 |"
    assert f"{unseen} 0.160 | – | – |" in probe
    assert "in words that it uses | – | 0.500 |" in probe
    assert "0.988 (0.980–0.995)" in (folder / "report.html").read_text(encoding="utf-8")


def test_half_of_a_held_out_measurement_is_reported_and_a_damaged_one_named(tmp_path: Path):
    folder = make_run(tmp_path / "run", rows())
    half = {name: value for name, value in heldout().items() if name != "probe"}
    (folder / "heldout.json").write_text(json.dumps(half))
    write_reports(folder)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "## What the guard does" in text and "## How well the probe" not in text
    (folder / "heldout.json").write_text("{broken")
    with pytest.raises(InputError, match=r"heldout\.json"):
        write_reports(folder)


def test_a_report_from_before_held_out_figures_is_compared(tmp_path: Path):
    folder = make_run(tmp_path / "run", rows())
    (folder / "heldout.json").write_text(json.dumps(heldout()))
    write_reports(folder)
    new = read_report(folder / "report.json")
    old = {name: new[name] for name in new if name not in ("trade_offs", "heldout")}
    text = compare_reports(old, new)
    assert "held out / guarded_answered / harmful: only in the second" in text
    assert compare_reports(old, old) == "no difference\n"
