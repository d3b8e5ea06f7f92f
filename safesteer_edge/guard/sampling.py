"""Settings of the sampler."""

from __future__ import annotations

from dataclasses import dataclass

from safesteer_edge.errors import SettingsError

MAX_TOP_K = 64
MAX_SEED = 2**32 - 2  # 2³²−1 is LLAMA_DEFAULT_SEED (llama.h): another seed each time


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """llama.cpp's sampler chain. The top-k are the candidates that the guard re-ranks.

    temperature 0 is greedy. seed: 0 … 2³²−2. repeat_penalty 1, frequency and presence penalty 0
    switch the penalties off. Raises SettingsError for a value out of range.
    """

    temperature: float = 0.3
    top_k: int = 16
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 10.0)
        _check("top_k", self.top_k, 1, MAX_TOP_K)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repeat_penalty", self.repeat_penalty, 0.01, 10.0)
        _check("repeat_last_n", self.repeat_last_n, 0, 65536)
        _check("frequency_penalty", self.frequency_penalty, -10.0, 10.0)
        _check("presence_penalty", self.presence_penalty, -10.0, 10.0)
        _check("seed", self.seed, 0, MAX_SEED)

    @property
    def has_penalties(self) -> bool:
        """True if any penalty changes the logits."""
        return (
            self.repeat_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN as well
        raise SettingsError(f"{name} is {value!r}; expected {low} to {high}")
