"""What it costs to run the engine in a process of its own: the same answers, here and there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from safesteer_edge.evaluation.bench import BenchSettings, bench_setup, choose_prompts
from safesteer_edge.evaluation.bench_summary import Spread, VariantRatio, ratio_of
from safesteer_edge.evaluation.bench_variants import (
    PROMPT_KINDS,
    MeasuredAnswer,
    open_variant,
)
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.runtime import choose_model


def measure_isolation(
    settings: BenchSettings, *, narrate: Callable[[str], None] = lambda _: None
) -> tuple[VariantRatio, ...]:
    """Ratios `isolated` over `lazy`, one for each kind of prompt.

    Both are open at once and answer each prompt one after the other, in turned order, so that
    whatever drifts hits both alike. Times are taken where the events arrive.
    Raises SettingsError, ModelFileError, BundleError, TemplateError, EngineError.
    """
    prompts = choose_prompts(settings.n_prompts)
    choice = choose_model(settings.model)
    setup = bench_setup(settings, choice, check_language_model(choice.path))
    answers: list[MeasuredAnswer] = []
    with (
        closing(open_variant("lazy", setup)) as here,
        closing(open_variant("isolated", setup)) as there,
    ):
        for variant in (here, there):
            variant.answer(prompts[-1], -1)
        for repeat in range(settings.n_repeats):
            narrate(f"repeat {repeat + 1} of {settings.n_repeats}")
            for index, prompt in enumerate(prompts):
                turned = (here, there) if (repeat + index) % 2 else (there, here)
                answers += [variant.answer(prompt, repeat) for variant in turned]
    found = (ratio_of(answers, "isolated", "lazy", kind) for kind in PROMPT_KINDS)
    return tuple(ratio for ratio in found if ratio is not None)


def cost_to_text(ratios: tuple[VariantRatio, ...]) -> str:
    """The ratios for people: median (least–greatest) over the repeats."""
    lines = ["The engine in a process of its own, over the engine in this one"]
    for ratio in ratios:
        speed = _spread(ratio.speed) if ratio.speed else "-"
        lines.append(
            f"  {ratio.kind}: speed {speed} (below 1 is slower), time to the first token "
            f"{_spread(ratio.first_token)} (above 1 is slower)"
        )
    return "\n".join(lines) + "\n"


def _spread(value: Spread) -> str:
    return f"{value.median:.3f} ({value.low:.3f}–{value.high:.3f})"
