"""`safesteer-edge states`: hidden states of a model file, for probes that are trained elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from safesteer_edge.cli.options import (
    JSON,
    MACHINE,
    Argument,
    Command,
    Progress,
    cannot_write,
    print_result,
    session_settings,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.session.settings import SessionSettings


def run(options: argparse.Namespace) -> int:
    """Read and write the states, and return the exit code."""
    # Deferred: these import llama.cpp, which --help does not need.
    from safesteer_edge.harvest.state_file import StateSettings, write_states
    from safesteer_edge.requests.requests import load_requests, read_requests

    if options.output.suffix.lower() != ".npz":
        raise SettingsError(f"cannot write {str(options.output)!r}; name a .npz file")
    if options.tokens < 0:
        raise SettingsError(f"--tokens is {options.tokens}; expected 0 or more")
    session = session_settings(options, SessionSettings(guard="off"))
    settings = StateSettings(session, tuple(options.layers), options.tokens)
    requests = load_requests() if options.data is None else read_requests(options.data)
    requests = [each for each in requests if each.split in options.splits]
    if not requests:
        raise SettingsError(f"there are no requests of the splits {', '.join(options.splits)}")
    try:
        shapes = write_states(options.output, settings, requests, Progress().show)
    except OSError as error:
        raise cannot_write(options.output, error) from error
    n_rows, n_features = shapes["states"]
    lines = [f"wrote {options.output}: {n_rows} states of {n_features} numbers, read as decoded"]
    return print_result(options, {"output": str(options.output), "arrays": shapes}, lines)


STATES = Command(
    "states",
    "write a model's hidden states to a file",
    run,
    (
        Argument("model", "the model, in its quantization", metavar="NAME|F.gguf"),
        Argument("--data", "requests (default: the project's own)", Path, metavar="F.jsonl"),
        Argument("-o --output", type=Path, required=True, metavar="F.npz"),
        Argument(
            "--layers",
            "block outputs counted from 0, joined in this order, or n_layer for the state after "
            "the final norm (default: all block outputs)",
            int,
            (),
            "L",
            nargs="+",
        ),
        Argument("--tokens", "of the model's own answer as well (default: 0)", int, 0, "N"),
        Argument(
            "--splits",
            "of the requests (default: train calibration; those of test are for the end)",
            choices=("train", "calibration", "test"),
            default=("train", "calibration"),
            nargs="+",
        ),
        *MACHINE,
        JSON,
    ),
    """\
Write hidden states of a model file to a .npz, as the guard will read them: at each prompt's last
token and, if asked for, at each token of the model's own answer, on the decode path. Train a probe
on them where you like; 'convert probe' and 'calibrate --probe' bring it back.""",
)
