"""Ways to steer that a calibration tries, and which requests it tries them on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from safesteer_edge.bundle.alignment import MAX_VECTOR_RATIO
from safesteer_edge.calibration.carriers import Carrier
from safesteer_edge.calibration.requests_data import Request
from safesteer_edge.calibration.vector_forms import VectorForm, bands_for, on_band
from safesteer_edge.calibration.vector_trial import Directions

Part = Literal["making", "choosing", "confirming"]
Prompt = tuple[Request, Carrier]
_SIGNS: Final[tuple[Literal[1, -1], ...]] = (1, -1)


@dataclass(frozen=True, slots=True)
class VectorSettings:
    """kl_limit: nats, mean over harmless prompts with media. scales: α to try.

    gate_share: where the vector is on for flagged prompts alone, the share of harmless ones that
    may be flagged. n_choosing, n_confirming: prompts of each class at most; n_least: at least, and
    of the requests that directions are made from.
    """

    kl_limit: float = 0.1
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    gate_share: float = 0.1
    n_choosing: int = 36
    n_confirming: int = 60
    n_least: int = 8
    n_tokens: int = 16
    n_finalists: int = 6
    seed: int = 0


@dataclass(frozen=True, slots=True)
class VectorCandidate:
    """One way to steer. gate: the prompt's score above which it is on; None: always."""

    form: VectorForm
    sign: Literal[1, -1]
    layers: tuple[int, int]
    scale: float
    gate: float | None = None

    def directions(self, by_form: Mapping[VectorForm, Directions]) -> Directions:
        """What is added to the blocks' outputs, float32 (n_layer, n_embd)."""
        return on_band(by_form[self.form], self.layers, self.sign * self.scale)

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        gate = None if self.gate is None else round(self.gate, 6)
        return {
            "form": self.form,
            "sign": self.sign,
            "layers": list(self.layers),
            "scale": self.scale,
            "gate": gate,
        }


def part_of(request: Request, seed: int = 0) -> Part:
    """Which part a request belongs to; both of a pair to the same: 60, 20 and 20 %."""
    share = _share_of(request, f"vector {seed}")
    return "making" if share < 0.6 else "choosing" if share < 0.8 else "confirming"


def prompts_of(prompts: Sequence[Prompt], part: Part, n: int, seed: int) -> list[Prompt]:
    """At most n harmful and n harmless or ordinary prompts of a part, drawn by their names.

    The n others are harmless twins as far as there are any, and at least a third ordinary ones.
    """
    mixed = sorted(prompts, key=lambda prompt: _share_of(prompt[0], f"order {seed}"))
    own = [prompt for prompt in mixed if part_of(prompt[0], seed) == part]
    harmful = [prompt for prompt in own if prompt[0].label == "harmful"][:n]
    ordinary = [prompt for prompt in own if prompt[0].label == "ordinary"][: max(1, n // 3)]
    twins = [prompt for prompt in own if prompt[0].label == "harmless"][: n - len(ordinary)]
    return [*harmful, *twins, *ordinary]


def vector_candidates(
    by_form: Mapping[VectorForm, Directions],
    layers: tuple[int, ...],
    residual_norms: Sequence[float],
    settings: VectorSettings,
) -> list[VectorCandidate]:
    """Every form, sign, range of blocks and scale that a bundle may hold; without a gate."""
    norms = np.asarray(residual_norms)
    found: list[VectorCandidate] = []
    for form in by_form:
        for band in bands_for(layers):
            for sign in _SIGNS:
                for scale in settings.scales:
                    candidate = VectorCandidate(form, sign, band, scale)
                    lengths = np.linalg.norm(candidate.directions(by_form), axis=1)
                    if lengths.any() and bool((lengths <= MAX_VECTOR_RATIO * norms).all()):
                        found.append(candidate)
    return found


def _share_of(request: Request, purpose: str) -> float:
    name = request.pair_id or request.id
    digest = hashlib.sha256(f"{purpose} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
