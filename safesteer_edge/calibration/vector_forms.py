"""The forms of the alignment vector that are compared: directions from pairs of prompt states.

Each pair is one request, as text and carried in media; its difference h_text − h_media says where
the text-borne prompt lies. All forms have the length of the mean difference, so that a scale of 1
means the whole drift; over several blocks each gets its share, as what one adds reaches the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import MAX_VECTOR_RATIO
from safesteer_edge.harvest.carriers import Carrier
from safesteer_edge.harvest.vector_trial import Directions
from safesteer_edge.requests.requests import Request

VectorForm = Literal["mean", "drift-removed", "principal"]
VECTOR_FORMS: Final[tuple[VectorForm, ...]] = ("mean", "drift-removed", "principal")
_TINY: Final = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class StatePairs:
    """Last prompt positions: float32 (n_pairs, n_layers, n_embd) each; row for row one request.

    layers: whose block outputs these are. is_harmful: bool (n_pairs,).
    """

    layers: tuple[int, ...]
    text: NDArray[np.float32]
    media: NDArray[np.float32]
    is_harmful: NDArray[np.bool_]

    @property
    def differences(self) -> NDArray[np.float64]:
        """Text less media: float64 (n_pairs, n_layers, n_embd)."""
        return self.text.astype(np.float64) - self.media


def make_directions(pairs: StatePairs, form: VectorForm, n_layer: int) -> NDArray[np.float32]:
    """A direction for each block: float32 (n_layer, n_embd), zero where there is no state.

    mean: the mean difference. drift-removed: that of the harmful pairs less that of the others, so
    that ordinary picture chat is not moved. principal: the first principal direction of the
    differences, turned the mean's way.
    """
    differences = pairs.differences
    mean = differences.mean(axis=0)
    if form == "mean":
        rows = mean
    elif form == "drift-removed":
        harmful = differences[pairs.is_harmful].mean(axis=0)
        rows = _with_length(harmful - differences[~pairs.is_harmful].mean(axis=0), mean)
    else:
        rows = _with_length(_principal(differences, mean), mean)
    directions = np.zeros((n_layer, mean.shape[1]), dtype=np.float32)
    for layer, row in zip(pairs.layers, rows, strict=True):
        if layer > 0:  # llama.cpp cannot steer the first block
            directions[layer] = row
    return directions


def on_band(
    directions: NDArray[np.float32], band: tuple[int, int], scale: float
) -> NDArray[np.float32]:
    """The directions of blocks first … last, each times its share of `scale`; zero elsewhere."""
    first, last = band
    steered = np.zeros_like(directions)
    n_steered = max(1, int(np.count_nonzero(directions[first : last + 1].any(axis=1))))
    steered[first : last + 1] = directions[first : last + 1] * np.float32(scale / n_steered)
    return steered


def bands_for(layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Ranges of blocks to try, both ends included: before the middle, after it, and both."""
    steerable = [layer for layer in layers if layer > 0]
    if not steerable:
        return ()
    top = steerable[-1]

    def block(share: float) -> int:
        return min(top, max(steerable[0], round(share * (top + 1))))

    bands = [(block(a), block(b)) for a, b in ((0.2, 0.45), (0.45, 0.75), (0.2, 0.75))]
    return tuple(dict.fromkeys(bands))


def _with_length(rows: NDArray[np.float64], like: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row, as long as the same row of `like`."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = np.linalg.norm(like, axis=1, keepdims=True)
    return np.where(lengths > _TINY, rows * (wanted / np.maximum(lengths, _TINY)), 0.0)


def _principal(differences: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.empty_like(mean)
    for layer in range(differences.shape[1]):
        # Not centred: what all pairs share is the drift that the vector is to undo.
        _, _, right = np.linalg.svd(differences[:, layer], full_matrices=False)
        rows[layer] = right[0] * (1.0 if right[0] @ mean[layer] >= 0 else -1.0)
    return rows


# -- ways to steer that a calibration tries, and which requests it tries them on -------------------

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
