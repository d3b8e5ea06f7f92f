"""`safesteer-edge ask`: one guarded answer. stdout is the answer, stderr the narration."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safesteer_edge.cli.options import (
    CONTINUE,
    GUARD,
    INTERRUPTED,
    MODEL,
    OK,
    REFUSED,
    RUNTIME_ERROR,
    Argument,
    Command,
    Group,
    cannot_write,
    print_json,
    sampling,
    say,
    settings_with_flags,
)
from safesteer_edge.cli.piped_text import read_piped_picture, read_prompt, require_text
from safesteer_edge.errors import InputError
from safesteer_edge.formats.display_text import ControlCharacterFilter, strip_control_characters
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.session.settings_file import user_settings

if TYPE_CHECKING:
    from safesteer_edge.guard.events import Event, MediaPrepared, TurnEnded
    from safesteer_edge.guard.policy import GuardPolicy
    from safesteer_edge.session.choice import ModelFiles
    from safesteer_edge.session.isolated_session import IsolatedSession
    from safesteer_edge.session.protocol import ChatSession
    from safesteer_edge.session.session import Session
    from safesteer_edge.session.settings import SessionSettings


_ENDS = {
    "length": "cut off at the token limit",
    "loop": "stopped, because it was repeating itself; a higher --temperature helps",
    "cancelled": "stopped",
}


def run(options: argparse.Namespace) -> int:
    """Answer, and return the exit code."""
    # Deferred: --help needs none of it.
    from safesteer_edge.chats.chat_store import ChatStore
    from safesteer_edge.chats.recorded_chat import RecordedChat
    from safesteer_edge.cli.chat_command import chat_to_continue
    from safesteer_edge.media.media_file import local_path
    from safesteer_edge.session.choice import require_projector
    from safesteer_edge.session.language import language_notice
    from safesteer_edge.session.protocol import interrupt_cancels
    from safesteer_edge.tui.attached_files import sorted_by_kind

    n_piped = options.image.count("-")
    if n_piped > 1:
        raise InputError("stdin holds one picture; give --image - once")
    prompt = read_prompt(options.prompt, is_stdin_taken=n_piped > 0)
    require_text(options.system, "--system")
    require_text(options.answer_prefix, "--answer-prefix")
    schema = None if options.json_schema is None else _read_schema(options.json_schema)
    chosen = settings_with_flags(options, user_settings())
    settings, store = chosen.session, ChatStore() if chosen.chats.save else None
    chat_id = chat_to_continue(options, store)
    images, sounds, documents = sorted_by_kind(map(local_path, options.file))
    images = (*map(_picture, options.image), *images)
    sounds = (*map(local_path, options.audio), *sounds)
    paths = [image for image in images if isinstance(image, Path)]
    is_free = options.system or options.answer_prefix or schema or len(paths) < len(images)
    if chat_id and is_free:
        raise InputError(
            "a saved chat goes on with its own system prompt, without --answer-prefix and "
            "--json-schema, and with pictures from files; leave the rest out"
        )
    files = require_projector(settings, images=bool(images), sounds=bool(sounds))
    with ExitStack() as undo:
        trace = undo.enter_context(_open_trace(options.trace)) if options.trace else None
        session = undo.enter_context(_open(settings, files, is_isolated=options.isolate))
        if chat_id is None:
            events = session.ask(
                prompt,
                images=images,
                sounds=sounds,
                documents=documents,
                system=options.system,
                answer_prefix=options.answer_prefix,
                json_schema=schema,
            )
        else:
            chat = undo.enter_context(closing(RecordedChat(session, store, on_problem=say)))
            chat.resume(chat_id)
            events = chat.ask(prompt, images=paths, sounds=sounds, documents=documents)
        undo.enter_context(interrupt_cancels(session))
        media, first = _until_prefill(events)  # what cannot be asked ends here, in one line
        if not options.quiet:
            _narrate_start(session, media)
        turn = _stream(chain([first], events), options, trace)
        if options.json:
            print_json(_to_json(session, turn, media))
        if not options.quiet:
            _narrate_end(turn, session.info.policy)
            if notice := language_notice(prompt, session.info.languages):
                say(f"[{notice}]")
    if turn.finish_reason == "cancelled":
        return INTERRUPTED
    if turn.refusal is not None and turn.refusal.reason == "guard_failed":
        say(f"safesteer-edge: {turn.refusal.detail}")
        return RUNTIME_ERROR
    if options.fail_on_refusal and _was_declined(turn):
        return REFUSED
    return OK


def _was_declined(turn: TurnEnded) -> bool:
    """By the guard, in its words or in the model's own."""
    from safesteer_edge.metrics.refusal_rules import is_refusal

    guard = turn.guard
    return guard.refused or bool(guard.opening) or (guard.steered > 0 and is_refusal(turn.text))


def _picture(text: str) -> Path | bytes:
    """What `--image` names. Raises InputError, MediaError."""
    from safesteer_edge.media.media_file import data_uri_bytes, local_path

    if text == "-":
        return read_piped_picture()
    content = data_uri_bytes(text)
    return local_path(text) if content is None else content


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
    from safesteer_edge.guard.events import Refused, Step, TextDelta, TurnEnded, TurnsLeftOut

    shown, thought = ControlCharacterFilter(), ControlCharacterFilter()
    for event in events:
        if isinstance(event, Step) and trace is not None:
            row = {key: value for key, value in asdict(event).items() if value != ()}
            trace.write(json.dumps(row, ensure_ascii=False) + "\n")
        elif isinstance(event, TextDelta) and event.part == "reasoning":
            if not options.quiet:  # the answer alone goes to stdout
                print(thought.feed(event.text), end="", file=sys.stderr, flush=True)
        elif isinstance(event, Refused) and options.json_schema is not None:
            pass  # stdout holds JSON; what the guard did is told below
        elif isinstance(event, TextDelta | Refused) and not options.json:
            print(shown.feed(event.text), end="", flush=True)
        elif isinstance(event, TurnsLeftOut) and not options.quiet:
            say(f"[the context is full: the {event.n_turns} oldest turns are left out]")
        elif isinstance(event, TurnEnded):
            print(end="" if options.json else "\n", flush=True)
            return event
    raise RuntimeError("the session ended a turn without saying so")


def _read_schema(path: Path) -> Any:
    try:
        return load_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{str(path)!r} is no JSON schema: {error}") from error


def _open_trace(path: Path) -> IO[str]:
    """The trace is written as it happens: half of one is what a cut-off answer needs."""
    try:
        return path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise cannot_write(path, error) from error


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
    from safesteer_edge.session.prompt import media_line
    from safesteer_edge.tui.guard_words import better_guard

    info = session.info
    name = strip_control_characters(info.model_name)
    guard = f"guard {info.bundle}" if info.bundle else "NO GUARD"
    if info.is_calibrated is False:
        guard += ", UNCALIBRATED"
    say(f"[{name} {info.quantization}, {guard}, loaded in {info.load_s:.1f} s]")
    if offer := better_guard(info):
        say(f"[{strip_control_characters(offer)}]")
    for warning in info.warnings:
        say(f"[warning: {strip_control_characters(warning)}]")
    for event in media:
        say(f"[{media_line(event)}]")


def _narrate_end(turn: TurnEnded, policy: GuardPolicy | None) -> None:
    from safesteer_edge.tui.guard_words import notice

    guard, refusal = turn.guard, turn.refusal
    parts = [
        f"{turn.usage.completion_tokens} tokens, {turn.timings.tokens_per_second:.0f} tokens/s",
        "guard off: not checked"
        if guard.mode == "off"
        else f"{guard.mode}: {guard.interventions} tokens steered",
    ]
    if guard.mode != "off" and guard.risk is not None:
        parts.append(notice(guard.risk, policy.risk_limit if policy is not None else None))
    if guard.opening and refusal is None:
        parts.append("led to a refusal in the model's own words")
    elif guard.steered and refusal is None:
        parts.append("the guard had it begin again")
    if refusal is not None:
        parts.append(f"refused by the guard: {refusal.detail}")
    elif turn.finish_reason != "stop":
        parts.append(_ENDS[turn.finish_reason])
    say(f"[{'; '.join(parts)}]")


def _files(name: str, text: str) -> Argument:
    return Argument(name, text, action="append", default=[], metavar="F")


ASK = Command(
    "ask",
    "ask one question",
    run,
    (
        Argument(
            "prompt",
            "the question; piped text goes above it (with - or nothing: it is the question)",
            metavar="PROMPT",
            nargs="*",
        ),
        _files("-i --image", "attach a picture (- reads it from stdin)"),
        _files("--audio", "attach a sound"),
        _files("--file", "attach a file of any of these kinds, or a PDF or text"),
        Argument("-s --system", "system prompt", metavar="T"),
        Argument(
            "--answer-prefix",
            "begin the answer with T; the guard judges it too",
            default="",
            metavar="T",
        ),
        Argument(
            "--json-schema", "answer in JSON of the schema in a file", type=Path, metavar="F.json"
        ),
        Argument(
            "--isolate",
            "run the engine in a separate process, so that a crash is an error message (default)",
            action=argparse.BooleanOptionalAction,
            default=True,
        ),
        CONTINUE,
        MODEL,
        GUARD,
        sampling(),
        Group(
            "output",
            (
                Argument("--json", "print one JSON object at the end", action="store_true"),
                Argument(
                    "--trace", "write every decoding step to a file", type=Path, metavar="F.jsonl"
                ),
                Argument("-q --quiet", "print only the answer", action="store_true"),
                Argument(
                    "--fail-on-refusal",
                    f"exit with {REFUSED} if the guard refuses, or leads the answer to a refusal",
                    action="store_true",
                ),
            ),
        ),
    ),
    "Ask one question; the guard checks every word of the answer. Options that you leave out come "
    "from your settings.",
)
