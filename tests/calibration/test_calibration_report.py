"""A calibration's report: one page that stands alone, says what was measured, and leaks nothing."""

from __future__ import annotations

import copy
import html
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from safesteer_edge.calibration.report import HTML_NAME, JSON_NAME, report_files

RNG = np.random.default_rng(0)


def quality() -> dict[str, Any]:
    step = {
        "against_ordinary": 0.97,
        "against_borderline": 0.93,
        "against_harmless_twins": 0.81,
    }
    return {
        "steps": [
            {"step": number, **step, "candidate": 0.9 if number else None} for number in range(17)
        ],
        "mean_against_ordinary": 0.981,
        "mean_against_borderline": 0.941,
        "mean_against_harmless_twins": 0.834,
        "mean_against_ordinary_95": [0.96, 0.99],
        "mean_against_borderline_95": [0.9, 0.97],
        "mean_against_harmless_twins_95": [0.79, 0.87],
        "early_candidate": 0.9,
        "found_at_1_percent_ordinary": {"count": 60, "n": 100},
        "found_at_1_percent_borderline": {"count": 43, "n": 100},
        "n_harmful": 100,
        "n_ordinary": 300,
        "n_borderline": 150,
        "n_harmless": 110,
        "n_candidate_pairs": 110,
    }


def candidate(form: str, **more: float) -> dict[str, Any]:
    shape = {"n_components": 0, "n_hidden": 0}
    return {"layers": [1, 2], "form": form, "regularisation": 0.001, **shape, **more}


def figures() -> dict[str, Any]:
    judged = dict.fromkeys(
        (
            "merit",
            "early_candidate",
            "found_at_few_percent",
            "found_at_1_percent_ordinary",
            "found_at_1_percent_borderline",
            "mean_against_ordinary",
            "mean_against_borderline",
            "mean_against_harmless_twins",
        ),
        0.9,
    )
    bins = [{"mean_score": (i + 0.5) / 10, "harmful_share": i / 10, "n": 50} for i in range(10)]
    reliability = {"brier": 0.081, "expected_error": 0.02, "bins": bins}
    separation = {"layers": [0, 1, 2], "auroc": [[0.8] * 17] * 3, "n": [[30, 60]] * 17}
    names = [f"{where} {label}" for where in ("text", "media") for label in ("harmful", "harmless")]
    names += ["media with vector harmful", "media with vector harmless"]
    shares = {"ordinary": 0.01, "borderline": 0.03, "harmless_twins": 0.2, "harmful": 0.8}
    threshold = {"chance": 0.01, "threshold": 0.8, **shares}
    tried = {"form": "mean", "sign": 1, "layers": [1, 2], "scale": 0.5, "gate": 0.25}
    found = {"kl": 0.03, "auroc_without": 0.81, "auroc_with": 0.92}
    return {
        "chosen": candidate("linear"),
        "tried": [candidate("linear", **judged), candidate("pca-linear", **judged)],
        "nested": {"chosen": [], **quality()},
        "n_answers": 500,
        "n_set_aside": 7,
        "score_calibration": {
            "method": "platt",
            "reliability": {"platt": reliability, "isotonic": reliability},
        },
        "calibration": {
            "harvested": {"text": {"harmful": 3, "ordinary": 4}},
            "separation": {"text": separation, "media": separation},
            "policy": {
                "policy": {"threshold": 0.8, "strength": 40.0},
                "touched": shares,
                "refused": shares,
                "thresholds": [threshold, {**threshold, "ordinary": 0.05, "borderline": None}],
                "refusal_settings": [shares],
            },
            "vector": {
                "enabled": True,
                "why": "+0.11 AUROC",
                "decoded": [{**tried, **found}],
                "confirmed": {**tried, **found, "auroc_gain": [0.05, 0.11, 0.17]},
                "pictures": {
                    "layer": 2,
                    "explained": [0.4, 0.2],
                    "points": {name: RNG.normal(size=(9, 2)).tolist() for name in names},
                },
            },
            "made": {"elapsed_s": 1234.5, "peak_memory_mib": 2048.0},
        },
    }


FACTS = {"name": "a-guard", "model": {"architecture": "llama"}}


class _Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def page(report: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> str:
    return report_files(facts or FACTS, figures() if report is None else report)[HTML_NAME]


def test_the_page_stands_alone_and_runs_nothing():
    text = page()
    parsed = _Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not {"src", "href"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in text
    addresses = set(re.findall(r"https?://[^\"' <]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a namespace: nothing is loaded


def test_every_plot_is_there_and_is_well_formed():
    text = page()
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(drawings) == 8  # text, media, steps, states twice, chances, and two trade-offs
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_figures_stand_with_their_intervals():
    text = page()
    assert "0.981 (0.960–0.990)" in text
    assert "43/100 (43.0 %, 95 % 34–53)" in text
    assert "+0.110 (+0.050 to +0.170)" in text
    assert "1,234.5" in text
    assert "7 of 500 answers were set aside" in text
    assert "→ linear" in text
    assert "→ PCA" not in text


def test_a_page_shows_text_and_never_runs_it():
    evil = "<script>alert(1)</script>\x1b]0;title\x07"
    report = figures()
    report["calibration"]["vector"]["why"] = evil
    report["calibration"]["harvested"] = {evil: {evil: 1}}
    text = page(report, {"name": evil, "model": evil})
    assert "script" not in _Page(text).tags
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text


def test_the_json_holds_what_the_page_was_made_from():
    files = report_files(FACTS, figures())
    report = json.loads(files[JSON_NAME])
    assert report["facts"]["name"] == "a-guard"
    assert report["figures"]["nested"]["mean_against_ordinary"] == 0.981


@pytest.mark.parametrize("missing", ["nested", "calibration", "tried", "score_calibration"])
def test_what_was_not_measured_is_left_out(missing: str):
    report = figures()
    del report[missing]
    assert page(report).endswith("</html>\n")
    report = figures()
    report[missing] = None
    assert page(report).endswith("</html>\n")


def test_a_calibration_without_a_vector_says_why():
    report = copy.deepcopy(figures())
    report["calibration"]["vector"] = {"enabled": False, "why": "the model does not see"}
    text = page(report)
    assert "An alignment vector is not used: the model does not see." in text
    assert "Prompts' states" in html.unescape(page())
    assert "Prompts' states" not in html.unescape(text)


def test_numbers_that_are_not_finite_are_no_numbers():
    report = figures()
    report["nested"]["steps"][3]["candidate"] = float("nan")
    report["calibration"]["separation"]["text"]["auroc"] = [[float("nan")] * 17] * 3
    files = report_files(FACTS, report)
    assert "NaN" not in files[JSON_NAME]
    assert not re.search(r"\b(nan|None)\b", files[HTML_NAME])


@pytest.mark.parametrize("where", ["calibration", None])
def test_what_harmful_requests_come_to_behind_each_beginning(where: str | None):
    report = copy.deepcopy(figures())
    found = report[where] if where else report
    found["openings"] = [
        {
            "opening": "I can't help with",
            "n": 48,
            "declined": 0.9,
            "declined_at_once": 1.0,
            "twins_answered": 0.25,
            "own_words": 22.0,
        }
    ]
    found["look_ahead"] = {"look_ahead": 8, "look_ahead_limit": 0.01, "n": 48, "declined": 38}
    text = re.sub(r"<[^>]*>|\s+", " ", html.unescape(page(report)))
    assert re.search(r"I can't help with +48 +90 % +100 % +25 %", text)
    assert re.search(r"\(its own, 8 tokens ahead\) +48 +79 %", text)
