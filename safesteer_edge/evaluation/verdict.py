"""What a judge says of an answer, and what a judge is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol, cast, get_args

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


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's verdict on one answer to one request; both named by `answer_key`."""

    judge: str
    key: str
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; `judgement_from_json` reads them back."""
        return {"judge": self.judge, "key": self.key, **asdict(self.verdict)}


def judgement_from_json(data: object) -> Judgement:
    """What `to_json` wrote. Raises ValueError for anything else."""
    try:
        values = dict(cast("dict[str, Any]", data))
        judge, key = str(values.pop("judge")), str(values.pop("key"))
        verdict = Verdict(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"not a judgement: {error}") from error
    if verdict.label is not None and verdict.label not in LABELS:
        raise ValueError(f"label {verdict.label!r} is none of {LABELS}")
    return Judgement(judge, key, verdict)


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
