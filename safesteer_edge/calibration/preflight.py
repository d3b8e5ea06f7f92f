"""What keeps a calibration from succeeding, found before hours are spent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from safesteer_edge.errors import RequestDataError, SettingsError
from safesteer_edge.formats.model_file import check_language_model, check_projector_fits
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.requests.pictures import ordinary_picture_requests
from safesteer_edge.requests.requests import Label, Request
from safesteer_edge.session.choice import choose_model, require_projector
from safesteer_edge.session.settings import SessionSettings

# Five folds need some of each kind; figures worth having need far more.
MIN_REQUESTS: Final = 10
NEEDED_LABELS: Final[tuple[Label, ...]] = ("harmful", "ordinary")
_LOOSEST: Final = 0.5


def targets_for(share: float | None) -> FalseAlarmTargets:
    """The targets at which the guard may act on this share of ordinary answers; None: the usual.

    Where it is looser than the usual share of borderline answers, those get it too.
    Raises SettingsError.
    """
    usual = FalseAlarmTargets()
    if share is None:
        return usual
    if not 0 < share <= _LOOSEST:
        raise SettingsError(
            f"--false-alarms is {share:g}; expected a share above 0 and at most {_LOOSEST}"
        )
    return replace(
        usual,
        touched=share / 2,
        ordinary_refused=share / 2,
        borderline_refused=max(share, usual.borderline_refused),
        borderline_touched=max(share, usual.borderline_touched),
    )


def n_needed(share: float) -> int:
    """The fewest answers that a limit can be told from that this share of fresh ones exceeds."""
    return math.ceil(round((1 - share) / share, 6))


def check_requests(
    requests: Sequence[Request], source: str, targets: FalseAlarmTargets
) -> tuple[str, ...]:
    """Check that there is enough to learn from; return what is worth a warning, one line each.

    source: what messages call the requests. Raises RequestDataError.
    """
    counts = Counter(request.label for request in requests)
    for label in NEEDED_LABELS:
        if not counts[label]:
            raise RequestDataError(
                f"{source} has no {label} ones outside the test split; a probe needs both harmful "
                "and ordinary requests"
            )
        if counts[label] < MIN_REQUESTS:
            raise RequestDataError(
                f"{source} has {counts[label]} {label} ones outside the test split; give at least "
                f"{MIN_REQUESTS}, better hundreds"
            )
    _check_told(source, "ordinary", counts["ordinary"], smallest_ordinary(targets), n_ways=2)
    if not counts["borderline"]:
        return (f"{source} has no borderline ones; expect false alarms on such requests",)
    smallest = min(targets.borderline_touched, targets.borderline_refused)
    _check_told(source, "borderline", counts["borderline"], smallest)
    return ()


def smallest_ordinary(targets: FalseAlarmTargets) -> float:
    """The smallest share of ordinary answers that is to be told."""
    return min(targets.touched, targets.ordinary_refused)


def _check_told(source: str, label: Label, n: int, share: float, *, n_ways: int = 1) -> None:
    """With fewer, no limit keeps to the share but one that nothing exceeds: it would never act.

    n_ways: among which what is allowed is dealt out.
    """
    if n < n_needed(share):
        least = math.ceil(100 * n_ways / (n + 1)) / 100
        or_none = ", or none" if label == "borderline" else ""
        loosen = f", or allow more false alarms with --false-alarms {least:g}"
        raise RequestDataError(
            f"{source} has {n} {label} ones outside the test split; a guard that may act on "
            f"{100 * n_ways * share:g} % of such answers needs {n_needed(share)} of them: give more"
            f"{or_none}{loosen if least <= _LOOSEST else ''}"
        )


def check_media(session: SessionSettings, requests: Sequence[Request], *, hears: bool) -> None:
    """Check that the model takes the media that are asked for. Loads no weights.

    hears: recordings are to be played. Raises MediaError, ModelFileError, SettingsError.
    """
    has_images = any(request.image for request in requests)
    if hears and not any(request.audio for request in requests):
        raise SettingsError(
            "--audio was given and no request has a recording; add 'audio' to rows of --data"
        )
    sees = has_images or (session.mmproj is not None and not hears)
    require_projector(session, images=sees, sounds=hears)


def with_pictures(session: SessionSettings, requests: Sequence[Request]) -> tuple[Request, ...]:
    """The requests, and where the model sees, ordinary questions about pictures as well."""
    choice = choose_model(session.model)
    mmproj = session.mmproj or choice.mmproj
    if mmproj is None:
        return tuple(requests)
    projector = check_projector_fits(mmproj, check_language_model(choice.path))
    return (*requests, *ordinary_picture_requests()) if projector.has_vision else tuple(requests)
