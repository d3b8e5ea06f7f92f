"""Judging a run: every distinct answer once by each judge, kept as it is made."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, cast

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.judge_model import (
    GuardModelJudge,
    GuardModelSettings,
    parse_guard_model,
)
from safesteer_edge.evaluation.judged import answer_key
from safesteer_edge.evaluation.rows import EvalRow, Journal, open_journal
from safesteer_edge.evaluation.verdict import LABELS, Judge, Judgement, Verdict
from safesteer_edge.metrics.refusal_rules import classify_answer

# -- A judge of the user's own: a command that reads JSON on stdin and writes JSON on stdout -------
# It is given {"request": …, "answer": …} and must write {"verdict": "unsafe"} or "safe",
# "complied", "refused", "no-answer", and may add {"probability": 0 … 1}. One process an answer.

DEFAULT_TIMEOUT_S: Final = 60.0
_MAX_OUTPUT: Final = 64 * 1024


class CommandJudge:
    """Runs a command. A time-out, an exit code or nonsense is an error, never a verdict."""

    def __init__(self, command: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Raises SettingsError for a command that has no words."""
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise SettingsError(f"cannot read the judge's command {command!r}: {error}") from error
        if not self._words:
            raise SettingsError("the judge's command is empty; write command:PROGRAM ARGUMENTS")
        self._timeout_s = timeout_s
        self.name = f"command:{command}"

    def judge(self, request: str, answer: str) -> Verdict:
        """Ask the command about one answer."""
        given = json.dumps({"request": request, "answer": answer})
        try:
            ended = subprocess.run(
                self._words,
                input=given.encode(),
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Verdict(None, error=f"no verdict after {self._timeout_s:g} s")
        except OSError as error:
            return Verdict(None, error=f"cannot run {self._words[0]!r}: {error.strerror or error}")
        if ended.returncode:
            return Verdict(None, error=f"exit code {ended.returncode}")
        return _parsed(ended.stdout)

    def close(self) -> None:
        """Nothing to free."""


def _parsed(output: bytes) -> Verdict:
    nonsense = f"not a verdict: {output[:80]!r}"
    if len(output) > _MAX_OUTPUT:
        return Verdict(None, error=nonsense)
    try:
        value: object = json.loads(output)
    except (ValueError, RecursionError):
        return Verdict(None, error=nonsense)
    if not isinstance(value, dict):
        return Verdict(None, error=nonsense)
    members = cast("dict[str, object]", value)
    probability = members.get("probability")
    for label in LABELS:
        if members.get("verdict") == label:
            if probability is None:
                return Verdict(label)
            is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
            if is_number and 0.0 <= cast("float", probability) <= 1.0:
                return Verdict(label, float(cast("float", probability)))
    return Verdict(None, error=nonsense)


# -- the judge that needs no model: the rules of `refusal_rules` -----------------------------------


class RuleJudge:
    """Complied, refused, or no answer. It says what was done, and not whether that was harmful."""

    name = "rules"

    def judge(self, request: str, answer: str) -> Verdict:
        """Judge the answer's words; the request plays no part."""
        del request
        return Verdict(classify_answer(answer))

    def close(self) -> None:
        """Nothing to free."""


RULES = "rules"


def open_judge(
    text: str, *, n_threads: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Judge:
    """`rules`, `model:F.gguf[:FORM]` or `command:PROGRAM ARGUMENTS`. Raises SettingsError, …"""
    kind, _, rest = text.partition(":")
    if text == RULES:
        return RuleJudge()
    if kind == "command":
        return CommandJudge(rest, timeout_s=timeout_s)
    if kind == "model" and rest:
        model, form = parse_guard_model(rest)
        return GuardModelJudge(GuardModelSettings(model, form, n_threads=n_threads))
    raise SettingsError(
        f"unknown judge {text!r}; write rules, model:F.gguf or command:PROGRAM ARGUMENTS"
    )


def judge_rows(
    rows: Sequence[EvalRow],
    judge: Judge,
    path: Path,
    *,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> None:
    """Judge what has no verdict in the journal at `path` yet. Failures are tried again.

    The rules judge every answer; other judges, which cost more, those to harmful requests.
    """
    wanted: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.status == "ok" and (row.kind == "harmful" or judge.name == RULES):
            wanted[answer_key(row.request, row.answer)] = row.request, row.answer
    with judgement_journal(path) as journal:
        done = {
            item.key
            for item in journal.items
            if item.judge == judge.name and item.label is not None
        }
        left = [key for key in wanted if key not in done]
        for i, key in enumerate(left, start=1):
            request, answer = wanted[key]
            said = judge.judge(request, answer)
            item = Judgement(said.label, said.probability, said.error, judge=judge.name, key=key)
            journal.append(item)
            progress(i, len(left))


def judgement_journal(path: Path) -> AbstractContextManager[Journal[Judgement]]:
    """The judgements of a run, and a way to add one."""
    return open_journal(path, Judgement)


def judge_names(judgements: Iterable[Judgement]) -> list[str]:
    """The judges, rules first."""
    names = dict.fromkeys(item.judge for item in judgements)
    return sorted(names, key=lambda name: (name != RULES, name))
