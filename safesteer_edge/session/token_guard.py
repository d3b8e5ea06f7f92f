"""The guard in a decoding loop of your own, over llama-cpp-python's `Llama`.

with TokenGuard(llama, "my-guard") as guard:
    guard.read(llama.tokenize(prompt, special=True), message=range(4, 20))
    while (token_id := guard.choose()) not in (None, llama.token_eos()):
        print(llama.detokenize([token_id]).decode("utf-8", "ignore"), end="")
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from safesteer_edge.bundle.bundle import GuardBundle, check_engine_canaries
from safesteer_edge.engine.reference import GuestLlama
from safesteer_edge.errors import EngineError, GuardError
from safesteer_edge.guard.policy import RerankName, SamplingSettings
from safesteer_edge.guard.protocols import score_prompts
from safesteer_edge.guard.reranking import RERANKERS, Tilt
from safesteer_edge.guard.risk import RefusalReason, RunningRisk

if TYPE_CHECKING:
    from typing_extensions import Self

    from safesteer_edge.guard.protocols import DecodingEngine


class TokenGuard:
    """Says which token comes next, by the sampler's candidates and the guard's scores of them.

    It re-ranks, counts the risk, and refuses where a session would steer the answer anew; the rest
    is yours: templates, control tokens in what people typed, and holding text back until it is
    sure to stay.
    refusal: why the answer must end; None while it may go on. refusal_text: what to say instead.
    """

    def __init__(
        self,
        llama: Any,
        bundle: str | os.PathLike[str],
        *,
        sampling: SamplingSettings | None = None,
        rerank: RerankName = "lazy",
    ) -> None:
        """Load a bundle, and check it against the `llama_cpp.Llama`, which is reset for it.

        Raises BundleError, ModelFileError, and EngineError for a model whose states a Llama does
        not give, as block outputs of architectures that llama.cpp has no cheap route for.
        """
        sampling = sampling or SamplingSettings()
        self._bundle = GuardBundle.load(bundle, llama.model_path)
        try:
            self._bundle.require_calibrated()
            config = self._bundle.config
            self._llama = GuestLlama(
                llama, config.model.architecture, config.probe.layers, sampling
            )
            read = self._llama.read
            check_engine_canaries(self._bundle, lambda ids: read(ids, range(len(ids)))[0, 0])
        except BaseException:
            self._bundle.close()
            raise
        self._rerank = RERANKERS[rerank]
        self._rng = np.random.default_rng(sampling.seed)
        self._risk: RunningRisk | None = None
        self.refusal: RefusalReason | None = None
        self.refusal_text = config.refusal_text

    @property
    def risk(self) -> float | None:
        """The running risk of the answer, in [0, 1]; None before a prompt was read."""
        return self._risk.value if self._risk else None

    def read(self, token_ids: Sequence[int], *, message: range | None = None) -> None:
        """Evaluate a prompt from its beginning, score it, and begin an answer.

        message: where the words of the last message lie among the tokens, which many a guard judges
        by; None: all of the prompt, which it judges less well.
        A second call is the next turn of the same conversation, and carries a share of its risk.
        Raises GuardError if the guard cannot judge the prompt.
        """
        carried = self._risk.carry_over() if self._risk else 0.0
        self._risk, self.refusal = None, "guard_failed"
        states = self._llama.read(token_ids, range(len(token_ids)) if message is None else message)
        score = float(score_prompts(self._bundle.prompt_probe or self._bundle.probe, states)[0])
        self._risk = RunningRisk(self._bundle.policy, carried=carried, prompt_score=score)
        self.refusal = None

    def choose(self) -> int | None:
        """The next token, evaluated already; None: the guard refuses, and says why in `refusal`.

        Raises GuardError if the guard cannot judge; from then on it refuses.
        """
        if self.refusal is not None:
            return None
        if self._risk is None:
            raise EngineError("there is no prompt to answer; read one first")
        self.refusal = "guard_failed"  # until this step is judged
        proposal = self._llama.propose()
        tilt = Tilt(self._risk.strength, self._bundle.policy.threshold)
        # A GuestLlama has what rerankers use of an engine.
        engine = cast("DecodingEngine", self._llama)
        choice = self._rerank(engine, self._bundle.probe, proposal, tilt, self._rng)
        if not math.isfinite(choice.score):
            raise GuardError("the guard has no score for the token that it chose")
        token_id = int(proposal.token_ids[choice.index])
        self._llama.accept(token_id)
        self._risk.add(choice.score)
        self.refusal = self._risk.refusal_reason()
        return token_id if self.refusal is None else None

    def close(self) -> None:
        """Free the probe and the sampler; the Llama stays yours. Idempotent."""
        self._llama.close()
        self._bundle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
