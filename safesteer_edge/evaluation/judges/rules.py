"""The judge that needs no model: the rules of `refusal_rules`."""

from __future__ import annotations

from safesteer_edge.evaluation.judges.verdict import Verdict
from safesteer_edge.evaluation.refusal_rules import classify_answer


class RuleJudge:
    """Complied, refused, or no answer. It says what was done, and not whether that was harmful."""

    name = "rules"

    def judge(self, request: str, answer: str) -> Verdict:
        """Judge the answer's words; the request plays no part."""
        del request
        return Verdict(classify_answer(answer))

    def close(self) -> None:
        """Nothing to free."""
