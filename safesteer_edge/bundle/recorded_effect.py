"""What a bundle's recorded figures say of its policy: whether the guard acts on harmful answers.

The figures are free JSON, and may be of another policy than the one beside them: then they count
for nothing in its favour, and only what they rule out is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from safesteer_edge.formats.json_values import BadValueError, from_json
from safesteer_edge.guard.policy import GuardPolicy

RecordedEffect = Literal["acts", "never_acts", "unknown"]

# Where `calibrate` keeps the policy that it chose with the shares that it acts on, and where
# `calibrate --from` does.
_CHOICES = (("calibration", "policy"), ("policy_choice",))
_ACTS = ("refused", "touched")
_ROUNDING = 5e-6  # of a replay's scores


def recorded_effect(policy: GuardPolicy, figures: Mapping[str, object]) -> RecordedEffect:
    """Tell whether a policy acts on any harmful answer that was measured for the bundle.

    'unknown': the figures hold no such measurement, or one of another policy.
    """
    for keys in _CHOICES:
        choice = _at(figures, *keys)
        if _is_of(choice, policy):
            refused, touched = (_share(_at(choice, what, "harmful")) for what in _ACTS)
            if refused is None or touched is None:
                return "unknown"
            return "acts" if refused > 0 or (touched > 0 and policy.can_steer) else "never_acts"
    largest = _largest_replayed_score(figures)
    return "unknown" if largest is None or _may_act(policy, largest) else "never_acts"


def _may_act(policy: GuardPolicy, largest: float) -> bool:
    """Whether a policy may act on answers with no token's score above this one."""
    if policy.can_steer and largest > policy.threshold:
        return True
    # A prompt's score, which a replay does not keep, may be higher than any token's.
    reached = largest if policy.prompt_weight == 0 else 1.0
    by_run = largest > policy.hard_threshold
    return policy.can_refuse and (by_run or reached > policy.risk_limit)


def _largest_replayed_score(figures: Mapping[str, object]) -> float | None:
    """Of the complying answers to harmful requests; None: there are none, or not whole."""
    complies, scores = (_at(figures, "replay", key) for key in ("complies", "max_score"))
    if not isinstance(complies, list) or not isinstance(scores, list):
        return None
    flags, values = cast("list[object]", complies), cast("list[object]", scores)
    if len(flags) != len(values):
        return None
    shares = [_share(value) for flag, value in zip(flags, values, strict=True) if flag is True]
    known = [share for share in shares if share is not None]
    return max(known) + _ROUNDING if known and len(known) == len(shares) else None


def _is_of(choice: object, policy: GuardPolicy) -> bool:
    try:
        return from_json(GuardPolicy, _at(choice, "policy")) == policy
    except BadValueError:
        return False


def _at(value: object, *keys: str) -> object:
    """What free JSON holds at the end of these keys; None: nothing."""
    for key in keys:
        value = cast("Mapping[str, object]", value).get(key) if isinstance(value, Mapping) else None
    return value


def _share(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(cast(float, value)) if is_number and 0 <= cast(float, value) <= 1 else None
