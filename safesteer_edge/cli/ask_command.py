"""`safesteer-edge ask`: one guarded answer. stdout is the answer, stderr the narration."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safesteer_edge.cli.options import (
    INTERRUPTED,
    OK,
    REFUSED,
    RUNTIME_ERROR,
    add_guard_options,
    add_model_options,
    add_sampling_options,
    session_settings,
)
from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.session.protocol import interrupt_cancels

if TYPE_CHECKING:
    from safesteer_edge.guard.events import Event, MediaPrepared, Step, TurnEnded
    from safesteer_edge.session.choice import ModelFiles
    from safesteer_edge.session.isolated_session import IsolatedSession
    from safesteer_edge.session.protocol import ChatSession
    from safesteer_edge.session.session import Session
    from safesteer_edge.session.settings import SessionSettings


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "ask", help="answer one prompt", description="Answer one prompt, guarded while it decodes."
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from stdin")
    parser.add_argument("--image", action="append", type=Path, default=[], metavar="F")
    parser.add_argument("--audio", action="append", type=Path, default=[], metavar="F")
    parser.add_argument(
        "--file",
        action="append",
        type=Path,
        default=[],
        metavar="F",
        help="a PDF, a text file, a picture or a sound, told apart by its name",
    )
    parser.add_argument("--system", metavar="T", help="system prompt")
    parser.add_argument(
        "--answer-prefix",
        default="",
        metavar="T",
        help="begin the answer with T, judged as its own",
    )
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="run the engine in a process of its own, whose crash is an error and no more",
    )
    add_model_options(parser)
    add_guard_options(parser)
    add_sampling_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object at the end")
    output.add_argument("--trace", type=Path, metavar="F.jsonl", help="one line per decoding step")
    output.add_argument("--quiet", action="store_true", help="no narration on stderr")
    output.add_argument(
        "--fail-on-refusal", action="store_true", help=f"exit {REFUSED} if the guard refuses"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Answer, and return the exit code."""
    # Deferred: --help needs none of it.
    from safesteer_edge.session.choice import require_projector
    from safesteer_edge.tui.typed_paths import sorted_by_kind

    prompt = _read_prompt(options.prompt)
    settings = session_settings(options)
    images, sounds, documents = sorted_by_kind(options.file)
    images, sounds = (*options.image, *images), (*options.audio, *sounds)
    files = require_projector(settings, images=bool(images), sounds=bool(sounds))
    with ExitStack() as undo:
        trace = undo.enter_context(_open_trace(options.trace)) if options.trace else None
        session = undo.enter_context(_open(settings, files, is_isolated=options.isolate))
        events = session.ask(
            prompt,
            images=images,
            sounds=sounds,
            documents=documents,
            system=options.system,
            answer_prefix=options.answer_prefix,
        )
        undo.enter_context(interrupt_cancels(session))
        media, first = _until_prefill(events)  # what cannot be asked ends here, in one line
        if not options.quiet:
            _narrate_start(session, media)
        turn = _stream(chain([first], events), options, trace)
        if options.json:
            print(json.dumps(_to_json(session, turn, media)))
        if not options.quiet:
            _narrate_end(turn)
    if turn.finish_reason == "cancelled":
        return INTERRUPTED
    if turn.refusal is not None and turn.refusal.reason == "guard_failed":
        print(f"safesteer-edge: {turn.refusal.detail}", file=sys.stderr)
        return RUNTIME_ERROR
    if options.fail_on_refusal and turn.finish_reason == "refused":
        return REFUSED
    return OK


def _open(
    settings: SessionSettings, files: ModelFiles | None, *, is_isolated: bool
) -> Session | IsolatedSession:
    """Open a session here or in a process of its own."""
    if is_isolated:
        from safesteer_edge.session.isolated_session import open_isolated_session

        return open_isolated_session(settings)  # whose process reads the files itself
    # Deferred: it imports llama.cpp and ONNX Runtime, and what is missing is named before.
    from safesteer_edge.session.session import open_session

    return open_session(settings, files=files)


def _until_prefill(events: Iterator[Event]) -> tuple[list[MediaPrepared], Event]:
    """What became of the media, which is told first, and the event after it."""
    from safesteer_edge.guard.events import MediaPrepared

    media: list[MediaPrepared] = []
    while isinstance(event := next(events), MediaPrepared):
        media.append(event)
    return media, event


def _stream(
    events: Iterator[Event], options: argparse.Namespace, trace: IO[str] | None
) -> TurnEnded:
    from safesteer_edge.formats.display_text import ControlCharacterFilter
    from safesteer_edge.guard.events import Refused, Step, TextDelta, TurnEnded

    shown, thought = ControlCharacterFilter(), ControlCharacterFilter()
    for event in events:
        if isinstance(event, Step) and trace is not None:
            trace.write(json.dumps(_step_to_json(event), ensure_ascii=False) + "\n")
        elif isinstance(event, TextDelta) and event.part == "reasoning":
            if not options.quiet:  # the answer alone goes to stdout
                print(thought.feed(event.text), end="", file=sys.stderr, flush=True)
        elif isinstance(event, TextDelta | Refused) and not options.json:
            print(shown.feed(event.text), end="", flush=True)
        elif isinstance(event, TurnEnded):
            if not options.json:
                print(flush=True)
            return event
    raise RuntimeError("the session ended a turn without saying so")


def _read_prompt(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.read().rstrip("\r\n")  # as a shell's $(…): the line's end is not said
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the prompt from stdin: {error}; send UTF-8 text") from error


@contextmanager
def _open_trace(path: Path) -> Iterator[IO[str]]:
    """The trace is written as it happens: half of one is what a cut-off answer needs."""
    try:
        stream = path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise SettingsError(
            f"cannot write trace {str(path)!r}: {error.strerror}; give a file in a folder that "
            "exists and is writable"
        ) from error
    with stream:
        yield stream


def _step_to_json(step: Step) -> dict[str, Any]:
    row = asdict(step)
    if not step.candidates:
        del row["candidates"]
    return row


def _to_json(session: ChatSession, turn: TurnEnded, media: list[MediaPrepared]) -> dict[str, Any]:
    info, usage, timings = session.info, turn.usage, turn.timings
    return {
        "text": turn.text,
        "reasoning": turn.reasoning,
        "finish_reason": turn.finish_reason,
        "model": {
            "name": info.model_name,
            "path": str(info.model_path),
            "architecture": info.architecture,
            "quantization": info.quantization,
        },
        "guard": {**asdict(turn.guard), "calibrated": info.is_calibrated},
        "media": [asdict(event) for event in media],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "media_tokens": usage.media_tokens,
            "completion_tokens": usage.completion_tokens,
        },
        "timings": {
            "load_s": info.load_s,
            "prefill_s": timings.prefill_s,
            "ttft_s": timings.ttft_s,
            "decode_s": timings.decode_s,
            "tokens_per_second": timings.tokens_per_second,
        },
    }


def _narrate_start(session: ChatSession, media: list[MediaPrepared]) -> None:
    from safesteer_edge.formats.display_text import strip_control_characters
    from safesteer_edge.session.prompt import media_line

    info = session.info
    name = strip_control_characters(info.model_name)
    guard = f"guard {info.bundle}" if info.bundle else "NO GUARD"
    if info.is_calibrated is False:
        guard += ", UNCALIBRATED"
    print(
        f"[{name} {info.quantization}, {guard}, loaded in {info.load_s:.1f} s]",
        file=sys.stderr,
    )
    for warning in (*info.warnings, *(info.media_warnings if media else ())):
        print(f"[warning: {strip_control_characters(warning)}]", file=sys.stderr)
    for event in media:
        print(f"[{media_line(event)}]", file=sys.stderr)


def _narrate_end(turn: TurnEnded) -> None:
    guard, timings = turn.guard, turn.timings
    parts = [f"{turn.usage.completion_tokens} tokens, {timings.tokens_per_second:.0f} tokens/s"]
    if guard.mode == "off":
        parts.append("guard off")
    else:
        parts.append(f"{guard.mode}: {guard.interventions} tokens steered")
        if guard.risk is not None:
            parts.append(f"risk {guard.risk:.2f}")
    if turn.refusal is not None:
        parts.append(f"refused, because {turn.refusal.detail}")
    elif turn.finish_reason != "stop":
        parts.append({"length": "cut at the token limit"}.get(turn.finish_reason, "stopped"))
    print(f"[{'; '.join(parts)}]", file=sys.stderr)
