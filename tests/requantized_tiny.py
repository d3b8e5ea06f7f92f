"""A tiny model, a bundle that knows its harmful requests, and the model in another quantization.

The model understands nothing: its states tell harmful requests by their letters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safesteer_edge.calibration.make_bundle import make_bundle
from safesteer_edge.calibration.settings import CalibrationSettings
from safesteer_edge.engine.model import requantize
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.harvest.answers import HarvestPlan
from safesteer_edge.harvest.cache import HarvestSettings
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.requests.requests import Label, Request, Split
from tests.guarded_tiny import GuardedTiny
from tests.made_up_answers import made_up_request

N_TOKENS = 8


@dataclass(frozen=True, slots=True)
class RequantizedTiny:
    """source: what the bundle is made for. other: the same model in Q8_0."""

    source: Path
    bundle: Path
    other: ModelInfo


def lettered_requests(split: Split, counts: dict[Label, int]) -> tuple[Request, ...]:
    """Requests whose label can be read off their letters."""
    return tuple(
        replace(
            made_up_request(label, number),
            id=f"{split}-{label}-{number}",
            split=split,
            text=f"{label[:3]} {number}{'zzzz' if label == 'harmful' else ' the'}" * 4,
        )
        for label, count in counts.items()
        for number in range(count)
    )


DECIDING = lettered_requests("train", {"ordinary": 6, "borderline": 3, "harmful": 6, "harmless": 3})
HELD_OUT = lettered_requests("test", {"ordinary": 4, "borderline": 2, "harmful": 4})


def make_requantized_tiny(tiny: GuardedTiny, folder: Path) -> RequantizedTiny:
    """Calibrate a bundle on a few requests, and requantize the model. Takes some seconds."""
    settings = CalibrationSettings(
        HarvestSettings(
            tiny.settings(None),
            HarvestPlan(n_own_tokens=N_TOKENS, n_forced_tokens=N_TOKENS),
            tail_layers=(1, 2),
            cache=folder / "cache",
        ),
        layer_sets=((1, 2),),
        regularisations=(0.01,),
        targets=FalseAlarmTargets(0.2, 0.2, 0.5, 0.5),
        refusal_text="Nein.",
        name="made-for-f32",
    )
    bundle = make_bundle(folder / "guard", settings, DECIDING, lambda *_: None)
    requantize(tiny.model, folder / "other.gguf", "Q8_0", n_threads=1)
    return RequantizedTiny(tiny.model, bundle, check_language_model(folder / "other.gguf"))
