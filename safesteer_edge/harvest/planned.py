"""Which requests are harvested in which carriers, and which of them are answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from safesteer_edge.formats.model_file import ModelInfo, check_language_model, check_projector_fits
from safesteer_edge.harvest.answers import AnswerKind, HarvestPlan, forced_texts
from safesteer_edge.harvest.cache import HarvestSettings, StateShape
from safesteer_edge.harvest.carriers import Carrier, carriers_of
from safesteer_edge.requests.requests import LABELS, Label, Request, lot_of
from safesteer_edge.session.choice import choose_model

# Of the package's requests: enough for a vector and for false alarms, in some minutes. A user's few
# are all drawn, and both of a pair.
_DRAWN_SHARES: Final[dict[Label, float]] = {
    "harmful": 0.3,
    "harmless": 0.3,
    "borderline": 0.1,
    "ordinary": 0.1,
}
_BESIDE_SHARE: Final = 0.15
# Among other words too, and of those without answers in place of the plain text.
_WRAPPED_SHARE: Final = 0.25
_WRAPPED_SHARE_UNANSWERED: Final = 0.5
_DRAWN_WHOLE: Final = 300


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request in one carrier. is_answered: False: only its prompt is read."""

    request: Request
    carrier: Carrier
    is_answered: bool = True

    def texts(self, plan: HarvestPlan) -> tuple[tuple[AnswerKind, str], ...]:
        """See `forced_texts`."""
        return forced_texts(self.request, self.carrier, plan, is_answered=self.is_answered)

    def n_bytes_at_most(self, plan: HarvestPlan, shape: StateShape) -> int:
        """At most, of its file in the cache."""
        lengths = [plan.n_tokens(kind, self.carrier) for kind, _ in self.texts(plan)]
        return sum(shape.n_bytes(length + 1) for length in lengths) + 4096


def planned_requests(
    settings: HarvestSettings, requests: Sequence[Request]
) -> tuple[ModelInfo, list[PlannedRequest]]:
    """The model, and each request with each way in which it takes it. Loads nothing."""
    choice = choose_model(settings.session.model)
    info = check_language_model(choice.path)
    mmproj = settings.session.mmproj or choice.mmproj
    projector = check_projector_fits(mmproj, info) if mmproj is not None else None
    sees = projector is not None and projector.has_vision
    hears = settings.hears and projector is not None and projector.has_audio
    answered = answered_ids(requests, settings.plan)
    is_few = len(requests) <= _DRAWN_WHOLE
    planned = [
        PlannedRequest(
            request, carrier, is_answered=request.id in answered and carrier != "wrapped"
        )
        for request in requests
        for carrier in _carriers(
            request,
            carriers_of(
                request,
                sees=sees,
                hears=hears,
                is_drawn=is_few or _share("drawn", request) < _DRAWN_SHARES[request.label],
                is_beside=is_few or _share("beside", request) < _BESIDE_SHARE,
            ),
            is_few=is_few,
            is_answered=request.id in answered,
        )
    ]
    return info, planned


def _carriers(
    request: Request, possible: Sequence[Carrier], *, is_few: bool, is_answered: bool
) -> Sequence[Carrier]:
    """Those of the possible ones that are harvested; each is a way to ask, if not to be answered.

    Without an answer a request is read in one way: plain, or among other words. A few requests
    do not tell how much other words matter, and come plain.
    """
    wrapped = _share("wrapped", request)
    if is_answered:
        is_wrapped = "text" in possible and not is_few and wrapped < _WRAPPED_SHARE
        return (*possible, "wrapped") if is_wrapped else possible
    is_wrapped = possible[:1] == ("text",) and not is_few and wrapped < _WRAPPED_SHARE_UNANSWERED
    return ("wrapped",) if is_wrapped else possible[:1]


def answered_ids(requests: Sequence[Request], plan: HarvestPlan) -> frozenset[str]:
    """The requests that are answered: at most `plan.n_answers` of a label, those with media always.

    Drawn by a hash of the request alone, or of its pair: both sides are answered, or neither.
    """
    with_media = [request for request in requests if request.image or request.audio]
    ids = {request.id for request in with_media}
    for label in LABELS:
        ours = [each for each in requests if each.label == label and each.id not in ids]
        ours.sort(key=lambda request: lot_of(f"answered {request.pair_id or request.id}"))
        ids.update(request.id for request in ours[: plan.n_answers(label)])
    return frozenset(ids)


def _share(purpose: str, request: Request) -> float:
    """A number in [0, 1) of the request alone."""
    return lot_of(f"{purpose} {request.id}") / 2**32
