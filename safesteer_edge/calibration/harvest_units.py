"""What a harvest consists of: units, their keys, and the layers whose states they keep.

A unit is one request in one carrier. Its key hashes all that decides the content of its file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from safesteer_edge.calibration.carriers import Carrier, written_words
from safesteer_edge.calibration.harvest import HarvestPlan
from safesteer_edge.calibration.harvest_cache import StateShape
from safesteer_edge.calibration.harvest_settings import HarvestSettings
from safesteer_edge.calibration.page_fonts import page_fonts
from safesteer_edge.calibration.planned_requests import PlannedRequest
from safesteer_edge.calibration.requests_data import Request
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.file_sha256 import file_sha256
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.memory.plan import in_mib

if TYPE_CHECKING:
    from safesteer_edge.runtime import Runtime

_FORMAT: Final = 2  # of what an answer is: change it when harvesting gives other states


@dataclass(frozen=True, slots=True)
class HarvestUnit:
    """What is harvested at a time. key: of its file in the cache."""

    planned: PlannedRequest
    key: str

    @property
    def request(self) -> Request:
        """The request."""
        return self.planned.request

    @property
    def carrier(self) -> Carrier:
        """How it reaches the model."""
        return self.planned.carrier


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


def units_of(
    settings: HarvestSettings,
    planned: Sequence[PlannedRequest],
    runtime: Runtime,
    shape: StateShape,
) -> tuple[HarvestUnit, ...]:
    """In an order that mixes kinds and carriers, so that the time left can be told."""
    base = _key_base(settings, runtime, shape)
    units = [HarvestUnit(each, _key(base, each, runtime)) for each in planned]
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


def _key(base: dict[str, Any], planned: PlannedRequest, runtime: Runtime) -> str:
    plan: HarvestPlan = base["plan"]
    request, carrier = planned.request, planned.carrier
    texts = planned.texts(plan)
    entry = {
        **base,
        "plan": [plan.n_tokens(kind, carrier) for kind, _ in texts],
        "request": [request.id, request.pair_id, request.text, request.label],
        "texts": texts,
        "carrier": carrier,
    }
    own_file = request.image or request.audio
    if carrier in ("wrapped", "beside"):
        entry["words"] = written_words(request, carrier)
    if carrier in ("text", "wrapped"):
        del entry["projector"]  # another one answers text alike
    elif own_file is not None:
        entry["file"] = file_sha256(own_file)
    else:
        entry["fonts"] = [path.name if path else "" for path in page_fonts()]
        entry["side"] = runtime.media_decoder.fit.square_side
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:40]
