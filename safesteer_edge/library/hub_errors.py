"""What a hub's refusals mean, in one line each, and which of them are worth waiting for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from safesteer_edge.errors import DownloadError, HubError, SafeSteerError, SettingsError

RETRY_WAIT_S = 1.0
_MAX_WAIT_S: Final = 600
_N_TRIES: Final = 3
_PASSING: Final = (408, 429, 500, 502, 503, 504)  # statuses that pass by themselves

_T = TypeVar("_T")


def patiently(action: Callable[[], _T], where: str, narrate: Callable[[str], None]) -> _T:
    """What a request gives, after waiting where the hub asks for it. Raises as `explained`."""
    from huggingface_hub.errors import HfHubHTTPError

    with explained(where):
        for _ in range(_N_TRIES - 1):
            try:
                return action()
            except HfHubHTTPError as error:
                wait_s = asked_to_wait(error)
                narrate(waiting_text(error, wait_s))
                wait(wait_s, lambda _n_bytes: None)
        return action()


def asked_to_wait(error: Any) -> float:
    """Seconds until it is worth trying again; raises the error itself where it is not."""
    asked: str = error.response.headers.get("Retry-After", "")
    asked_s = int(asked) if asked.isascii() and asked.isdigit() else 0  # else it is a date
    if error.response.status_code not in _PASSING or asked_s > _MAX_WAIT_S:
        raise error
    return asked_s + RETRY_WAIT_S


def waiting_text(error: Any, wait_s: float) -> str:
    """What to tell of it."""
    return f"the hub answers with status {error.response.status_code}: waiting {wait_s:.0f} s"


def wait(seconds: float, report: Callable[[int], None]) -> None:
    """Wait, but not for longer than until `report` says by an error that it is over."""
    ends_s = time.monotonic() + seconds
    while (left_s := ends_s - time.monotonic()) > 0:
        report(0)
        time.sleep(min(left_s, 0.2))


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what the library raises into one line of ours."""
    import httpx2
    from huggingface_hub import errors, get_token

    try:
        yield
    except SafeSteerError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise SettingsError(
            f"cannot ask the hub for {where!r}: HF_HUB_OFFLINE is set; unset it, or add a file "
            "that you have: safesteer-edge models add NAME F.gguf"
        ) from error
    except errors.HFValidationError as error:
        raise SettingsError(f"{where!r} is not a repository; expected OWNER/NAME") from error
    except errors.HfHubHTTPError as error:
        raise _http_error(error, where, has_token=get_token() is not None) from error
    except httpx2.TransportError as error:
        raise DownloadError(
            f"cannot get {where!r}: {type(error).__name__}: {error}; check the connection and "
            "HF_ENDPOINT, then run it again: what has come is kept"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, TypeError, KeyError) as error:
        raise HubError(
            f"cannot understand the hub's answer about {where!r} ({type(error).__name__}); "
            "check HF_ENDPOINT"
        ) from error


def _http_error(error: Any, where: str, *, has_token: bool) -> SafeSteerError:
    """The error for an HTTP status: 4xx is for the user to mend, but for rate limits."""
    from huggingface_hub import errors

    status: int = error.response.status_code
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return HubError(
            f"the hub does not give {where!r} to us (status {status}): accept its licence on the "
            "hub, then use a token of that account: HF_TOKEN=…, or 'hf auth login'"
        )
    if status == 401:
        problem = "the token is not valid for it" if has_token else "it is private, or not there"
        return HubError(
            f"the hub does not give {where!r} to us (status 401: {problem}); check the name, then "
            "give a token: HF_TOKEN=…, or 'hf auth login'"
        )
    if status == 404:
        return HubError(f"the hub has no {where!r} (status 404); check the name")
    if status == 429:
        return DownloadError(
            f"the hub allows no more requests now (status 429 at {where!r}); wait, or give a token "
            "(HF_TOKEN=…), then run it again: what has come is kept"
        )
    return DownloadError(
        f"the hub fails at {where!r} (status {status}); run it again later: what has come is kept"
    )
