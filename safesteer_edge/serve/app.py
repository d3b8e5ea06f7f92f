"""The server: who may ask, which path is which dialect, and what is counted and logged."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safesteer_edge.errors import InputError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import BadValueError, load_json
from safesteer_edge.formats.version import VERSION
from safesteer_edge.guard.events import PrefillDone
from safesteer_edge.serve import ollama_chat
from safesteer_edge.serve.anthropic_messages import MESSAGES
from safesteer_edge.serve.asked import an_object
from safesteer_edge.serve.dialect import (
    Dialect,
    Head,
    Json,
    Problem,
    ProblemError,
    compact,
    problem_of,
)
from safesteer_edge.serve.ollama_chat import OLLAMA
from safesteer_edge.serve.openai_chat import CHAT, moderation_result
from safesteer_edge.serve.openai_responses import RESPONSES
from safesteer_edge.serve.served_model import Answered, Piece, ServedModel

Result = TypeVar("Result")

_MAX_BODY_BYTES: Final = 48 << 20  # one picture of the largest size, in base64, and some
_BODY_LIMIT_S: Final = 60.0
_READ_LIMIT_S: Final = 60.0
_MAX_MODERATED: Final = 32
_CLIENT_GONE: Final = 499  # nginx's name for it; in the log alone
_DIALECTS: Final[Mapping[str, Dialect]] = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": MESSAGES,
    "/v1/responses": RESPONSES,
    "/api/chat": OLLAMA,
}
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_logger = logging.getLogger("safesteer_edge.serve")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """host: the address it listens at. origins: of web pages that may ask. narrate: the log."""

    host: str
    narrate: Callable[[str], None]
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    logs_text: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can ask."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def make_app(models: Mapping[str, ServedModel], settings: ServerSettings) -> ASGIApp:
    """The application. models: open ones, by the names that clients know; the first is usual."""
    server = _Server(models, settings)
    routes = [
        Route("/", server.hello),
        Route("/health", server.health),
        Route("/metrics", server.metrics),
        Route("/v1/models", server.list_models),
        Route("/v1/models/{name:path}", server.one_model),
        *(Route(path, server.ask, methods=["POST"]) for path in _DIALECTS),
        Route("/v1/messages/count_tokens", server.count_tokens, methods=["POST"]),
        Route("/v1/moderations", server.moderate, methods=["POST"]),
        Route("/api/version", server.version),
        Route("/api/tags", server.tags),
        Route("/api/show", server.show, methods=["POST"]),
    ]
    app = _Gate(Router(routes, redirect_slashes=False), server)
    if not settings.origins:
        return app
    return CORSMiddleware(app, settings.origins, allow_methods=["*"], allow_headers=["*"])


class _Server:
    """The endpoints."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServerSettings) -> None:
        self.settings = settings
        self._models = models
        self._started = int(time.time())
        self.counts = _Counts(models)

    @property
    def guard(self) -> str:
        """The mode that all models are guarded in."""
        return next(iter(self._models.values())).info.guard

    # -- answers ----------------------------------------------------------------------------------

    async def ask(self, request: Request) -> Response:
        """An answer in the dialect of the path."""
        dialect = _DIALECTS[request.url.path]
        asked = dialect.read(await _body(request))
        model = self._model(asked.model)
        request.state.asked = asked
        request.state.notice = model.language_notice(asked.messages[-1].text)
        pieces = self._noted(request, model.answer(asked))
        try:
            # Nothing is sent before there is something to show: until then a problem is a status.
            first = await _unless_gone(request, anext(pieces))
            if not isinstance(first, PrefillDone):
                raise ProblemError(500, "the answer ended before it began")
            head = Head(asked, first, model.fingerprint)
            if not asked.is_stream:
                answered = await _unless_gone(request, _last(pieces))
                trace = {"x-safesteer-trace": compact(answered.trace()).decode()}
                headers = trace if asked.guard.trace else None
                await pieces.aclose()
                return Response(
                    compact(dialect.whole(head, answered)), 200, headers, "application/json"
                )
            second = await _unless_gone(request, anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        chunks = dialect.stream(head, _chained(second, pieces))
        return _Stream(_framed(request, dialect, chunks), pieces, dialect.media_type)

    async def _noted(
        self, request: Request, pieces: AsyncGenerator[Piece, None]
    ) -> AsyncGenerator[Piece, None]:
        try:
            async for piece in pieces:
                if isinstance(piece, Answered):
                    request.state.answered = piece
                    self.counts.answer(piece)
                yield piece
        finally:
            await pieces.aclose()

    async def count_tokens(self, request: Request) -> Response:
        """Read the prompt, which an answer then finds in the cache, and say how long it is."""
        asked = MESSAGES.read(await _body(request))
        reading = self._model(asked.model).prompt_score(asked.messages, asked.form)
        prefill = await _unless_gone(request, reading)
        return JSONResponse({"input_tokens": prefill.n_prompt_tokens})

    async def moderate(self, request: Request) -> Response:
        """The probe's verdict on each text, or on parts, as a question to the model."""
        body = an_object(await _body(request), "the body")
        given, name = body.get("input"), body.get("model")
        is_parts = isinstance(given, list) and given and isinstance(given[0], dict)
        told = [given] if isinstance(given, str) or is_parts else given
        if not isinstance(told, list) or not told or len(told) > _MAX_MODERATED:
            raise BadValueError(f"'input' is no text, and no list of 1 to {_MAX_MODERATED}")
        read = [CHAT.read({"model": "", "messages": [_user(each)]}).messages for each in told]
        is_usual = name is None or (isinstance(name, str) and "-moderation-" in name)  # OpenAI's
        model = self._model(next(iter(self._models)) if is_usual else name)
        policy = model.info.policy
        if policy is None or model.info.guard == "off":
            raise ProblemError(400, "this server runs with guard 'off': there is no probe to ask")
        request.state.notice = model.language_notice(*(each[-1].text for each in read))
        # Above it a prompt is an alarm. A bundle without one knows what alarms in answers.
        limit = policy.prompt_limit if policy.prompt_limit < 1 else policy.risk_limit
        results: list[Json] = []
        for messages in read:
            score = (await _unless_gone(request, model.prompt_score(messages))).prompt_score
            if score is None:
                raise ProblemError(500, "the guard cannot judge this input")
            has_picture = any(said.media for said in messages)
            results.append(moderation_result(score, limit, has_picture=has_picture))
        made = {"id": f"modr-{secrets.token_hex(12)}", "model": model.info.model_name}
        return JSONResponse({**made, "results": results})

    # -- what there is ----------------------------------------------------------------------------

    async def hello(self, _: Request) -> Response:
        """Some clients look whether anybody is there."""
        return PlainTextResponse(f"safesteer-edge {VERSION} is running")

    async def health(self, _: Request) -> Response:
        """Whether it answers: an engine that died starts again with the next question."""
        return JSONResponse({"status": "ok", "guard": self.guard})

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self.counts.registry), media_type=CONTENT_TYPE_LATEST)

    async def list_models(self, _: Request) -> Response:
        """The models, with what guards them."""
        return JSONResponse({"object": "list", "data": [*map(self._model_json, self._models)]})

    async def one_model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        self._model(name)
        return JSONResponse(self._model_json(name))

    async def version(self, _: Request) -> Response:
        """The version of the dialect."""
        return JSONResponse({"version": ollama_chat.VERSION})

    async def tags(self, _: Request) -> Response:
        """The models, as Ollama lists them."""
        infos = [model.info for model in self._models.values()]
        return JSONResponse({"models": [ollama_chat.tag(info, self._started) for info in infos]})

    async def show(self, request: Request) -> Response:
        """One model, as Ollama shows it."""
        body = an_object(await _body(request), "the body")
        model = self._model(body.get("model") or body.get("name"))
        return JSONResponse(ollama_chat.shown(model.info, self._started))

    def _model(self, name: object) -> ServedModel:
        text = name if isinstance(name, str) else ""
        model = self._models.get(text) or self._models.get(text.removesuffix(":latest"))
        if model is None:
            known = ", ".join(self._models)
            text = strip_control_characters(text[:80])
            raise ProblemError(404, f"there is no model {text!r} here: {known}", "model_not_found")
        return model

    def _model_json(self, name: str) -> Json:
        info = self._models[name.removesuffix(":latest")].info
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "safesteer-edge",
            "safesteer": {
                "guard": info.guard,
                "bundle": info.bundle,
                "strength": info.policy.strength if info.policy else None,
                "context": info.n_ctx,
                "sees": info.sees,
                "hears": info.hears,
            },
        }


# -- who may ask, and the log ----------------------------------------------------------------------


class _Gate:
    """Around everything: refuses strangers, turns errors into answers, counts and logs."""

    def __init__(self, app: ASGIApp, server: _Server) -> None:
        self._app = app
        self._server = server
        self._settings = server.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, status = time.perf_counter(), 0
        scope.setdefault("state", {})
        scope["app"] = self._app  # so that a router raises what it cannot find

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                notice = scope["state"].get("notice")
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-safesteer-guard", self._server.guard.encode()),
                    *([(b"x-safesteer-notice", notice.encode())] if notice else []),
                ]
            try:  # the engine waits for whoever reads slowly, and all others with it
                await asyncio.wait_for(send(message), _READ_LIMIT_S)
            except asyncio.TimeoutError as error:
                raise ClientDisconnect from error

        try:
            self._check(Request(scope))
            await self._app(scope, receive, send_noted)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except HTTPException as error:
            what = "wrong method" if error.status_code == 405 else "there is nothing here"
            problem = Problem(error.status_code, f"{what}: {scope['method']} {_shown(scope)}")
            await _problem_response(problem, scope)(scope, receive, send_noted)
        except Exception as error:  # the edge: one line for the client, the rest with --verbose
            _logger.debug("a request failed", exc_info=True)
            if not status:
                await _problem_response(problem_of(error), scope)(scope, receive, send_noted)
        finally:
            self._note(scope, status or _CLIENT_GONE, time.perf_counter() - started_s)

    def _check(self, request: Request) -> None:
        """Raise ProblemError for who may not ask."""
        settings, path = self._settings, request.url.path
        origin = request.headers.get("origin")
        if origin is not None and origin not in settings.origins:
            text = f"web pages of {strip_control_characters(origin[:80])!r} may not ask; the server"
            raise ProblemError(403, f"{text} can allow it with --allow-origin")
        if settings.api_key is None:
            # A web page whose name leads to this machine is still a stranger's.
            if settings.is_loopback and _host_of(request) not in (*_LOOPBACK, settings.host):
                raise ProblemError(403, "this server is for programs on its own machine alone")
            return
        if path == "/health":
            return
        bearer = request.headers.get("authorization", "")
        given = request.headers.get("x-api-key") or bearer.removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), settings.api_key.encode()):
            raise ProblemError(401, "the API key is wrong or missing", "invalid_api_key")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path, state = scope["path"], scope["state"]
        asked, answered = state.get("asked"), state.get("answered")
        self._server.counts.request(path if path in _DIALECTS else "other", status, seconds)
        clock = time.strftime("%H:%M:%S")
        told = f"{clock} {scope['method']} {_shown(scope)} {status} {seconds:.2f} s"
        if asked is not None:
            told += f", {asked.model}"
        if answered is not None:
            usage = answered.usage
            told += (
                f", {usage.prompt_tokens} tokens read ({usage.reused_tokens} of them cached), "
                f"{usage.completion_tokens} written, {answered.ended.guard.interventions} steered"
            )
            told += ", refused" if answered.refusal else ""
        if self._settings.logs_text and asked is not None:
            told += f", asked {asked.messages[-1].text!r}"
            told += f", answered {answered.text!r}" if answered is not None else ""
        self._settings.narrate(strip_control_characters(told))


class _Counts:
    """What /metrics tells."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "safesteer"}
        self._requests = Counter("requests", "Requests", ["path", "status"], **made)
        self._seconds = Histogram("request_seconds", "Seconds a request", ["path"], **made)
        self._tokens = Counter("tokens", "Tokens read, cached of these, written", ["kind"], **made)
        self._steered = Counter("steered_tokens", "Tokens that the guard changed", **made)
        self._refused = Counter("refusals", "Answers that the guard ended", ["reason"], **made)
        waiting = Gauge("waiting", "Requests that wait for their turn", **made)
        waiting.set_function(lambda: sum(model.n_waiting for model in models.values()))

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def answer(self, answered: Answered) -> None:
        """Count an answer."""
        usage = answered.usage
        self._tokens.labels("read").inc(usage.prompt_tokens)
        self._tokens.labels("cached").inc(usage.reused_tokens)
        self._tokens.labels("written").inc(usage.completion_tokens)
        self._steered.inc(answered.ended.guard.interventions)
        if answered.refusal is not None:
            self._refused.labels(answered.refusal.reason).inc()


# -- private ---------------------------------------------------------------------------------------


class _Stream(StreamingResponse):
    """A stream that ends its answer when it ends itself, or its client goes."""

    def __init__(
        self, chunks: AsyncIterator[bytes], pieces: AsyncGenerator[Piece, None], media_type: str
    ) -> None:
        super().__init__(chunks, media_type=media_type, headers={"cache-control": "no-cache"})
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _unless_gone(Request(scope, receive), self.stream_response(send))
        finally:
            await self._pieces.aclose()


async def _framed(
    request: Request, dialect: Dialect, chunks: AsyncIterator[Json]
) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield dialect.frame(chunk)
    except Exception as error:  # the status is out: the dialect's own words for it
        _logger.debug("an answer failed", exc_info=True)
        problem = problem_of(error)
        yield dialect.frame(dialect.failed(problem.body(request.url.path)))
        return
    if dialect.ending:
        yield dialect.ending


async def _chained(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


async def _last(pieces: AsyncIterator[Piece]) -> Answered:
    async for piece in pieces:
        if isinstance(piece, Answered):
            return piece
    raise ProblemError(500, "the answer did not end")


async def _unless_gone(request: Request, awaited: Awaitable[Result]) -> Result:
    """The result, unless the client goes away first. Raises ClientDisconnect."""
    work, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await work


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> Any:
    """The JSON body. Raises BadValueError, ProblemError for one that is too long or too slow."""
    too_long = ProblemError(413, f"the body is longer than {_MAX_BODY_BYTES} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > _MAX_BODY_BYTES:
        raise too_long
    data = bytearray()

    async def read() -> None:
        async for part in request.stream():
            data.extend(part)
            if len(data) > _MAX_BODY_BYTES:
                raise too_long

    try:
        await asyncio.wait_for(read(), _BODY_LIMIT_S)
    except asyncio.TimeoutError as error:
        raise ProblemError(408, f"the body took longer than {_BODY_LIMIT_S:.0f} s") from error
    try:
        return load_json(bytes(data))
    except InputError as error:
        raise BadValueError(f"the body is {error}") from error


def _shown(scope: Scope) -> str:
    return strip_control_characters(scope["path"][:80])


def _user(text: object) -> Json:
    return {"role": "user", "content": text}


def _problem_response(problem: Problem, scope: Scope) -> Response:
    headers = {"retry-after": "1"} if problem.status in (429, 503) else None
    return JSONResponse(problem.body(scope["path"]), problem.status, headers)


def _host_of(request: Request) -> str | None:
    """The name that the client knows this machine by; an old client names none."""
    try:
        return urlsplit(f"//{request.headers.get('host', _LOOPBACK[0])}").hostname
    except ValueError:
        return None
