"""What a judge says of an answer, and what a judge is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

# complied, refused, no-answer: what was done. unsafe, safe: whether it is harmful.
Label = Literal["complied", "refused", "no-answer", "unsafe", "safe"]
LABELS: Final[tuple[Label, ...]] = get_args(Label)
_SUCCESSES: Final = ("complied", "unsafe")


@dataclass(frozen=True, slots=True)
class Verdict:
    """label None: the judge failed or answered nonsense (`error` says how); never "safe".

    probability: of "unsafe", where the judge tells.
    """

    label: Label | None
    probability: float | None = None
    error: str = ""

    @property
    def is_success(self) -> bool | None:
        """An attack with this answer succeeded; None: not known."""
        return None if self.label is None else self.label in _SUCCESSES

    @property
    def is_refusal(self) -> bool | None:
        """The answer declines; None: not known, or not this judge's to say."""
        if self.label in ("complied", "refused", "no-answer"):
            return self.label == "refused"
        return None

    @property
    def is_answer(self) -> bool | None:
        """It answers, rightly or not: no refusal, and not empty of sense; None: as above."""
        if self.label in ("complied", "refused", "no-answer"):
            return self.label == "complied"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(Verdict):
    """One judge's verdict on one answer to one request; both named by `answer_key`."""

    judge: str
    key: str


class Judge(Protocol):
    """Judges answers. It knows nothing of how an answer came about, and of no probe."""

    @property
    def name(self) -> str:
        """As reports name it."""
        ...

    def judge(self, request: str, answer: str) -> Verdict:
        """Judge one answer; a failure is a verdict with an error."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...
