"""`safesteer-edge serve`: a guarded server for programs that speak to local models."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safesteer_edge.cli.options import (
    GUARD,
    MODEL,
    OK,
    Argument,
    Command,
    Group,
    sampling,
    say,
    settings_with_flags,
)
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.session.settings_file import user_settings

if TYPE_CHECKING:
    from safesteer_edge.session.settings import SessionSettings

_PACKAGES: Final = ("starlette", "uvicorn", "prometheus_client")
_MAX_CONNECTIONS: Final = 128  # each may be sending a body
_MAX_PARALLEL: Final = 64
_KEPT_S: Final = 75  # a connection that rests; longer than OpenAI's and Ollama's clients keep it
_GRACE_S: Final = 10  # for answers that are being told when the server is asked to stop


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop. Raises SettingsError."""
    if not all(map(importlib.util.find_spec, _PACKAGES)):
        raise SettingsError(
            "the server needs more packages; run: pip install 'safesteer-edge[serve]'"
        )
    if not 1 <= options.parallel <= _MAX_PARALLEL:
        raise SettingsError(
            f"--parallel is {options.parallel}; expected 1 to {_MAX_PARALLEL}, and no more than "
            "this machine has cores"
        )
    settings = settings_with_flags(options, user_settings()).session
    others = [replace(settings, model=name, mmproj=None, bundle=None) for name in options.also]
    api_key = _read_key(options.api_key)
    with _listening(options.host, options.port) as listener:
        asyncio.run(_serve(options, [settings, *others], api_key, listener))
    return OK


async def _serve(
    options: argparse.Namespace,
    settings: list[SessionSettings],
    api_key: str | None,
    listener: socket.socket,
) -> None:
    # Deferred: --help needs none of it, and they are an extra's.
    from contextlib import AsyncExitStack

    import uvicorn

    from safesteer_edge.serve.app import ServerSettings, make_app
    from safesteer_edge.serve.served_model import ServedModel
    from safesteer_edge.session.language import load_detector

    server_settings = ServerSettings(
        options.host, say, api_key, tuple(options.allow_origin), options.log_text
    )
    async with AsyncExitStack() as opened:
        models: dict[str, ServedModel] = {}
        for each in settings:
            model = await opened.enter_async_context(
                ServedModel.opened(each, n_queue=options.queue, n_parallel=options.parallel)
            )
            models[model.info.model_name] = model
        if any(model.info.languages for model in models.values()):
            load_detector()  # so that no answer waits for it
        for name, model in models.items():
            guard = f"guard {model.info.bundle}, {model.info.guard}"
            said = guard if model.info.bundle else "NO GUARD"
            say(f"[{strip_control_characters(name)} {model.info.quantization}, {said}]")
            for warning in model.info.warnings:
                say(f"[warning: {strip_control_characters(warning)}]")
        host, port = listener.getsockname()[:2]
        if not server_settings.is_loopback and api_key is None:
            say(f"[warning: anyone who can reach {host} can use this server; set --api-key]")
        listener.listen(128)  # whoever has read where it is can ask
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else _in_url(host)}:{port}"
        key = "any API key" if api_key is None else "your API key"
        say(f"OpenAI clients: base URL {url}/v1, {key}, model {next(iter(models))}")
        say(f"Anthropic and Ollama clients: {url}")
        if not options.verbose:  # what a client did is in its line of our own log
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = uvicorn.Config(
            make_app(models, server_settings),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEPT_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        await uvicorn.Server(config).serve(sockets=[listener])


def _read_key(given: str | None) -> str | None:
    """The key, or the first line of the file behind an @: a process's arguments can be seen."""
    if given is None or not given.startswith("@"):
        key = given
    else:
        try:
            key = Path(given[1:]).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot read the API key in {given[1:]!r}: {error}") from error
    if key is not None and not key:
        raise SettingsError("the API key is empty; give one, or leave --api-key out")
    return key


def _listening(host: str, port: int) -> socket.socket:
    """Bound before the model is loaded. Raises SettingsError."""
    try:
        if not 0 <= port <= 65535:  # the system takes it modulo
            raise OverflowError("there is no such port")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # With its protocol named: else asyncio lets the first words wait 40 ms for an ACK (Nagle).
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"cannot listen at {host!r}, port {port}: {getattr(error, 'strerror', None) or error}; "
            "choose others with --host and --port"
        ) from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


SERVE = Command(
    "serve",
    "a guarded server for OpenAI, Anthropic and Ollama clients",
    run,
    (
        Argument(
            "--host",
            "address to listen at (default: 127.0.0.1)",
            default="127.0.0.1",
            metavar="ADDRESS",
        ),
        Argument(
            "--port",
            "port; 0 takes a free one (default: 8080)",
            type=int,
            default=8080,
            metavar="N",
        ),
        Argument("--api-key", "key that clients must send (@F: read it from F)", metavar="KEY|@F"),
        Argument(
            "--allow-origin",
            "let web pages from this address use it, such as http://localhost:3000",
            action="append",
            default=[],
            metavar="URL",
        ),
        Argument(
            "--also",
            "serve one more model, in a separate process",
            action="append",
            default=[],
            metavar="NAME|F.gguf",
        ),
        Argument(
            "--queue",
            "requests that may wait for a model (default: 16)",
            type=int,
            default=16,
            metavar="N",
        ),
        Argument(
            "--parallel",
            "answers at a time for each model, each in a process of its own (default: 1)",
            type=int,
            default=1,
            metavar="N",
        ),
        Argument("--log-text", "log questions and answers as well", action="store_true"),
        MODEL,
        GUARD,
        Group("sampling (default for requests that do not set it)", sampling().arguments),
    ),
    "Answer other programs' requests, each answer guarded while it is decoded. A request can ask "
    "for a stronger guard, and never for a weaker one.",
)
