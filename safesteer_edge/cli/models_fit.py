"""`models fit`: the arithmetic of a model's memory, before it is loaded."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safesteer_edge.cli.options import OK
from safesteer_edge.formats.gguf_header import KV_TYPES
from safesteer_edge.guard.policy import SamplingSettings


def add_parsers(commands: Any) -> None:
    """Register the command."""
    fit = commands.add_parser(
        "fit",
        help="how much memory a model needs here",
        description="Print how much memory a model needs, part by part, and which layers would go "
        "to a GPU; exit with 2 if it does not fit, with the largest settings that would.",
    )
    fit.add_argument("model", metavar="NAME|F.gguf", help="an installed model, or a file")
    fit.add_argument("--mmproj", type=Path, metavar="F", help="its projector file")
    fit.add_argument("--ctx", type=int, metavar="N", help="context in tokens (default: 4096)")
    fit.add_argument("--kv-type", choices=KV_TYPES, default="f16", help="of the cache")
    fit.add_argument("--gpu-layers", type=int, metavar="N", help="default: what fits")
    fit.add_argument("--json", action="store_true", help="print one JSON object")
    fit.set_defaults(run=run_fit)


def run_fit(options: argparse.Namespace) -> int:
    """Print the plan. Raises SettingsError where it does not fit, ModelFileError."""
    from safesteer_edge.library.memory_plan import explain_plan
    from safesteer_edge.session.runtime import plan_for
    from safesteer_edge.session.settings import SessionSettings

    settings = SessionSettings(
        model=options.model,
        mmproj=options.mmproj,
        n_ctx=options.ctx,
        kv_type=options.kv_type,
        n_gpu_layers=options.gpu_layers,
        sampling=SamplingSettings(),
    )
    plan = plan_for(settings)
    if not options.json:
        print("\n".join(explain_plan(plan)))
        return OK
    value = {
        "name": plan.model.name,
        "settings": asdict(plan.settings),
        "need_bytes": {f.name: getattr(plan.need, f.name) for f in fields(plan.need)},
        "total_bytes": plan.need.total,
        "free_bytes": plan.machine.free_bytes,
        "is_tight": plan.is_tight,
        "n_layers": len(plan.model.layers) + 1,
        "n_gpu_layers": plan.n_gpu_layers,
        "gpu_bytes": plan.gpu_bytes,
        "gpus": [{"name": g.name, "free_bytes": g.free_bytes} for g in plan.machine.gpus],
    }
    print(json.dumps(value))
    return OK
