"""llama.cpp's own sampler chain, read out as a distribution over its candidates."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from safesteer_edge.engine.grammar import Grammar
from safesteer_edge.engine.native import NativeObject, lib
from safesteer_edge.errors import EngineError, GuardError
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.guard.protocols import Proposal

if TYPE_CHECKING:
    from numpy.typing import NDArray


# struct llama_token_data (llama.h)
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@cache
def _all_tokens(n_vocab: int) -> NDArray[np.int32]:
    """Their ids, shared by all chains."""
    return np.arange(n_vocab, dtype=np.int32)


class SamplerChain(NativeObject):
    """Penalties, top-k, top-p, min-p, temperature and the seeded draw, in llama.cpp's order.

    At temperature 0 the chain is penalties and top-k alone, as llama.cpp's greedy sampler looks
    at no other filter; the candidates' probabilities are then those at temperature 1.
    grammar: rules tokens out before all of these. The caller owns it.
    """

    _what = "the sampler"

    def __init__(
        self, settings: SamplingSettings, *, n_vocab: int, grammar: Grammar | None = None
    ) -> None:
        self._greedy = settings.temperature == 0
        self._grammar = grammar
        # A penalty may move any token among the likeliest.
        self._n_wanted = n_vocab if settings.has_penalties else settings.top_k
        chain_handle = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if not chain_handle:
            raise EngineError("llama.cpp could not make a sampler chain; free some memory")
        self._own(chain_handle, lib.llama_sampler_free)
        for stage in self._stages(settings, n_vocab):
            lib.llama_sampler_chain_add(chain_handle, stage)  # the chain owns it from here
        self._has_penalties = settings.has_penalties
        self._accepted: list[int] = []
        # Made once: between two decodes the caches are cold, and each object made anew costs
        # several times what a hot loop shows. The chain sorts and cuts the buffer in place.
        self._buffer: NDArray[np.void] = np.zeros(n_vocab, dtype=_TOKEN_DATA)
        self._ids, self._logits = self._buffer["id"], self._buffer["logit"]
        self._token_ids = _all_tokens(n_vocab)
        self._data = self._buffer.ctypes.data_as(lib.llama_token_data_p)
        self._address = self._buffer.ctypes.data
        self._array: Any = lib.llama_token_data_array(data=self._data, size=n_vocab)
        self._array_reference = ctypes.byref(self._array)

    def _stages(self, settings: SamplingSettings, n_vocab: int) -> list[Any]:
        stages: list[Any] = []
        if settings.has_penalties:
            stages.append(
                lib.llama_sampler_init_penalties(
                    n_vocab,
                    settings.repeat_last_n,
                    settings.repeat_penalty,
                    settings.frequency_penalty,
                    settings.presence_penalty,
                )
            )
        stages.append(lib.llama_sampler_init_top_k(settings.top_k))
        if not self._greedy:
            stages.append(lib.llama_sampler_init_top_p(settings.top_p, 1))
            stages.append(lib.llama_sampler_init_min_p(settings.min_p, 1))
            stages.append(lib.llama_sampler_init_temp(settings.temperature))
            stages.append(lib.llama_sampler_init_dist(settings.seed))
        if not all(stages):
            raise EngineError("llama.cpp could not make a sampler; free some memory")
        return stages

    def propose(self, logits: NDArray[np.float32]) -> Proposal:
        """Run the chain on the logits of one position.

        logits: float32 (n_vocab,). Not changed. Cost about 0.2 ms for 49,152 tokens.
        Raises GuardError if a logit is NaN or +inf, or the chain leaves no candidate.
        """
        # NaN loses every comparison: the chain would drop that token and go on without it.
        if not math.isfinite(logits.max()):
            raise GuardError("the model gave a non-finite logit; its file may be damaged")
        self._ids[:] = self._token_ids
        self._logits[:] = logits
        if self._grammar is not None:
            self._grammar.rule_out_inplace(self._buffer, self._n_wanted)
            if not math.isfinite(self._logits.max()):
                raise GuardError("the model has no token that goes on as the JSON schema wants")
        array = self._array
        array.data, array.size = self._data, len(self._token_ids)
        array.selected, array.sorted = -1, False
        lib.llama_sampler_apply(self.handle, self._array_reference)
        n_candidates = int(array.size)
        if n_candidates < 1:
            raise GuardError("the sampler left no candidate; loosen --top-p or --min-p")
        return self._to_proposal(self._candidates(n_candidates), int(array.selected))

    def likeliest(self, logits: NDArray[np.float32], n: int) -> Proposal:
        """The n likeliest at temperature 1, whatever filters there are; the first counts as drawn.

        logits: as for `propose`. Raises GuardError if one is NaN or +inf.
        """
        if not math.isfinite(logits.max()):
            raise GuardError("the model gave a non-finite logit; its file may be damaged")
        token_ids = np.argsort(-logits, kind="stable")[:n].astype(np.int32)
        log_probs = logits[token_ids].astype(np.float64)
        log_probs -= log_probs[0]
        log_probs -= math.log(np.exp(log_probs).sum())
        return Proposal(token_ids, log_probs, drawn=0, greedy=self._greedy)

    def _candidates(self, n_candidates: int) -> NDArray[np.void]:
        # "NOTE: this pointer can be modified by the samplers" (llama.h)
        address = ctypes.cast(self._array.data, ctypes.c_void_p).value
        if address == self._address:
            return self._buffer[:n_candidates]
        if not address:
            raise GuardError("the sampler gave no candidates; report this")
        raw: Any = (ctypes.c_byte * (n_candidates * _TOKEN_DATA.itemsize)).from_address(address)
        return np.frombuffer(raw, dtype=_TOKEN_DATA)

    def _to_proposal(self, candidates: NDArray[np.void], selected: int) -> Proposal:
        logits = candidates["logit"].astype(np.float64)
        token_ids = candidates["id"].copy()
        drawn = 0 if self._greedy else selected
        if not self._array.sorted or not math.isfinite(logits[-1]):
            # Stable: equal logits keep llama.cpp's order, so that ties break the same way.
            order = np.argsort(-logits, kind="stable")
            order = order[np.isfinite(logits[order])]  # a logit of −inf rules a token out
            if not self._greedy:
                drawn = int(np.flatnonzero(order == selected)[0])
            logits, token_ids = logits[order], token_ids[order]
        logits -= logits[0]
        logits -= math.log(np.exp(logits).sum())
        return Proposal(token_ids=token_ids, log_probs=logits, drawn=drawn, greedy=self._greedy)

    def accept(self, token_id: int) -> None:
        """Tell the chain which token was emitted; only penalties and a grammar want to know."""
        chain_handle = self.handle
        if self._grammar is not None:
            self._grammar.accept(token_id)
        if self._has_penalties:
            self._accepted.append(token_id)
            lib.llama_sampler_accept(chain_handle, token_id)

    def take_back(self, n_tokens: int) -> None:
        """Forget the last n tokens that were emitted; what is drawn next goes on in its sequence.

        Penalties and grammar alone are set back: resetting the chain would draw the same numbers
        again.
        """
        if self._grammar is not None:
            self._grammar.take_back(n_tokens)
        if not self._has_penalties or not n_tokens:
            return
        del self._accepted[-n_tokens:]
        penalties = lib.llama_sampler_chain_get(self.handle, 0)
        lib.llama_sampler_reset(penalties)
        for token_id in self._accepted:
            lib.llama_sampler_accept(penalties, token_id)
