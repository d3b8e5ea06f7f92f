"""What keeps a calibration from succeeding, found before hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from safesteer_edge.calibration.ordinary_pictures import ordinary_picture_requests
from safesteer_edge.calibration.requests_data import Label, Request
from safesteer_edge.errors import RequestDataError, SettingsError
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.model_choice import check_projector_fits, choose_model, require_projector
from safesteer_edge.settings import SessionSettings

# Five folds need some of each kind; figures worth having need far more.
MIN_REQUESTS: Final = 10
NEEDED_LABELS: Final[tuple[Label, ...]] = ("harmful", "ordinary")
# The conformal limit of 1 % is a promise from this many ordinary answers on.
MIN_ORDINARY_FOR_PROMISE: Final = 99


def check_requests(requests: Sequence[Request], source: str) -> tuple[str, ...]:
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
    warnings: list[str] = []
    if counts["ordinary"] < MIN_ORDINARY_FOR_PROMISE:
        warnings.append(
            f"{source} has {counts['ordinary']} ordinary ones; false alarms in 1 % of answers can "
            f"be promised from {MIN_ORDINARY_FOR_PROMISE} on"
        )
    if not counts["borderline"]:
        warnings.append(f"{source} has no borderline ones; expect false alarms on such requests")
    return tuple(warnings)


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
