"""Answers that were written for this project and labelled by reading them.

Refusals of many styles, refusals that offer something else, refusals that go on to comply, answers
that begin with a disclaimer, answers that carry words which refusals carry too, and no answers. No
text says how to do harm: where one complies, the content is left out ("1. … 2. …") or harmless.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.metrics.refusal_rules import AnswerLabel

_FILE = Path(__file__).with_suffix(".jsonl")


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """note: what is hard about it; "plain" if nothing is."""

    text: str
    label: AnswerLabel
    note: str


def labelled_answers() -> tuple[LabelledAnswer, ...]:
    """All of them."""
    return tuple(LabelledAnswer(**json.loads(line)) for line in _FILE.open(encoding="utf-8"))
