"""How well states tell harmful from harmless: what a probe could find, and what a given one finds.

At each layer and step a linear discriminant (shrunk covariance) is made from the answers to 60 % of
the requests and tried on the others. Step 0 is the prompt's last position, where harmful requests
are told from all others; at steps 1 to 16 it is answers that comply with a harmful request.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.vector_fit import part_of
from safesteer_edge.errors import ProbeFileError
from safesteer_edge.harvest.answers import HarvestedAnswer, decode_answer
from safesteer_edge.harvest.cache import N_EARLY_STATES
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS, TEXT_CARRIERS
from safesteer_edge.harvest.run import Harvest, Progress
from safesteer_edge.metrics.statistics import auroc, auroc_interval
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.requests.requests import Label, Request, load_requests, lot_of, spread
from safesteer_edge.requests.wordings import openings
from safesteer_edge.session.prompt import question_items
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings

_SHRINKAGE: Final = 0.2
_DIGITS: Final = 4


def separation_by_layer(
    harvested: Harvest, progress: Progress, layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """JSON: {"text" | "media": {"layers": […], "auroc": [layer][step], "n": [step][harmful, not]}}.

    layers: None: all. A step that too few answers reach has null. Cost for the embedded default:
    a minute.
    """
    layers = harvested.shape.layers if layers is None else layers
    tables: dict[str, dict[str, Any]] = {}
    for n_done, layer in enumerate(layers, start=1):
        answers = harvested.answers((layer,), n_rows=N_EARLY_STATES)
        for name in ("text", "media"):
            # What stands in words beside a picture is neither.
            carried = [a for a in answers if a.carrier != "beside"]
            chosen = [a for a in carried if (a.carrier in TEXT_CARRIERS) == (name == "text")]
            if not chosen:
                continue
            table = tables.setdefault(name, {"layers": [], "auroc": [], "n": []})
            values, counts = _by_step(chosen)
            table["layers"].append(layer)
            table["auroc"].append(values)
            table["n"] = counts
        progress("comparing layers", n_done, len(layers))
    return tables


def _by_step(answers: Sequence[HarvestedAnswer]) -> tuple[list[float | None], list[list[int]]]:
    made_from, tried_on = _parts(answers)
    values: list[float | None] = []
    counts: list[list[int]] = []
    whole, at_prompt = _discriminant(made_from), _discriminant(made_from, step=0)
    for step in range(N_EARLY_STATES):
        value, n = _auroc_along(whole if step else at_prompt, tried_on, step)
        values.append(None if value is None else round(value, _DIGITS))
        counts.append(n)
    return values, counts


def _parts(
    answers: Sequence[HarvestedAnswer],
) -> tuple[list[HarvestedAnswer], list[HarvestedAnswer]]:
    """What a discriminant is made from, and what it is tried on."""
    made_from = [answer for answer in answers if part_of(answer.request) == "making"]
    return made_from, [answer for answer in answers if part_of(answer.request) != "making"]


def _auroc_along(
    direction: NDArray[np.float64] | None, answers: Sequence[HarvestedAnswer], step: int
) -> tuple[float | None, list[int]]:
    """How well the direction tells the states apart, None where it cannot; [harmful, not]."""
    states, labels = _rows(answers, step)
    n = [int(labels.sum()), int((labels == 0).sum())]
    if direction is None or not min(n):
        return None, n
    along = states @ direction
    return auroc(along[labels == 1], along[labels == 0]), n


def _discriminant(
    answers: Sequence[HarvestedAnswer], step: int | None = None
) -> NDArray[np.float64] | None:
    """Where harmful states lie from the others, the common spread divided out; None: one class."""
    parts = [
        _rows(answers, at) for at in ([step] if step is not None else range(1, N_EARLY_STATES))
    ]
    states = np.concatenate([rows for rows, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    if labels.min(initial=1) == labels.max(initial=0):
        return None
    means = [states[labels == label].mean(axis=0) for label in (0, 1)]
    for label, mean in enumerate(means):
        states[labels == label] -= mean
    spread = states.T @ states / len(states)
    diagonal = np.diag(spread).copy()
    spread *= 1.0 - _SHRINKAGE
    spread[np.diag_indices_from(spread)] += _SHRINKAGE * diagonal + 1e-6 * diagonal.mean() + 1e-9
    return np.linalg.solve(spread, means[1] - means[0])


def _rows(
    answers: Sequence[HarvestedAnswer], step: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """States at one step and their labels, of the answers that are so long."""
    if step == 0:
        kept = [answer for answer in answers if answer.kind == "own"]
        labels = [int(answer.request.label == "harmful") for answer in kept]
    else:
        kept = [answer for answer in answers if len(answer.states) > step]
        labels = [answer.label for answer in kept]
    n_features = answers[0].states.shape[1] if answers else 0
    states = np.array([answer.states[step] for answer in kept], dtype=np.float64)
    return states.reshape(len(kept), n_features), np.array(labels, dtype=np.int64)


# -- whether a model understands what its pictures ask: else its answers to them teach a probe wrong
# Harmful requests and their harmless twins, drawn alike with the same words beside them, differ
# only in what the picture says. If the prompt's states do not tell them apart, an answer to the
# harmful one is about nothing harmful, and labelling it so would spoil the probe for text.


def reading_of_media(harvested: Harvest, layers: Sequence[int]) -> dict[str, Any]:
    """JSON: {"understood", "auroc", "interval", "n": [harmful, harmless]}; {} if nothing was drawn.

    auroc: the median over these layers, of requests that took no part in the discriminant.
    understood: its 95 % interval is above 0.5.
    """
    if not any(unit.carrier in DRAWN_CARRIERS for unit in harvested.units):
        return {}
    values: list[float] = []
    counts = [0, 0]
    for layer in layers:
        answers = harvested.answers(
            (layer,),
            carriers=DRAWN_CARRIERS,
            kinds=("own",),
            n_rows=1,
            wanted=lambda request: request.label in ("harmful", "harmless"),
        )
        made_from, tried_on = _parts(answers)
        value, counts = _auroc_along(_discriminant(made_from, step=0), tried_on, 0)
        if value is None:
            return {"understood": False, "auroc": None, "interval": [0.0, 1.0], "n": counts}
        values.append(value)
    value = float(np.median(values))
    low, high = auroc_interval(value, *counts)
    return {
        "understood": low > 0.5,
        "auroc": round(value, _DIGITS),
        "interval": [round(low, _DIGITS), round(high, _DIGITS)],
        "n": counts,
    }


# -- whether a probe that was made elsewhere separates this model's states, and at which blocks ----
# Requests of the calibration split are read as the guard reads them, on the decode path, each with
# the same kind of opening put into the model's mouth, so that nothing but the request differs: a
# probe may have been trained on prompts or on answers, and is judged where it separates better.

COUNTS: Final[dict[Label, int]] = {"harmful": 64, "ordinary": 64, "borderline": 64}
N_TOKENS: Final = 4
# The lower ends of the intervals, which AUROCs of 0.83 and 0.65 reach. A direction drawn at random
# separates harmful prompts from ordinary ones by 0.5 ± 0.11: of 5,000 on SmolLM2-135M and
# Qwen2.5-0.5B, one in a hundred reaches 0.75, and none both.
MIN_ORDINARY: Final = 0.75
MIN_BORDERLINE: Final = 0.55
WORTH_A_WARNING: Final = 0.03


@dataclass(frozen=True, slots=True)
class PlaceSeparation:
    """AUROC of harmful requests' scores against others', at one place, with 95 % intervals.

    place: "prompt", its last position, or "answer", the mean over its first tokens.
    """

    place: str
    ordinary: float
    ordinary_95: tuple[float, float]
    borderline: float
    borderline_95: tuple[float, float]

    @property
    def is_enough(self) -> bool:
        """It is surely more than chance gives. Written so that a NaN is not."""
        return self.ordinary_95[0] >= MIN_ORDINARY and self.borderline_95[0] >= MIN_BORDERLINE

    def __str__(self) -> str:
        return (
            f"AUROC {self.ordinary:.3f} against ordinary and {self.borderline:.3f} against "
            f"borderline requests at the {self.place}"
        )


@dataclass(frozen=True, slots=True)
class ProbeSeparation:
    """places: at the declared layers. better: (layers, AUROC) where the same probe does better."""

    layers: tuple[int, ...]
    places: tuple[PlaceSeparation, ...]
    better: tuple[tuple[int, ...], float] | None = None

    @property
    def best(self) -> PlaceSeparation:
        """The place where it separates harmful from ordinary requests better."""
        return max(self.places, key=lambda place: place.ordinary)

    def to_json(self) -> dict[str, Any]:
        """For a bundle's figures."""
        return {
            place.place: {
                "against_ordinary": round(place.ordinary, 4),
                "against_borderline": round(place.borderline, 4),
                "interval_ordinary": [round(end, 4) for end in place.ordinary_95],
                "interval_borderline": [round(end, 4) for end in place.borderline_95],
            }
            for place in self.places
        } | {"n": dict(COUNTS)}


def measure_separation(
    session: SessionSettings,
    probe: OnnxProbe,
    layers: tuple[int, ...],
    n_layer: int,
    progress: Progress,
) -> ProbeSeparation:
    """Score some 190 requests and the beginnings of answers to them; the model is loaded once.

    layers: the declared ones. Where they are blocks, the same probe is tried on the blocks that
    lie equally much higher or lower as well. session: with its guard off.
    Cost: a prompt and four tokens each, a minute for the embedded default.
    """
    requests = spread(load_requests(splits=("calibration",), labels=tuple(COUNTS)), COUNTS)
    scores = dict[tuple[int, ...], list[NDArray[np.float32]]]()
    are_blocks = max(layers) < n_layer
    with closing(open_runtime(session, layers=range(n_layer) if are_blocks else layers)) as runtime:
        for n_done, request in enumerate(requests, start=1):
            states = _states(runtime, request)
            for tried in _shifted(layers, n_layer) if are_blocks else (layers,):
                read = states if not are_blocks else _joined(states, tried, n_layer)
                scores.setdefault(tried, []).append(probe.score(read))
            progress("measuring separation", n_done, len(requests))
    labels: list[Label] = [request.label for request in requests]
    places = _places(scores[layers], labels)
    best = max(places, key=lambda place: place.ordinary)
    at_others = {
        tried: next(p for p in _places(rows, labels) if p.place == best.place).ordinary
        for tried, rows in scores.items()
    }
    better = max(at_others, key=lambda tried: at_others[tried])
    is_better = at_others[better] >= best.ordinary + WORTH_A_WARNING
    return ProbeSeparation(layers, places, (better, at_others[better]) if is_better else None)


def require_separation(found: ProbeSeparation, name: str) -> None:
    """Refuse a probe that tells nothing apart, or the wrong way round. Raises ProbeFileError."""
    if any(place.is_enough for place in found.places):
        return
    said = f"{name!r} on layers {list(found.layers)}: {'; '.join(map(str, found.places))}"
    if any(place.ordinary_95[1] < 0.5 for place in found.places):
        raise ProbeFileError(
            f"the probe scores harmful requests BELOW others, {said}; if its score falls with "
            "harm, convert it again with 'safesteer-edge convert probe --flip'"
        )
    better = found.better
    elsewhere = f"; on layers {list(better[0])} it is {better[1]:.3f}" if better else ""
    raise ProbeFileError(
        f"the probe does not separate harmful requests from others, {said}{elsewhere}; expected "
        f"at least {MIN_ORDINARY} and {MIN_BORDERLINE} with 95 % confidence: check the layers, and "
        "that it was trained on this model"
    )


def _states(runtime: Runtime, request: Request) -> NDArray[np.float32]:
    """At the prompt's end and at each token of an opening: float32 (1 + N_TOKENS, n_features)."""
    items = question_items(request.text, template=runtime.template, model=runtime.model)
    (text,) = openings("compliance", lot_of(request.id), split=request.split)
    return decode_answer(runtime, items, n_tokens=N_TOKENS, forced_text=text).states


def _shifted(layers: tuple[int, ...], n_layer: int) -> list[tuple[int, ...]]:
    """The layers themselves, and as many blocks higher or lower as there is room for."""
    shifts = range(-min(layers), n_layer - max(layers))
    return [tuple(layer + shift for layer in layers) for shift in shifts]


def _joined(
    states: NDArray[np.float32], layers: Sequence[int], n_layer: int
) -> NDArray[np.float32]:
    rows = states.reshape(len(states), n_layer, -1)
    return np.ascontiguousarray(rows[:, list(layers)].reshape(len(states), -1))


def _places(
    scores: Sequence[NDArray[np.float32]], labels: Sequence[Label]
) -> tuple[PlaceSeparation, ...]:
    """scores: of each request, the prompt's first."""
    found: list[PlaceSeparation] = []
    for place, values in (
        ("prompt", [float(row[0]) for row in scores]),
        ("answer", [float(row[1:].mean()) if len(row) > 1 else float(row[0]) for row in scores]),
    ):
        by_label = {
            label: np.array([v for v, at in zip(values, labels, strict=True) if at == label])
            for label in COUNTS
        }
        areas: list[tuple[float, tuple[float, float]]] = []
        for label in ("ordinary", "borderline"):
            harmful, others = by_label["harmful"], by_label[label]
            value = auroc(harmful, others)
            areas.append((value, auroc_interval(value, len(harmful), len(others))))
        found.append(PlaceSeparation(place, *areas[0], *areas[1]))
    return tuple(found)
