"""One finding of the diagnosis, and the wall around each examination."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from safesteer_edge.errors import SafeSteerError

Status = Literal["ok", "warn", "fail"]

SEE_PACKAGES = "install the packages that the checks above ask for"
REPORT_IT = "run 'safesteer-edge --verbose doctor' and report what it prints"

logger = logging.getLogger("safesteer_edge")


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one subject. remedy: what to do; None exactly if status is 'ok'."""

    name: str
    status: Status
    finding: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.remedy is None):
            raise ValueError(f"check {self.name!r} is {self.status!r} with remedy {self.remedy!r}")


def ok(name: str, finding: str) -> Check:
    """Nothing to do."""
    return Check(name, "ok", finding)


def warn(name: str, finding: str, remedy: str) -> Check:
    """It works, and worse than it could."""
    return Check(name, "warn", finding, remedy)


def fail(name: str, finding: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name, "fail", finding, remedy)


def failure_of(name: str, error: Exception) -> Check:
    """The failed check that an exception makes.

    Our own messages end with what to do, after a semicolon: that part becomes the remedy.
    """
    message = " ".join(str(error).split())
    if isinstance(error, SafeSteerError):
        return failure_of_message(name, message)
    if isinstance(error, ImportError):
        return fail(name, f"{type(error).__name__}: {message}", SEE_PACKAGES)
    return fail(name, f"unexpected {type(error).__name__}: {message}", REPORT_IT)


def failure_of_message(name: str, message: str) -> Check:
    """The failed check that the text of one of our own errors makes."""
    finding, _, remedy = message.rpartition("; ")
    return fail(name, finding, remedy) if finding else fail(name, message, REPORT_IT)


def isolated(name: str, examine: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    """What an examination finds; an exception in it is a failed check and goes no further."""
    try:
        return examine()
    except Exception as error:  # whatever is wrong with a machine is a finding
        logger.debug("examining %s failed", name, exc_info=True)
        return [failure_of(name, error)]
