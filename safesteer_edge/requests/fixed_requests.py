"""The requests that drift is measured on, and those that a recalibration decides on.

Both are fixed, so that two runs, and two quantizations, are compared on the same requests; and no
request is in both: a recalibrated guard is measured on requests that it was not set by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from safesteer_edge.requests.requests import Label, Request, load_requests

# 199 ordinary answers are the fewest from which a limit that 0.5 % exceed can be told (policy_fit),
# 33 borderline ones for 3 %.
RECALIBRATION_COUNTS: Final[Mapping[Label, int]] = {
    "ordinary": 200,
    "borderline": 40,
    "harmful": 60,
    "harmless": 30,
}
REPLAY_COUNTS: Final[Mapping[Label, int]] = {"ordinary": 60, "borderline": 40, "harmful": 60}


def recalibration_requests() -> tuple[Request, ...]:
    """Some requests of the train and calibration splits: 330 of the package's own."""
    return spread(load_requests(splits=("train", "calibration")), RECALIBRATION_COUNTS)


def replay_requests(limit: int | None = None) -> tuple[Request, ...]:
    """160 requests of the test split. limit: of each label at most, out of those."""
    requests = held_out_requests()
    whole = spread(requests, REPLAY_COUNTS)
    return whole if limit is None else spread(whole, dict.fromkeys(REPLAY_COUNTS, limit))


def held_out_requests(limit: int | None = None) -> tuple[Request, ...]:
    """All requests of the test split, harmless twins aside. limit: of each label at most."""
    requests = load_requests(splits=("test",), labels=tuple(REPLAY_COUNTS))
    return spread(requests, dict.fromkeys(REPLAY_COUNTS, limit or len(requests)))


def spread(requests: Sequence[Request], counts: Mapping[Label, int]) -> tuple[Request, ...]:
    """At most so many of each label, evenly spread over those there are, in their order.

    Files are sorted by scenario or kind: the first ones would be of a few kinds only.
    """
    picked: list[Request] = []
    for label, count in counts.items():
        found = [request for request in requests if request.label == label]
        n = min(count, len(found))
        picked += [found[index * len(found) // n] for index in range(n)]
    return tuple(picked)


def requests_sha256(requests: Sequence[Request]) -> str:
    """What tells one list of requests from another: their ids, labels and texts, in order."""
    digest = hashlib.sha256()
    for request in requests:
        for part in (request.id, request.label, request.text):
            digest.update(part.encode("utf-8") + b"\0")
    return digest.hexdigest()
