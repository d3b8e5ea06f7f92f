"""What a harvest consists of: its settings, each request with its carriers, and their keys.

A unit is one request in one carrier. Its key hashes all that decides the content of its file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safesteer_edge.calibration.carriers import Carrier, carriers_of
from safesteer_edge.calibration.harvest import AnswerKind, HarvestPlan, forced_texts
from safesteer_edge.calibration.harvest_cache import DEFAULT_LIMIT_BYTES, StateShape
from safesteer_edge.calibration.page_fonts import page_fonts
from safesteer_edge.calibration.requests_data import LABELS, Label, Request
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.file_sha256 import file_sha256
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.memory.plan import in_mib
from safesteer_edge.model_choice import check_projector_fits, choose_model
from safesteer_edge.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.runtime import Runtime

_FORMAT: Final = 2  # of what an answer is: change it when harvesting gives other states
# Of the package's requests: enough for a vector and for false alarms, in some minutes. A user's few
# are all drawn, and both of a pair.
_DRAWN_SHARES: Final[dict[Label, float]] = {
    "harmful": 0.3,
    "harmless": 0.3,
    "borderline": 0.12,
    "ordinary": 0.12,
}
_BESIDE_SHARE: Final = 0.25
_DRAWN_WHOLE: Final = 300


@dataclass(frozen=True, slots=True)
class HarvestSettings:
    """session: unguarded, with the projector that is to be used. plan: lengths of answers.

    tail_layers: layers that a probe may read at late positions. hears: recordings are played.
    cache: None is the user's. n_workers: processes at once, on the CPU.
    """

    session: SessionSettings
    plan: HarvestPlan
    tail_layers: tuple[int, ...]
    hears: bool = False
    cache: Path | None = None
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    n_workers: int = 1


@dataclass(frozen=True, slots=True)
class CarriedRequest:
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


@dataclass(frozen=True, slots=True)
class HarvestUnit:
    """What is harvested at a time. key: of its file in the cache."""

    carried: CarriedRequest
    key: str

    @property
    def request(self) -> Request:
        """The request."""
        return self.carried.request

    @property
    def carrier(self) -> Carrier:
        """How it reaches the model."""
        return self.carried.carrier


def carried_requests(
    settings: HarvestSettings, requests: Sequence[Request]
) -> tuple[ModelInfo, list[CarriedRequest]]:
    """The model, and each request with each way in which it takes it. Loads nothing."""
    choice = choose_model(settings.session.model)
    info = check_language_model(choice.path)
    mmproj = settings.session.mmproj or choice.mmproj
    projector = check_projector_fits(mmproj, info) if mmproj is not None else None
    sees = projector is not None and projector.has_vision
    hears = settings.hears and projector is not None and projector.has_audio
    answered = answered_ids(requests, settings.plan.n_answered)
    is_few = len(requests) <= _DRAWN_WHOLE
    carried = [
        CarriedRequest(request, carrier, is_answered=request.id in answered)
        for request in requests
        for carrier in carriers_of(
            request,
            sees=sees,
            hears=hears,
            is_drawn=request.id in answered
            and (is_few or _share("drawn", request) < _DRAWN_SHARES[request.label]),
            is_beside=request.id in answered
            and (is_few or _share("beside", request) < _BESIDE_SHARE),
        )
    ]
    return info, carried


def answered_ids(requests: Sequence[Request], n_of_each: int) -> frozenset[str]:
    """The requests that are answered: at most so many of each label, those with media always.

    Drawn by a hash of the request alone, or of its pair: both sides are answered, or neither.
    """
    with_media = [request for request in requests if request.image or request.audio]
    ids = {request.id for request in with_media}
    for label in LABELS:
        ours = [each for each in requests if each.label == label and each.id not in ids]
        ours.sort(key=lambda request: _lot("answered", request.pair_id or request.id))
        ids.update(request.id for request in ours[:n_of_each])
    return frozenset(ids)


def layers_within(
    settings: HarvestSettings, info: ModelInfo, carried: Sequence[CarriedRequest]
) -> tuple[int, ...]:
    """All inner layers, or every second, third … of them, so that the cache holds their states."""
    n_bytes = 0
    for step in range(1, info.n_layer + 1):
        layers = sorted({*range(0, max(1, info.n_layer - 1), step), *settings.tail_layers})
        shape = StateShape(tuple(layers), settings.tail_layers, info.n_embd)
        n_bytes = sum(each.n_bytes_at_most(settings.plan, shape) for each in carried)
        if n_bytes <= settings.limit_bytes:
            return shape.layers
    raise SettingsError(
        f"the states of {len(carried)} requests take {in_mib(n_bytes)}, and the cache may hold "
        f"{in_mib(settings.limit_bytes)}; raise --cache-limit, or give fewer requests"
    )


def _share(purpose: str, request: Request) -> float:
    """A number in [0, 1) of the request alone."""
    return _lot(purpose, request.id) / 2**32


def _lot(purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose} {name}".encode()).digest()[:4], "big")


def units_of(
    settings: HarvestSettings,
    carried: Sequence[CarriedRequest],
    runtime: Runtime,
    shape: StateShape,
) -> tuple[HarvestUnit, ...]:
    """In an order that mixes kinds and carriers, so that the time left can be told."""
    base = _key_base(settings, runtime, shape)
    units = [HarvestUnit(each, _key(base, each, runtime)) for each in carried]
    return tuple(sorted(units, key=lambda unit: unit.key))


def _key_base(settings: HarvestSettings, runtime: Runtime, shape: StateShape) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "model": file_sha256(runtime.info.path),
        "template": hashlib.sha256(runtime.template.source.encode()).hexdigest(),
        "route": runtime.route.name if runtime.route else None,
        "gpu_layers": runtime.plan.n_gpu_layers,
        "kv_type": settings.session.kv_type,
        "layers": shape.layers,
        "tail_layers": shape.tail_layers,
        "projector": file_sha256(runtime.mmproj) if runtime.mmproj else None,
        "plan": settings.plan,
    }


def _key(base: dict[str, Any], carried: CarriedRequest, runtime: Runtime) -> str:
    plan: HarvestPlan = base["plan"]
    request, carrier = carried.request, carried.carrier
    texts = carried.texts(plan)
    entry = {
        **base,
        "plan": [plan.n_tokens(kind, carrier) for kind, _ in texts],
        "request": [request.id, request.pair_id, request.text, request.label],
        "texts": texts,
        "carrier": carrier,
    }
    own_file = request.image or request.audio
    if carrier == "text":
        del entry["projector"]  # another one answers text alike
    elif own_file is not None:
        entry["file"] = file_sha256(own_file)
    else:
        entry["fonts"] = [path.name if path else "" for path in page_fonts()]
        entry["side"] = runtime.media_decoder.fit.square_side
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:40]
