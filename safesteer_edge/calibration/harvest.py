"""Harvest: hidden states of answers, collected on the decode path of the very file that will run.

For each request the model answers by itself (greedy), after a forced refusal (harmful requests) and
after a forced compliant opening. States of prefill-shaped batches differ from those of single
decoding steps, so every token, forced or not, is fed one at a time.

Labels are per answer position: harmful request and compliant answer = 1; everything else = 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.forced_openings import opening
from safesteer_edge.calibration.requests_data import Request
from safesteer_edge.engine.llama_engine import LlamaEngine
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.evaluation.refusal_rules import is_refusal
from safesteer_edge.guard.sampling import SamplingSettings
from safesteer_edge.prompting import question_items

if TYPE_CHECKING:
    from safesteer_edge.runtime import Runtime

AnswerKind = Literal["own", "refusal", "compliance"]


@dataclass(frozen=True, slots=True)
class HarvestPlan:
    """n_own_tokens: length of the model's own answers; n_forced_tokens: of forced ones."""

    n_own_tokens: int = 64
    n_forced_tokens: int = 24


@dataclass(frozen=True, slots=True)
class HarvestedAnswer:
    """One answer and its states.

    states: float16 (n_tokens + 1, n_features); row 0 is the last prompt position, row t the state
    after answer token t. label: 1 = compliant answer to a harmful request, else 0.
    """

    request: Request
    kind: AnswerKind
    label: Literal[0, 1]
    text: str
    token_ids: tuple[int, ...]
    states: NDArray[np.float16]


class Harvester:
    """Runs requests through an engine. Cost: about one decoding step per harvested token."""

    def __init__(self, runtime: Runtime, plan: HarvestPlan) -> None:
        """runtime: opened with `layers`, whose states come back joined in that order."""
        self._runtime = runtime
        self._engine = runtime.engine
        self._plan = plan

    def harvest(self, requests: Iterable[Request]) -> Iterator[HarvestedAnswer]:
        """Answers of each request, in order: own, then forced ones where they teach something."""
        for request in requests:
            index = _stable_index(request)
            yield self._answer(request, "own", "", self._plan.n_own_tokens)
            held_out = request.split == "test"
            if request.label == "harmful":
                text = opening("refusal", index, held_out=held_out)
                yield self._answer(request, "refusal", text, self._plan.n_forced_tokens)
            if request.label in ("harmful", "harmless", "borderline"):
                text = opening("compliance", index, held_out=held_out)
                yield self._answer(request, "compliance", text, self._plan.n_forced_tokens)

    def _answer(
        self, request: Request, kind: AnswerKind, forced_text: str, n_tokens: int
    ) -> HarvestedAnswer:
        engine, model = self._engine, self._runtime.model
        sampler = SamplerChain(SamplingSettings(temperature=0, top_k=1), n_vocab=model.n_vocab)
        try:
            items = question_items(request.text, template=self._runtime.template, model=model)
            states = [engine.prefill(items, sampler).last_state]
            token_ids: list[int] = []
            forced = model.tokenize_plain(forced_text) if forced_text else []
            while len(token_ids) < n_tokens:
                n_done = len(token_ids)
                token_id = forced[n_done] if n_done < len(forced) else _greedy(engine)
                states.append(engine.evaluate(token_id))
                engine.accept(token_id)
                token_ids.append(token_id)
                if engine.is_end(token_id):
                    break
        finally:
            sampler.close()
        text = b"".join(engine.piece(token_id) for token_id in token_ids).decode("utf-8", "replace")
        return HarvestedAnswer(
            request=request,
            kind=kind,
            label=_label(request, kind, text),
            text=text,
            token_ids=tuple(token_ids),
            states=np.asarray(states, dtype=np.float16),
        )


def _stable_index(request: Request) -> int:
    """A number of the request alone: its openings do not depend on what else is harvested."""
    return int.from_bytes(hashlib.sha256(request.id.encode()).digest()[:4], "big")


def _greedy(engine: LlamaEngine) -> int:
    return int(engine.propose().token_ids[0])


def _label(request: Request, kind: AnswerKind, text: str) -> Literal[0, 1]:
    if request.label != "harmful" or kind == "refusal":
        return 0
    if kind == "own" and is_refusal(text):
        return 0
    return 1
