"""Which requests are harvested, in which carriers, and under which keys their states are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.atomic_write import hash_file
from safesteer_edge.formats.model_file import ModelInfo, check_language_model, check_projector_fits
from safesteer_edge.harvest.answers import (
    AnswerKind,
    HarvestPlan,
    Piece,
    forced_texts,
)
from safesteer_edge.harvest.cache import HarvestSettings, StateShape
from safesteer_edge.harvest.carriers import (
    TEXT_CARRIERS,
    Carrier,
    carriers_of,
    earlier_messages,
    page_fonts,
    written_words,
)
from safesteer_edge.library.memory_plan import in_mib
from safesteer_edge.requests.requests import LABELS, TRANSLATED, Label, Request, lot_of
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.runtime import Runtime

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
_WRAPPED_SHARE_IN_BATCHES: Final = 0.5  # beside the plain text: how it is put must say nothing
# So many of these are answered where the plain text is: what is said must be judged best where the
# prompt does not show the harm, and limits that know plain questions alone alarm at other words.
_WRAPPED_SHARE_ANSWERED: Final = 0.5
# In batches, some also as what somebody in a role is asked for: most of what people have models
# play is harmless, and so are attacks to a probe that has met no other role.
_PLAYED_SHARE: Final = 0.15
# Where requests are read in batches also behind an exchange about something else, and all of those
# that people make of what was said: "Go on." was harmful to a probe of first messages alone.
_LATER_SHARE: Final = 0.15
_LATER_GROUP: Final = "follow_up"
_DRAWN_WHOLE: Final = 300


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request in one carrier. is_answered: False: only its prompt is read.

    key: of its file in the cache, a hash of all that decides the file's content. piece: of its
    answers, where text is harvested in batches.
    """

    request: Request
    carrier: Carrier
    is_answered: bool = True
    key: str = ""
    piece: Piece = "whole"

    def texts(self, plan: HarvestPlan) -> tuple[tuple[AnswerKind, str], ...]:
        """See `forced_texts`."""
        return forced_texts(
            self.request, self.carrier, plan, is_answered=self.is_answered, piece=self.piece
        )

    def n_bytes_at_most(self, plan: HarvestPlan, shape: StateShape) -> int:
        """At most, of its file in the cache."""
        lengths = [plan.n_tokens(kind, self.carrier) for kind, _ in self.texts(plan)]
        return sum(shape.n_bytes(length + 2) for length in lengths) + 4096


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
    answered, plan = answered_ids(requests, settings.plan), settings.plan
    is_few = len(requests) <= _DRAWN_WHOLE
    requests = requests_read(requests, plan)
    planned = [
        PlannedRequest(
            request,
            carrier,
            is_answered=request.id in answered and carrier not in ("wrapped", "played", "later"),
        )
        for request in requests
        for carrier in _carriers(
            request,
            carriers_of(
                request,
                sees=sees,
                hears=hears,
                is_drawn=plan.draws
                and (is_few or _share("drawn", request) < _DRAWN_SHARES[request.label]),
                is_beside=plan.draws and (is_few or _share("beside", request) < _BESIDE_SHARE),
            ),
            is_plain=is_few or not plan.wraps,
            # In batches a request is read plain whether or not it is answered.
            is_answered=request.id in answered or plan.in_batches,
            wrapped_share=_WRAPPED_SHARE_IN_BATCHES if plan.in_batches else _WRAPPED_SHARE,
            played_share=_PLAYED_SHARE if plan.in_batches else 0.0,
            later_share=_LATER_SHARE if plan.in_batches else 0.0,
        )
    ]
    if plan.in_batches:
        planned = [piece for each in planned for piece in _pieces(each, answered)]
    return info, planned


def requests_read(requests: Sequence[Request], plan: HarvestPlan) -> list[Request]:
    """Those of which there is anything at all, drawn as `answered_ids` draws, in their order.

    What a smaller plan reads is part of what a larger one does.
    """
    ids = {request.id for request in requests if request.image or request.audio}
    for label in LABELS:
        ours = _by_lot(r for r in requests if r.label == label and not r.is_translated)
        ids.update(request.id for request in ours[: plan.n_requests(label)])
        for language in TRANSLATED:
            ours = _by_lot(r for r in requests if r.label == label and _is_in(language, r))
            ids.update(request.id for request in ours[: plan.n_read_translated])
    return [request for request in requests if request.id in ids]


def _is_in(language: str, request: Request) -> bool:
    return request.is_translated and request.language == language


def _by_lot(requests: Iterable[Request]) -> list[Request]:
    return sorted(requests, key=turn_of)


def turn_of(request: Request) -> int:
    """By which requests are drawn, the smallest first: of both of a pair the same."""
    return lot_of(f"answered {request.pair_id or request.id}")


def _pieces(planned: PlannedRequest, answered: Collection[str]) -> list[PlannedRequest]:
    """What is known beforehand, of each text; the own answer, of those that are answered."""
    is_answered = planned.request.id in answered
    if planned.carrier not in TEXT_CARRIERS:
        return [planned] if is_answered else []
    known = replace(planned, piece="known", is_answered=planned.carrier == "text")
    is_wrapped = planned.carrier == "wrapped"
    if is_wrapped and _share("wrapped answer", planned.request) >= _WRAPPED_SHARE_ANSWERED:
        return [known]
    if not is_answered or not (is_wrapped or planned.carrier == "text"):
        return [known]
    return [known, replace(planned, piece="own", is_answered=True)]


def _carriers(
    request: Request,
    possible: Sequence[Carrier],
    *,
    is_plain: bool,
    is_answered: bool,
    wrapped_share: float,
    played_share: float,
    later_share: float,
) -> Sequence[Carrier]:
    """Those of the possible ones that are harvested; each is a way to ask, if not to be answered.

    Without an answer a request is read in one way: plain, or among other words. A few requests
    do not tell how much other words matter, and come plain.
    """
    wrapped = _share("wrapped", request)
    if is_answered:
        if "text" not in possible or is_plain:
            return possible
        is_follow_up = request.group == _LATER_GROUP
        is_played = lot_of(f"played {request.pair_id or request.id}") / 2**32 < played_share
        return (
            *possible,
            *(("wrapped",) if wrapped < wrapped_share and not is_follow_up else ()),
            *(("played",) if is_played and not is_follow_up else ()),
            *(("later",) if _share("later", request) < later_share or is_follow_up else ()),
        )
    is_wrapped = possible[:1] == ("text",) and not is_plain and wrapped < _WRAPPED_SHARE_UNANSWERED
    return ("wrapped",) if is_wrapped else possible[:1]


def answered_ids(requests: Sequence[Request], plan: HarvestPlan) -> frozenset[str]:
    """The requests that are answered: at most `plan.n_answers` of a label, those with media always.

    Drawn by a hash of the request alone, or of its pair: both sides are answered, or neither.
    """
    with_media = [request for request in requests if request.image or request.audio]
    ids = {request.id for request in with_media}
    for label in LABELS:
        ours = _by_lot(
            each
            for each in requests
            if each.label == label and each.id not in ids and not each.is_translated
        )
        ids.update(request.id for request in ours[: plan.n_answers(label)])
    return frozenset(ids)


def _share(purpose: str, request: Request) -> float:
    """A number in [0, 1) of the request alone."""
    return lot_of(f"{purpose} {request.id}") / 2**32


# -- what a harvest consists of: units, their keys, and the layers whose states they keep ----------
# A unit is one request in one carrier. Its key hashes all that decides the content of its file.

_FORMAT: Final = 3  # of what an answer is: change it when harvesting gives other states


def layers_within(
    settings: HarvestSettings, info: ModelInfo, planned: Sequence[PlannedRequest]
) -> tuple[int, ...]:
    """All inner layers, or every second, third … of them, so that the cache holds their states."""
    n_bytes = 0
    for step in range(1, info.n_layer + 1):
        layers = sorted({*range(0, max(1, info.n_layer - 1), step), *settings.tail_layers})
        shape = StateShape(tuple(layers), settings.tail_layers, info.n_embd)
        n_bytes = sum(each.n_bytes_at_most(settings.plan, shape) for each in planned)
        if n_bytes <= settings.limit_bytes:
            return shape.layers
    raise SettingsError(
        f"the states of {len(planned)} requests take {in_mib(n_bytes)}, and the cache may hold "
        f"{in_mib(settings.limit_bytes)}; raise --cache-limit, or give fewer requests"
    )


def key_base(settings: HarvestSettings, runtime: Runtime, shape: StateShape) -> dict[str, Any]:
    """What decides the states of every request alike, for `key_of`. Hashes the files."""
    return {
        "format": _FORMAT,
        "model": hash_file(runtime.info.path),
        "template": hashlib.sha256(runtime.template.source.encode()).hexdigest(),
        "route": runtime.route.name if runtime.route else None,
        "gpu_layers": runtime.plan.n_gpu_layers,
        "kv_type": settings.session.kv_type,
        "layers": shape.layers,
        "tail_layers": shape.tail_layers,
        "projector": hash_file(runtime.mmproj) if runtime.mmproj else None,
    }


def key_of(
    base: dict[str, Any], plan: HarvestPlan, planned: PlannedRequest, runtime: Runtime
) -> str:
    """The name of a unit's file in the cache: a hash of all that decides its content."""
    request, carrier = planned.request, planned.carrier
    texts = planned.texts(plan)
    entry = {
        **base,
        "plan": [plan.n_tokens(kind, carrier) for kind, _ in texts],
        "request": [request.id, request.pair_id, request.text, request.label],
        "texts": texts,
        "carrier": carrier,
    }
    if planned.piece != "whole":
        entry["piece"] = planned.piece
    own_file = request.image or request.audio
    if carrier in ("wrapped", "played", "beside"):
        entry["words"] = written_words(request, carrier)
    if carrier == "later":
        entry["earlier"] = [message.text for message in earlier_messages(request, carrier)]
    if carrier in TEXT_CARRIERS:
        del entry["projector"]  # another one answers text alike
    elif own_file is not None:
        entry["file"] = hash_file(own_file)
    else:
        entry["fonts"] = [path.name if path else "" for path in page_fonts()]
        entry["side"] = runtime.media_decoder.fit.square_side
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:40]
