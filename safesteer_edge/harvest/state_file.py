"""Hidden states of a model file in a .npz, for people who train probes elsewhere.

As the guard reads them: from the very file that will run, on the decode path, with its own
template. A probe for states of another implementation, or quantization, is a probe for others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.errors import RequestDataError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.harvest.answers import decode_answer
from safesteer_edge.harvest.run import Progress
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.prompt import question_items
from safesteer_edge.session.runtime import open_runtime
from safesteer_edge.session.settings import SessionSettings

MAX_BYTES: Final = 512 << 20  # what 'convert probe --check-states' reads


@dataclass(frozen=True, slots=True)
class StateSettings:
    """layers: joined in this order, (): all block outputs. n_tokens: of the model's own answer.

    session: the model, with its guard off.
    """

    session: SessionSettings
    layers: tuple[int, ...]
    n_tokens: int


def write_states(
    path: Path, settings: StateSettings, requests: Sequence[Request], progress: Progress
) -> dict[str, Any]:
    """Write states and what they are of; returns the arrays' shapes.

    Arrays: states float32 (n, n_layers · n_embd), joined in the order of `layers`; labels (n,), 1
    for a harmful request; request_ids, kinds (its label in words), position (0 is the prompt's last
    token, t the answer's token t), token_ids: (n,); layers; shape, model: texts.
    Cost: a prompt a request, and a decoding step a token.
    Raises SettingsError, RequestDataError before the model is loaded; EngineError, OSError.
    """
    for request in requests:
        if request.image is not None or request.audio is not None:
            raise RequestDataError(
                f"request {request.id!r} has a picture or a recording; states are of text alone: "
                "take it out"
            )
    info = check_language_model(choose_model(settings.session.model).path)
    layers = settings.layers or tuple(range(info.n_layer))
    n_bytes = 4 * len(layers) * info.n_embd * len(requests) * (1 + settings.n_tokens)
    if n_bytes > MAX_BYTES:
        raise SettingsError(
            f"these states would take up to {n_bytes >> 20} MiB, more than {MAX_BYTES >> 20}; name "
            "fewer --layers, or give fewer requests or --tokens"
        )
    columns: dict[str, list[Any]] = {}
    with closing(open_runtime(settings.session, layers=layers)) as runtime:
        for n_done, request in enumerate(requests, start=1):
            items = question_items(request.text, template=runtime.template, model=runtime.model)
            decoded = decode_answer(runtime, items, n_tokens=settings.n_tokens)
            for position, state in enumerate(decoded.states):
                row = {
                    "states": state,
                    "labels": int(request.label == "harmful"),
                    "request_ids": request.id,
                    "kinds": request.label,
                    "position": position,
                    "token_ids": decoded.token_ids[position - 1] if position else -1,
                }
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
            progress("reading states", n_done, len(requests))
    model = json.dumps(asdict(fingerprint_model(info)))
    arrays = {name: np.array(values) for name, values in columns.items()}
    arrays |= {"layers": np.array(layers), "shape": np.array("decode"), "model": np.array(model)}
    with atomic_write(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return {name: list(array.shape) for name, array in arrays.items()}
