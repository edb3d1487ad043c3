"""OpenAI's interface over HTTP, by Starlette: every answer is JSON (or events), errors included."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from echo_ska.serving.answers import END_OF_STREAM, AnswerForm, event
from echo_ska.serving.engine import CancelledAnswerError, Engine, Outcome, Prompt
from echo_ska.serving.loopback import host_name, is_loopback
from echo_ska.serving.protocol import RefusedError, Sampling, error_body, parse
from echo_ska.serving.worker import BusyError, Job, Worker

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2_000_000
BODY_SECONDS = 60.0
"""How long a body may take to come."""
DISCARDED_TIMES = 8
"""Of a body that is too long, so many times the limit is read and thrown away, so that the client hears the answer."""
FAILED = "The server failed at this request; its log says how."
STOPPED = "The server was stopped before the answer was written."


def create_app(engine: Engine, *, max_body_bytes: int = MAX_BODY_BYTES, loopback_only: bool = True) -> Starlette:
    """The application that serves a model.

    Args:
        engine: answers.
        max_body_bytes: longer bodies are refused.
        loopback_only: answer only requests that were sent to a name of this machine itself, so that no web page can
            reach it by a name of its own (DNS rebinding).

    Returns:
        The application; `state.call_off()`, from any thread, ends all its answers and lets no other begin.

    Raises:
        ValueError: max_body_bytes below 1.
    """
    if max_body_bytes < 1:
        raise ValueError(f"max_body_bytes must be at least 1, got {max_body_bytes}")
    return _Server(engine, max_body_bytes, loopback_only).app()


class _Server:
    def __init__(self, engine: Engine, max_body_bytes: int, loopback_only: bool) -> None:
        self._engine, self._max_body_bytes, self._loopback_only = engine, max_body_bytes, loopback_only
        self._worker = Worker()
        self._created = int(time.time())

    def app(self) -> Starlette:
        app = Starlette(
            routes=[
                Route("/health", self._guarded(self._health), methods=["GET"]),
                Route("/v1/models", self._guarded(self._models), methods=["GET"]),
                Route("/v1/models/{name}", self._guarded(self._model), methods=["GET"]),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _failure},
            lifespan=self._lifespan,
        )
        app.state.call_off = self._worker.close
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(self._worker.close)

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint, with its refusals as answers."""

        async def answer(request: Request) -> Response:
            try:
                if self._loopback_only and not is_loopback(host_name(request.headers.get("host", ""))):
                    raise RefusedError("This server answers to localhost alone.", code="unknown_host", status=403)
                return await endpoint(request)
            except RefusedError as error:
                # What may not have been read to its end is not waited for.
                headers = {"Connection": "close"} if error.status in (408, 413) else None
                return JSONResponse(error.body(), error.status, headers)
            except BusyError as error:
                return JSONResponse(error_body(str(error), 503, code="busy"), 503, {"Retry-After": "5"})
            except ClientDisconnect:
                return Response(status_code=499)  # nobody is there any more: it is not sent

        return answer

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self._engine.name, "unfinished": self._worker.unfinished})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def _model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._engine.name:
            raise RefusedError(f"There is no model {name!r} here.", "model", "model_not_found", status=404)
        return JSONResponse(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        return {"id": self._engine.name, "object": "model", "created": self._created, "owned_by": "echo-ska"}

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _completion(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _answer(self, request: Request, chat: bool) -> Response:
        # A web page may send other types unasked to any address, this one only if it is allowed to, which it is not.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(f"The Content-Type must be application/json, got {kind or 'none'}.", status=415)
        asked = parse(await self._body(request), self._engine.name, chat)
        prompt = await run_in_threadpool(self._engine.prepare, asked)
        form = AnswerForm(self._engine.name, self._engine.fingerprint, chat)
        events = _Events(self._engine, self._worker, prompt, asked.sampling, request)
        if asked.stream:
            stream = _stream(events, form, asked.include_usage)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        text = ""
        async with contextlib.aclosing(aiter(events)) as pieces:
            async for what in pieces:
                if isinstance(what, Outcome):
                    return JSONResponse(form.whole(text, what))
                if isinstance(what, Exception):
                    return _ended(what)
                text += what
        raise AssertionError("events end with an outcome or an exception")

    async def _body(self, request: Request) -> bytes:
        """The body, or what is wrong with it; memory for `max_body_bytes`, however long it is."""
        limit, body, size = self._max_body_bytes, bytearray(), 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    size += len(piece)
                    if size > DISCARDED_TIMES * limit:
                        break
                    if size <= limit:
                        body += piece
                    else:
                        body.clear()
        except TimeoutError:
            raise RefusedError(f"The body did not come within {BODY_SECONDS:.0f} s.", status=408) from None
        if size > limit:
            raise RefusedError(
                f"The body is longer than {limit:,} bytes (--max-body-bytes).", code="body_too_long", status=413
            )
        return bytes(body)


class _Events:
    """An answer as it comes: pieces of text, and at the end an Outcome or the exception that ended it.

    It is asked for at once, and called off when the client goes away or when whoever iterates stops.
    """

    def __init__(self, engine: Engine, worker: Worker, prompt: Prompt, sampling: Sampling, request: Request) -> None:
        self._queue: asyncio.Queue[str | Outcome | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(what: str | Outcome | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(self._queue.put_nowait, what)

        def run(job: Job) -> None:
            try:
                put(engine.answer(prompt, sampling, put, lambda: job.is_cancelled))
            except CancelledAnswerError as error:
                put(error)
            except Exception as error:
                logger.exception("an answer failed")
                put(error)

        self._job = Job(run)
        worker.submit(self._job)
        self._watch = asyncio.create_task(self._call_off_when_gone(request))

    async def _call_off_when_gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._job.cancel()
        self._queue.put_nowait(CancelledAnswerError())

    async def __aiter__(self) -> AsyncGenerator[str | Outcome | Exception, None]:
        try:
            while True:
                what = await self._queue.get()
                yield what
                if not isinstance(what, str):
                    return
        finally:
            self._job.cancel()
            self._watch.cancel()


async def _stream(events: _Events, form: AnswerForm, include_usage: bool) -> AsyncIterator[bytes]:
    """An answer as server-sent events."""
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    if form.is_chat:
        yield event(form.chunk(None) | more)
    async with contextlib.aclosing(aiter(events)) as pieces:
        async for what in pieces:
            if isinstance(what, Outcome):
                yield event(form.chunk("", what.finish_reason) | more)
                if include_usage:
                    yield event(form.usage_chunk(what))
                yield END_OF_STREAM
            elif isinstance(what, Exception):
                yield event(error_body(STOPPED if isinstance(what, CancelledAnswerError) else FAILED, 500))
            else:
                yield event(form.chunk(what) | more)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    texts = {
        404: f"There is nothing at {request.url.path}: see /v1/models, /v1/chat/completions, /v1/completions, /health.",
        405: f"{request.url.path} does not take {request.method}.",
    }
    text = texts.get(error.status_code, str(error.detail))
    return JSONResponse(error_body(text, error.status_code), error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    """A mistake of ours; Starlette hands it on to the server's log."""
    return _ended(error)


def _ended(error: Exception) -> Response:
    """For an answer that did not come to its end. A client that has gone is not sent it."""
    if isinstance(error, CancelledAnswerError):
        return JSONResponse(error_body(STOPPED, 503, code="stopped"), 503)
    return JSONResponse(error_body(FAILED, 500), 500)
