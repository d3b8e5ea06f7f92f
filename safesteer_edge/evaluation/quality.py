"""How far a defence moves the model on harmless requests: KL of next-token distributions, and the
perplexity of its answers under the undefended model.

Along the undefended model's own answer, step by step: KL(p ‖ q) of its distribution p over the
whole vocabulary (temperature 1) and the defended one q, which has the defence's prompt, control
vector and tilt over the sampler's top-k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.prompt_items import message_span
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.evaluation.baselines import NO_BASELINES, FittedBaselines
from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.defences import OFF, Defence
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.guard.protocols import score_prompts
from safesteer_edge.guard.reranking import Tilt
from safesteer_edge.guard.risk import RunningRisk
from safesteer_edge.metrics.statistics import LogProbs, divergence, log_softmax
from safesteer_edge.session.prompt import prompt_items
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.templates.conversation import Conversation, Message

N_KL_STEPS: Final = 16
N_PERPLEXITY_TOKENS: Final = 48
_TOP_K: Final = 16
AnswerKind = Literal["harmless", "steered", "refusal"]


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One harmless case under one defence. kl: nats, mean over the steps; None: not defined.

    nll: nats a token of the defence's answer under the undefended model; None: it said nothing.
    of: what kind of answer it is; steered ones, and the undefended model's own refusals, are to
    harmful requests.
    """

    case_id: str
    defence: str
    kl: float | None
    nll: float | None
    n_tokens: int
    of: AnswerKind = "harmless"


def moves_distribution(defence: Defence) -> bool:
    """KL is defined: the defence acts on the distribution, and on text alone."""
    acts = defence.guard == "steer" or defence.system or defence.vector == "refusal-direction"
    is_told = defence.rerank == "lazy" and not defence.media_only and not defence.is_ablation
    return bool(acts) and is_told


@dataclass(frozen=True, slots=True)
class QualityTask:
    """What to measure of one case. answers: by defence; `off`'s is what distributions follow."""

    case: Case
    answers: dict[str, str]


def measure_quality(
    settings: SessionSettings,
    fitted: FittedBaselines,
    defences: Sequence[Defence],
    tasks: Sequence[QualityTask],
) -> list[QualityRow]:
    """Rows of every case and defence. Opens the model once for each defence that moves it.

    Raises ModelFileError, BundleError, EngineError.
    """
    base: dict[str, tuple[list[int], list[LogProbs]]] = {}
    nll: dict[tuple[str, str], tuple[float | None, int]] = {}
    with closing(_Reader(settings, fitted, OFF)) as reader:
        for task in tasks:
            own = reader.tokens(task.answers.get(OFF.name, ""))[:N_KL_STEPS]
            base[task.case.id] = own, list(reader.along(task.case, own))
            known: dict[str, tuple[float | None, int]] = {}
            for name, answer in task.answers.items():
                if answer not in known:
                    known[answer] = reader.nll(task.case, answer)
                nll[task.case.id, name] = known[answer]
    rows: list[QualityRow] = []
    for defence in defences:
        kl = _divergences(settings, fitted, defence, tasks, base)
        for task in tasks:
            if defence.name in task.answers:
                mean_nll, n_tokens = nll[task.case.id, defence.name]
                rows.append(
                    QualityRow(task.case.id, defence.name, kl.get(task.case.id), mean_nll, n_tokens)
                )
    return rows


def measure_fluency(
    settings: SessionSettings, answers: Sequence[tuple[Case, str, str, AnswerKind]]
) -> list[QualityRow]:
    """Rows without KL of these answers, each with its case and defence. Opens the model once."""
    with closing(_Reader(settings, NO_BASELINES, OFF)) as reader:
        return [
            QualityRow(case.id, defence, None, *reader.nll(case, answer), kind)
            for case, defence, answer, kind in answers
        ]


def _divergences(
    settings: SessionSettings,
    fitted: FittedBaselines,
    defence: Defence,
    tasks: Sequence[QualityTask],
    base: dict[str, tuple[list[int], list[LogProbs]]],
) -> dict[str, float]:
    if not moves_distribution(defence):
        return {}
    with closing(_Reader(settings, fitted, defence)) as reader:
        found: dict[str, float] = {}
        for task in tasks:
            token_ids, without = base[task.case.id]
            if token_ids and defence.name in task.answers:
                defended = reader.along(task.case, token_ids)
                values = [divergence(p, q) for p, q in zip(without, defended, strict=True)]
                found[task.case.id] = float(np.mean(values))
        return found


class _Reader:
    """A model under a defence, read along given answers. Owns it: close."""

    def __init__(
        self, settings: SessionSettings, fitted: FittedBaselines, defence: Defence
    ) -> None:
        self._defence = defence
        self._vector: NDArray[np.float32] | None = None
        if defence.vector == "refusal-direction":
            self._vector = fitted.directions * np.float32(defence.vector_factor)
        sampling = replace(settings.sampling, top_k=_TOP_K + 1)  # one more: the given token
        self._runtime: Runtime = open_runtime(
            replace(settings, guard=defence.guard, sampling=sampling)
        )

    def close(self) -> None:
        self._runtime.close()

    def tokens(self, text: str) -> list[int]:
        return self._runtime.model.tokenize_plain(text) if text else []

    def nll(self, case: Case, answer: str) -> tuple[float | None, int]:
        token_ids = self.tokens(answer)[:N_PERPLEXITY_TOKENS]
        if not token_ids:
            return None, 0
        along = self.along(case, token_ids)
        total = sum(-float(p[i]) for p, i in zip(along, token_ids, strict=True))
        return total / len(token_ids), len(token_ids)

    def along(self, case: Case, token_ids: Sequence[int]) -> Iterator[LogProbs]:
        """The distribution before each of these tokens of an answer."""
        runtime, engine = self._runtime, self._runtime.engine
        messages = [Message.from_text("user", case.turns[-1])]
        if self._defence.system:
            messages.insert(0, Message.from_text("system", self._defence.system))
        items = prompt_items(
            Conversation(tuple(messages)), template=runtime.template, model=runtime.model
        )
        sampling = SamplingSettings(temperature=1.0, top_k=_TOP_K, top_p=1.0, min_p=0.0)
        bundle = runtime.bundle
        risk: RunningRisk | None = None
        with closing(SamplerChain(sampling, n_vocab=runtime.model.n_vocab)) as sampler:
            prefill = engine.prefill(
                items,
                sampler,
                control_vector=self._vector,
                steers_prompt=True,
                spans=[message_span(items)],
            )
            if bundle is not None:
                judging = bundle.prompt_probe or bundle.probe
                asked = float(score_prompts(judging, prefill.prompt_states)[0])
                policy = self._defence.policy_from(bundle.policy)
                risk = RunningRisk(policy, prompt_score=asked)
            for token_id in token_ids:
                log_probs = log_softmax(engine.next_logits())
                if risk is not None and self._defence.guard == "steer":
                    log_probs = self._tilted(log_probs, token_id, risk)
                else:
                    engine.evaluate(token_id)
                yield log_probs
                engine.accept(token_id)

    def _tilted(self, log_probs: LogProbs, token_id: int, risk: RunningRisk) -> LogProbs:
        """The guarded distribution; evaluates the given token among the candidates."""
        bundle = self._runtime.bundle
        assert bundle is not None  # it steers
        policy = self._defence.policy_from(bundle.policy)
        ids = [int(i) for i in self._runtime.engine.propose().token_ids]
        if token_id not in ids:
            ids.append(token_id)
        scores = bundle.probe.score(self._runtime.engine.evaluate_candidates(ids))
        tilted = log_probs.copy()
        tilted[ids] -= Tilt(risk.strength, policy.threshold).penalties(scores)
        risk.add(float(scores[ids.index(token_id)]))
        return log_softmax(tilted)
