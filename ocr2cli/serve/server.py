"""The HTTP server: routes, limits and keys around a `ServeEngine`.

A page is answered when it is done: a stream carries it in lines, not token by token. Knows nothing
about models or how pages are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocr2cli.document.preview import page_previews
from ocr2cli.errors import Ocr2Error
from ocr2cli.output.metrics import server_metrics
from ocr2cli.pages import Ask, PageResult
from ocr2cli.serve import protocol
from ocr2cli.serve.engine import QueueFull, ServeEngine, TooManyPages, for_clients, now
from ocr2cli.serve.refusals import HANDLED, answer_bug, answer_refused, error_answer, refusal_of
from ocr2cli.text.prompt import prompt_text

# The page at / loads nothing from anywhere and talks to this server only.
_PAGE_POLICY = "; ".join((
    "default-src 'none'", "script-src 'unsafe-inline'", "style-src 'unsafe-inline'",
    "img-src data: blob:", "connect-src 'self'",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """model: the name clients ask for. api_key: "" asks for none."""

    model: str = "nano"
    api_key: str = ""
    allow_http: bool = False


class Server:
    """Handlers; one method a route."""

    def __init__(self, engine: ServeEngine, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self._num_previews = 0

    def app(self) -> Starlette:
        """The ASGI application. The engine starts and stops with it."""
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/ocr", self.ocr, methods=["POST"]),
            Route("/v1/preview", self.preview, methods=["POST"]),
        ]
        handlers: Any = {Exception: answer_bug, HTTPException: answer_refused}
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self.engine.start()
        yield
        await run_in_threadpool(self.engine.close)

    async def page(self, _request: Request) -> Response:
        html = resources.files("ocr2cli.serve").joinpath("page.html").read_text(encoding="utf-8")
        limits = self.engine.limits
        size = f"{limits.body_bytes / 1e6:g} MB and {limits.pages} pages"
        html = html.replace("{{takes}}", f"PDF, {protocol.IMAGES}; up to {size} a document")
        html = html.replace("{{max_bytes}}", str(limits.body_bytes))
        return HTMLResponse(html, headers={"Content-Security-Policy": _PAGE_POLICY})

    async def health(self, _request: Request) -> Response:
        is_healthy = self.engine.is_healthy
        body = {"status": "ok" if is_healthy else "failed", "reason": self.engine.fault}
        return JSONResponse(body, 200 if is_healthy else 503)

    async def metrics(self, request: Request) -> Response:
        if refusal := self._refuse(request):
            return refusal
        stages = self.engine.status.stages()
        text = server_metrics(
            self.engine.pages_by_status,
            {stage.name: stage.num_waiting + stage.num_held for stage in stages},
            {stage.name: stage.num_restarts for stage in stages},
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        if refusal := self._refuse(request):
            return refusal
        return JSONResponse({"object": "list", "data": [self._model_row()]})

    async def model(self, request: Request) -> Response:
        if refusal := self._refuse(request):
            return refusal
        if request.path_params["name"] != self.settings.model:
            return error_answer(404, f"this server holds {self.settings.model}", "model_not_found")
        return JSONResponse(self._model_row())

    def _model_row(self) -> dict[str, Any]:
        return {"id": self.settings.model, "object": "model", "created": 0, "owned_by": "ocr2"}

    async def chat(self, request: Request) -> Response:
        """A page image to its text, as OpenAI's chat completions."""
        if refusal := self._refuse(request):
            return refusal
        try:
            # Fetching an image may take its time, which is not the other clients'.
            ask = await run_in_threadpool(
                protocol.parse_chat,
                await self._body(request),
                allow_http=self.settings.allow_http,
                max_bytes=self.engine.limits.body_bytes,
            )
            page = await self._submit(ask.image, Ask(ask.prompt, ask.max_tokens), max_pages=1)
            (result,) = await self._all(request, page)
        except TooManyPages:
            more = "a chat takes one page, and this document has more: POST /v1/ocr reads them all"
            return refusal_of(protocol.BadRequest(more))
        except HANDLED as error:
            return refusal_of(error)
        if result.error is not None:
            return error_answer(422, result.error.message, result.error.code)
        names = {"name": f"chatcmpl-{uuid4().hex}", "created": now(), "model": self.settings.model}
        if ask.is_stream:
            chunks = protocol.chat_chunks(
                result, **names, has_usage=ask.has_usage  # type: ignore[arg-type]
            )
            return StreamingResponse(_events(chunks), media_type="text/event-stream")
        return JSONResponse(protocol.chat_answer(result, **names))  # type: ignore[arg-type]

    async def ocr(self, request: Request) -> ASGIApp:
        """A PDF or an image (raw body, or a form's `file` and `password`) to markdown or JSON.

        Query: prompt=NAME, pages=SPEC, max_new_tokens=N, format=markdown|json|ndjson. ndjson: a
        line a page as each is done, in no order, after a line with their number; html=yes: with
        the page's text laid out as `html`.
        """
        if refusal := self._refuse(request):
            return refusal
        query = request.query_params
        wanted = query.get("format", "")
        if not wanted and "application/json" in request.headers.get("accept", ""):
            wanted = "json"
        try:
            protocol.check_query(query)
            ask = Ask(prompt_text(query.get("prompt", "markdown")), _limit(query))
            body, password = await self._document(request)
            ask = replace(ask, password=password)
            pages = await self._submit(body, ask, query.get("pages", ""))
            if wanted == "ndjson":
                rows_of = self._rows(pages, has_html=query.get("html") == "yes")
                with contextlib.ExitStack() as until_sent:
                    until_sent.callback(_cancel, pages)
                    return _until_sent(rows_of, until_sent.pop_all())
            results = await self._all(request, pages)
        except HANDLED as error:
            return refusal_of(error)
        rows = [protocol.page_row(result) for result in results]
        if all(result.error is not None for result in results):
            return error_answer(422, **rows[0]["error"], more={"pages": rows})
        if wanted != "json":
            return PlainTextResponse(protocol.as_markdown(results), media_type="text/markdown")
        return JSONResponse({"pages": rows, "usage": protocol.usage(results)})

    async def preview(self, request: Request) -> ASGIApp:
        """Pictures of a document's pages for the page at /, a JSON line each as it is drawn."""
        if refusal := self._refuse(request):
            return refusal
        if self._num_previews >= _MAX_PREVIEWS:
            return refusal_of(QueueFull(1))
        self._num_previews += 1
        with contextlib.ExitStack() as place:
            place.callback(self._give_place)
            try:
                body, password = await self._document(request)
                lines = self._previews(body, protocol.ending_of(body), password)
            except HANDLED as error:
                return refusal_of(error)
            place.enter_context(contextlib.closing(lines))
            return _until_sent(lines, place.pop_all())

    def _give_place(self) -> None:
        self._num_previews -= 1

    def _previews(self, body: bytes, ending: str, password: str) -> Generator[str]:
        with tempfile.NamedTemporaryFile(prefix="ocr2-preview-", suffix=ending) as file:
            file.write(body)
            file.flush()
            most = self.engine.limits.pages
            rows = page_previews(file.name, max_pages=most, password=password)
            with contextlib.closing(rows):
                for row in rows:
                    if "error" in row:
                        row["error"] = for_clients(row["error"])
                    yield json.dumps(row) + "\n"

    async def _submit(
        self, body: bytes, ask: Ask, pages: str = "", *, max_pages: int = 0
    ) -> list[Future[PageResult]]:
        """Every page of one document queued, or the reason why not."""
        ending = protocol.ending_of(body)
        submit = partial(
            self.engine.submit, body, ending=ending, ask=ask, pages=pages, max_pages=max_pages
        )
        futures: list[Future[PageResult]] = await run_in_threadpool(submit)
        return futures

    async def _all(
        self, request: Request, pages: list[Future[PageResult]]
    ) -> list[PageResult]:
        """Every page, in time and while somebody waits; what is left then is not read.

        Raises: TimeoutError, ClientDisconnect, Ocr2Error.
        """
        gathered = asyncio.gather(*map(asyncio.wrap_future, pages))
        gone = asyncio.create_task(_until_gone(request))
        try:
            await asyncio.wait(
                (gathered, gone),
                timeout=self.engine.limits.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if gathered.done():
                return list(gathered.result())
            raise ClientDisconnect if gone.done() else TimeoutError
        except asyncio.CancelledError:
            # The time for a graceful end is over: an answer, not a torn connection.
            raise Ocr2Error("the server is shutting down") from None
        finally:
            gone.cancel()
            # What the pages end in is nobody's any more, and asyncio would complain of it on
            # stderr.
            gathered.add_done_callback(lambda done: done.cancelled() or done.exception())
            _cancel(pages)

    async def _rows(
        self, pages: list[Future[PageResult]], *, has_html: bool
    ) -> AsyncIterator[str]:
        """The ndjson answer. What goes wrong after its first line is its last line."""
        yield json.dumps({"num_pages": len(pages)}) + "\n"
        try:
            waiting = map(asyncio.wrap_future, pages)
            for page in asyncio.as_completed(waiting, timeout=self.engine.limits.seconds):
                result = await page
                row = protocol.page_row(result)
                if has_html:
                    row["html"] = protocol.page_html(result)
                yield json.dumps(row) + "\n"
        except HANDLED as error:
            yield bytes(refusal_of(error).body).decode() + "\n"

    async def _document(self, request: Request) -> tuple[bytes, str]:
        """The document and its password, which has a place in forms only: addresses are logged."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await self._body(request), ""
        async with self._limited(request).form(max_files=1, max_fields=8) as form:
            upload = form.get("file")
            if upload is None or isinstance(upload, str):
                raise protocol.BadRequest("send the document as the form's field `file`")
            password = form.get("password", "")
            if not isinstance(password, str) or len(password) > _MAX_PASSWORD:
                raise protocol.BadRequest(f"a password has up to {_MAX_PASSWORD} characters")
            return bytes(await upload.read()), password

    async def _body(self, request: Request) -> bytes:
        body: bytes = await self._limited(request).body()
        return body

    def _limited(self, request: Request) -> Request:
        """The same request, its body read no further than the limit whatever its headers say.

        Raises: BadRequest, at once when the headers themselves say too much.
        """
        limit, taken = self.engine.limits.body_bytes, 0
        too_large = protocol.BadRequest(f"at most {limit} bytes in one request", 413)
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
            raise too_large

        async def receive() -> Message:
            nonlocal taken
            message = await request.receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise too_large
            return message

        return Request(request.scope, receive)

    def _refuse(self, request: Request) -> Response | None:
        key = self.settings.api_key
        # Starlette reads headers as Latin-1: this is what was sent.
        given = request.headers.get("authorization", "").encode("latin-1").removeprefix(b"Bearer ")
        wanted = key.encode("utf-8", "surrogateescape")
        if key and not secrets.compare_digest(given, wanted):
            return error_answer(401, "send the header Authorization: Bearer KEY", "unauthorized")
        return None


def _cancel(pages: list[Future[PageResult]]) -> None:
    """Pages that are answered stay so."""
    for page in pages:
        page.cancel()


async def _until_gone(request: Request) -> None:
    """Return when the client has left. The request's body is read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _until_sent(
    lines: Iterator[str] | AsyncIterator[str], place: contextlib.ExitStack
) -> ASGIApp:
    """A stream that closes `place` when all is sent, or nothing can be any more: what a stream
    itself closes is left open when the client goes before the first line."""
    stream = StreamingResponse(lines, media_type="application/x-ndjson")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with place:
            await stream(scope, receive, send)

    return answer


# Processes that draw previews at once; reading does not wait for them.
_MAX_PREVIEWS = 4
# A PDF's has 127 bytes at most.
_MAX_PASSWORD = 127


async def _events(chunks: list[dict[str, Any]]) -> AsyncIterator[str]:
    for chunk in chunks:
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def _limit(query: Any) -> int:
    text = query.get("max_new_tokens", "0")
    if not text.isdecimal() or len(text) > 9:
        raise protocol.BadRequest("max_new_tokens is a whole number of up to 9 digits")
    return int(text)
