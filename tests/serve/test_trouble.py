"""A server with a stub in the model's place, met by bad requests, slow hosts and a dead engine."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pymupdf
import pytest
import uvicorn
from PIL import Image

from ocr2cli.cli.main import main
from ocr2cli.cli.options import set_up_logging
from ocr2cli.cli.serve import log_as_ours
from ocr2cli.config import EngineConfig, RasterConfig, RunConfig
from ocr2cli.document import listing
from ocr2cli.document.files import PLAIN_BYTES
from ocr2cli.document.preview import page_previews
from ocr2cli.engines.choose import EnginePlan
from ocr2cli.engines.remote import remote_spec
from ocr2cli.engines.remote_client import make_client
from ocr2cli.errors import EngineError, ExitCode, Ocr2Error, UsageError
from ocr2cli.pages import Ask, PageError, PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.stage import Emit, Inbox, Stage
from ocr2cli.serve import fetching, protocol
from ocr2cli.serve.engine import Limits, QueueFull, ServeEngine
from ocr2cli.serve.server import Server, ServerSettings
from ocr2cli.text.prompt import prompt_text

LIMIT_BYTES = 100_000
# The prompt that the stub fails first pages of.
FAIL = prompt_text("figure")


class Reader:
    """Every page is read at once, but first pages for FAIL; or the engine ends with the first."""

    def __init__(self, is_dying: bool) -> None:
        self.is_dying = is_dying

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while jobs := inbox.take(1, wait=True):
            if self.is_dying:
                raise EngineError("the device is lost")
            emit(self.read(jobs[0]))

    def read(self, job: PageJob) -> PageResult:
        if job.ask.prompt == FAIL and job.key.page == 0:
            error = PageError("out_of_memory", f"no memory to render {job.path}; try a lower --dpi")
            return PageResult(job.key, Status.FAILED, error=error)
        return PageResult(job.key, Status.OK, markdown="text")


def make_engine(*, is_dying: bool = False) -> ServeEngine:
    limits = Limits(body_bytes=LIMIT_BYTES, pages=4, queued=4, seconds=30)
    cfg = RunConfig(inputs=(), runner="inline", drain=1.0)
    return ServeEngine(cfg, limits, make_plan(is_dying=is_dying))


def make_plan(*, is_dying: bool) -> EnginePlan:
    stage = Stage("read", partial(Reader, is_dying), 1, credit=2, timeout_s=60, num_threads=1)
    return EnginePlan((stage,), "stub")


@pytest.fixture
def engine() -> Iterator[ServeEngine]:
    engine = make_engine()
    engine.start()
    yield engine
    engine.close()


class Gate(Reader):
    """Reads no page before it is told to; counts them."""

    may_read = threading.Event()
    keys: ClassVar[list[PageKey]] = []

    def read(self, job: PageJob) -> PageResult:
        self.keys.append(job.key)
        assert self.may_read.wait(20) and Path(job.path).exists()
        return PageResult(job.key, Status.OK, markdown="text")


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServeEngine]:
    """An engine for four pages whose only worker holds its first until `Gate.may_read` is set."""
    monkeypatch.setattr(sys.modules[__name__], "Reader", Gate)
    Gate.may_read.clear()
    Gate.keys.clear()
    engine = make_engine()
    engine.start()
    yield engine
    Gate.may_read.set()
    engine.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(400):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it took more than 4 s")


def files_of(engine: ServeEngine) -> list[Path]:
    return list(Path(engine._spool.name).iterdir())


def test_pages_that_nobody_waits_for_are_not_read_and_have_no_place(gated: ServeEngine) -> None:
    """They were read to the end, each time that a client gave up and asked again."""
    (held,) = gated.submit(page(), ending=".png", ask=Ask())
    wait_until(lambda: len(Gate.keys) == 1)
    for _ in range(3):
        left = gated.submit(pdf(3), ending=".pdf", ask=Ask())
        with pytest.raises(QueueFull):
            gated.submit(page(), ending=".png", ask=Ask())
        assert len(files_of(gated)) == 2
        assert all(one.cancel() for one in left)
        assert gated.num_queued == 1 and len(files_of(gated)) == 1
    (last,) = gated.submit(page(), ending=".png", ask=Ask())
    held.cancel()
    assert len(files_of(gated)) == 2  # a worker has it
    Gate.may_read.set()
    assert last.result(20).markdown == "text" and len(Gate.keys) == 2
    wait_until(lambda: not files_of(gated))


def test_requests_at_once_are_not_more_than_the_queue_takes(
    gated: ServeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looked whether there was room before any had taken it."""
    all_listed = threading.Barrier(3)
    real = gated._list
    monkeypatch.setattr(
        gated, "_list", lambda *what, **how: [real(*what, **how), all_listed.wait(20)][0]
    )
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(gated.submit, pdf(2), ending=".pdf", ask=Ask()) for _ in range(3)]
        refused = [one for one in asked if isinstance(one.exception(20), QueueFull)]
    assert len(refused) == 1 and gated.num_queued == 4
    assert len(files_of(gated)) == 2


@pytest.mark.parametrize("shape", ["markdown", "ndjson", "chat"])
def test_a_request_that_took_too_long_leaves_no_page_in_the_queue(
    gated: ServeEngine, shape: str
) -> None:
    gated.limits = replace(gated.limits, seconds=0.3)
    gated.submit(page(), ending=".png", ask=Ask())
    url = "data:;base64," + base64.b64encode(pdf()).decode()

    async def work(client: httpx.AsyncClient) -> None:
        if shape == "chat":
            answer = await client.post("/v1/chat/completions", content=chat(url))
        else:
            query = {"format": shape}
            answer = await client.post("/v1/ocr", params=query, content=pdf(2))
        assert "longer than this server allows" in answer.text
        await asyncio.to_thread(wait_until, lambda: gated.num_queued == 1)

    talk(gated, work)


@pytest.mark.parametrize("shape", ["markdown", "ndjson"])
def test_a_client_that_leaves_takes_its_pages_along(gated: ServeEngine, shape: str) -> None:
    """On a real connection."""
    gated.submit(page(), ending=".png", ask=Ask())
    app = Server(gated, ServerSettings()).app()
    web = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        body = pdf(3)
        head = f"POST /v1/ocr?format={shape} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            wait_until(lambda: gated.num_queued == 4)
        wait_until(lambda: gated.num_queued == 1)
        web.should_exit = True
        thread.join(20)


@pytest.mark.parametrize("is_text", [True, False])
def test_a_bug_in_the_server_is_one_log_line_that_says_where(
    is_text: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(verbose=0, quiet=False, log_format="text")
    log_as_ours("some.library", logging.WARNING)
    log = logging.getLogger("some.library.part")
    for error in (ValueError("a slip"), asyncio.CancelledError(), KeyboardInterrupt()):
        try:
            raise error
        except BaseException:
            if is_text:
                log.error(traceback.format_exc())
            else:
                log.exception("Exception in ASGI application\n")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: a slip: File" in line and "test_trouble.py" in line
    assert line.startswith("error: ValueError" if is_text else "error: Exception in ASGI")


def page(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(buffer, kind)
    return buffer.getvalue()


def chat(image: str, words: str = "Free OCR.") -> str:
    parts = [
        {"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": words},
    ]  # fmt: skip
    return json.dumps({"messages": [{"role": "user", "content": parts}]})


def talk(
    engine: ServeEngine, work: Callable[[httpx.AsyncClient], Awaitable[None]], **settings: Any
) -> None:
    """Do something with a client of a server around the engine, which runs already."""

    async def main() -> None:
        app = Server(engine, ServerSettings(**settings)).app()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(base_url="http://ocr2", transport=transport) as client:
            await work(client)

    asyncio.run(main())


def test_after_the_engine_has_died_every_request_is_refused_at_once_with_the_reason() -> None:
    engine = make_engine(is_dying=True)
    engine.start()
    with pytest.raises(Ocr2Error, match="device is lost"):
        engine.submit(page(), ending=".png", ask=Ask())[0].result(20)
    for _ in range(6):  # more than may wait
        with pytest.raises(Ocr2Error, match="device is lost"):
            engine.submit(page(), ending=".png", ask=Ask())
    assert engine.num_queued == 0 and not engine.is_healthy
    engine.close()


def test_a_server_whose_engine_has_died_answers_what_waits_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stayed up for ever: nothing that looks after processes had a reason to start it anew."""
    monkeypatch.setattr("ocr2cli.serve.engine.plan_engine", lambda cfg: make_plan(is_dying=True))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    answers: list[httpx.Response] = []

    def ask() -> None:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                answers.append(httpx.post(f"http://127.0.0.1:{port}/v1/ocr", content=page()))
                return
            time.sleep(0.05)

    client = threading.Thread(target=ask)
    client.start()
    with pytest.raises(SystemExit) as end:
        main(["serve", "--port", str(port), "--runner", "inline"])
    client.join()
    assert end.value.code == ExitCode.ENGINE
    assert capsys.readouterr().err == "ocr2: the device is lost\n"
    assert [answer.status_code for answer in answers] == [503]
    assert answers[0].json()["error"]["message"] == "the device is lost"


@pytest.mark.parametrize("kind", ["TIFF", "PDF"])
def test_a_chat_answers_one_page_and_refuses_a_document_of_more(
    engine: ServeEngine, kind: str
) -> None:
    """It read the first and said nothing of the others."""

    def document(num_pages: int) -> str:
        buffer = io.BytesIO()
        first, *others = [Image.new("RGB", (40, 30), "white") for _ in range(num_pages)]
        first.save(buffer, kind, save_all=True, append_images=others)
        return "data:;base64," + base64.b64encode(buffer.getvalue()).decode()

    async def work(client: httpx.AsyncClient) -> None:
        one = await client.post("/v1/chat/completions", content=chat(document(1)))
        assert one.status_code == 200
        more = await client.post("/v1/chat/completions", content=chat(document(2)))
        assert more.status_code == 400 and "/v1/ocr reads them all" in more.text

    talk(engine, work)
    assert engine.num_queued == 0 and engine.pages_by_status == {"ok": 1}


def test_a_request_that_is_refused_leaves_no_file(engine: ServeEngine) -> None:
    spool = Path(engine._spool.name)
    with pytest.raises(UsageError):
        engine.submit(page(), ending=".png", ask=Ask(), pages="abc")
    assert list(spool.iterdir()) == []
    assert engine.submit(page(), ending=".png", ask=Ask())[0].result(20).markdown == "text"


def test_a_preview_has_its_place_from_its_first_byte_to_its_last_line(engine: ServeEngine) -> None:
    """Requests that were still being sent were not counted: any number of children could draw."""
    may_go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield page()
        await may_go_on.wait()

    async def work(client: httpx.AsyncClient) -> None:
        for refused in [b"words"] * 5:
            assert (await client.post("/v1/preview", content=refused)).status_code == 415
        asked = [asyncio.create_task(client.post("/v1/preview", content=slow())) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert (await client.post("/v1/preview", content=page())).status_code == 429
        may_go_on.set()
        assert all("image" in answer.text for answer in await asyncio.gather(*asked))
        left = asyncio.create_task(client.post("/v1/preview", content=page("TIFF")))
        await asyncio.sleep(0.05)
        left.cancel()
        assert (await client.post("/v1/preview", content=page())).status_code == 200

    talk(engine, work)


def test_only_a_plain_picture_is_opened_in_the_servers_own_process(
    engine: ServeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PDF behind two letters of a BMP was, and MuPDF can take its process along."""
    opened = []
    real = listing.inspect

    def inspect(path: str, cfg: RasterConfig) -> listing.Listing:
        opened.append(Path(path).suffix)
        return real(path, cfg)

    monkeypatch.setattr(listing, "inspect", inspect)
    with pymupdf.open() as document:
        document.new_page()
        document.new_page()
        pdf = document.tobytes()
    others = [b"BM no image\n" + pdf, pdf, page("TIFF"), page("GIF"), page("WEBP"), page("BMP")]
    large = page() + bytes(PLAIN_BYTES)
    for body, num_pages in zip([*others, large], (2, 2, 1, 1, 1, 1, 1), strict=True):
        pages = engine.submit(body, ending=protocol.ending_of(body), ask=Ask())
        assert [one.result(20).markdown for one in pages] == ["text"] * num_pages
    assert opened == []
    for body in (page(), page("JPEG")):
        engine.submit(body, ending=protocol.ending_of(body), ask=Ask())[0].result(20)
    assert opened == [".png", ".jpg"]


def test_a_form_without_a_length_is_read_no_further_than_the_limit(engine: ServeEngine) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        yield (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
               b"Content-Type: image/png\r\n\r\n")  # fmt: skip
        for _ in range(1000):
            sent += 10_000
            yield bytes(10_000)
        yield b"\r\n--b--\r\n"

    async def work(client: httpx.AsyncClient) -> None:
        head = {"Content-Type": "multipart/form-data; boundary=b"}
        for path in ("/v1/ocr", "/v1/preview"):
            answer = await client.post(path, content=pieces(), headers=head)
            assert answer.status_code == 413

    talk(engine, work)
    assert sent <= 2 * (LIMIT_BYTES + 20_000)


def test_a_form_within_the_limit_is_read(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", files={"file": ("a.png", page())})
        assert answer.text == "text\n"

    talk(engine, work)


def pdf(num_pages: int = 1, password: str = "") -> bytes:
    with pymupdf.open() as document:
        for _ in range(num_pages):
            document.new_page(width=100, height=80)
        how = {"encryption": pymupdf.PDF_ENCRYPT_AES_256, "user_pw": password}
        return bytes(document.tobytes(**how if password else {}))


def advice(answer: httpx.Response) -> str:
    """What a refusal says, in the words of a request: nobody can give a server flags."""
    text = answer.text.replace("qpdf --decrypt", "")
    assert "--" not in text and "ocr2-serve-" not in text, text
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("shape", ["markdown", "json", "ndjson"])
@pytest.mark.parametrize(("body", "pages", "code", "words"), [
    (pdf(password="locked"), "", "encrypted", "the form's field `password`"),
    (b"%PDF-1.4 and no more", "", "unreadable", "the document is damaged"),
    (pdf(3), "40", "empty", "has 3 pages; `pages` 40 asks for none of them"),
])  # fmt: skip
def test_a_document_without_a_page_to_read_is_refused_whatever_the_format(
    engine: ServeEngine, shape: str, body: bytes, pages: str, code: str, words: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        query = {"format": shape, "pages": pages}
        answer = await client.post("/v1/ocr", params=query, content=body)
        assert answer.status_code == 422 and words in advice(answer)
        assert answer.json()["error"]["code"] == code

    talk(engine, work)
    assert engine.num_queued == 0 and list(Path(engine._spool.name).iterdir()) == []


@pytest.mark.parametrize("shape", ["markdown", "json"])
def test_a_document_is_refused_when_every_page_failed_and_answered_when_one_was_read(
    engine: ServeEngine, shape: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        query = {"format": shape, "prompt": "figure"}
        answer = await client.post("/v1/ocr", params=query, content=pdf(1))
        assert answer.status_code == 422 and "the document" in advice(answer)
        (row,) = answer.json()["pages"]
        assert (row["page"], row["error"]["code"]) == (1, "out_of_memory")
        answer = await client.post("/v1/ocr", params=query, content=pdf(2))
        assert answer.status_code == 200 and "text" in answer.text

    talk(engine, work)


@pytest.mark.parametrize(("query", "words"), [
    ({"format": "jsn"}, "choose from markdown, json, ndjson"), ({"html": "true"}, "yes, no"),
    ({"max_new_token": "3"}, "did you mean 'max_new_tokens'"), ({"dpi": "200"}, "choose from"),
])  # fmt: skip
def test_what_a_query_has_no_use_for_is_refused(
    engine: ServeEngine, query: dict[str, str], words: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", params=query, content=page())
        assert answer.status_code == 400 and words in advice(answer)

    talk(engine, work)


def test_every_refusal_has_the_same_form(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        head = {"Content-Type": "multipart/form-data; boundary=b"}
        form = await client.post("/v1/ocr", content=b"xx", headers=head)
        assert form.status_code == 400 and "multipart" in advice(form)
        assert (await client.get("/v1/nothing")).json()["error"]["code"] == "not_found"
        wrong = await client.get("/v1/ocr")
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        assert wrong.json()["error"]["code"] == "method_not_allowed"

    talk(engine, work)


def test_the_model_is_found_by_its_name_alone(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        (row,) = (await client.get("/v1/models")).json()["data"]
        assert (await client.get("/v1/models/hub/name")).json() == row
        other = await client.get("/v1/models/gpt-4")
        assert other.status_code == 404 and "hub/name" in advice(other)

    talk(engine, work, model="hub/name")


@pytest.mark.parametrize("query", [
    {"pages": "abc"}, {"prompt": "markdwn"}, {"prompt": "locate:"}, {"prompt": "locate:<|x"},
])  # fmt: skip
def test_what_is_wrong_in_a_query_is_said_in_a_querys_words(
    engine: ServeEngine, query: dict[str, str]
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", params=query, content=page())
        assert answer.status_code == 400 and advice(answer)

    talk(engine, work)


def test_the_password_of_a_form_opens_its_document_alone(engine: ServeEngine) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        files = {"file": ("a.pdf", pdf(2, "locked"))}
        given = {"password": "locked"}
        answer = await client.post("/v1/ocr", files=files, data=given)
        assert answer.status_code == 200 and "<!-- page: 2 -->" in answer.text
        pictures = await client.post("/v1/preview", files=files, data=given)
        assert pictures.text.count("data:image/jpeg") == 2
        for wrong in ({"password": "lock"}, {}):
            assert (await client.post("/v1/ocr", files=files, data=wrong)).status_code == 422
            (row,) = (await client.post("/v1/preview", files=files, data=wrong)).text.splitlines()
            assert "--password" not in row and "password" in json.loads(row)["error"]
        long = await client.post("/v1/ocr", files=files, data={"password": "x" * 2000})
        assert long.status_code == 400

    talk(engine, work)


@pytest.mark.parametrize("number", ["²", "9" * 5000, "-1", "1.5", ""])
def test_a_token_limit_that_is_no_number_is_the_requests_fault(
    engine: ServeEngine, number: str
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/ocr", params={"max_new_tokens": number}, content=page())
        assert answer.status_code == 400 and "whole number" in answer.text

    talk(engine, work)


def test_half_a_character_in_a_prompt_is_the_requests_fault(engine: ServeEngine) -> None:
    """JSON can hold it, no tokenizer takes it, and the decoder is every client's."""
    url = "data:image/png;base64," + base64.b64encode(page()).decode()

    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/chat/completions", content=chat(url, "Free OCR. \ud83d"))
        assert answer.status_code == 400 and "whole" in answer.text

    talk(engine, work)


def test_a_key_may_have_any_letters(engine: ServeEngine) -> None:
    key = "schl\u00fcssel"
    sent = {}

    def answer(request: httpx.Request) -> httpx.Response:
        sent["Authorization"] = dict(request.headers.raw)[b"Authorization"]
        return httpx.Response(200)

    spec = remote_spec(RunConfig(engine=EngineConfig(server="http://ocr2", api_key=key)), "x")
    with make_client(spec) as ours:
        ours._transport = httpx.MockTransport(answer)
        ours.get("/")

    async def work(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/models", headers=sent)).status_code == 200
        for wrong in (b"Bearer schlussel", b"Bearer schl\xfcssel", b""):
            refused = await client.get("/v1/models", headers={"Authorization": wrong})
            assert refused.status_code == 401

    talk(engine, work, api_key=key)


def test_a_slow_host_holds_up_nobody_else(
    engine: ServeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def slow(url: str, *, max_bytes: int) -> bytes:
        is_asked.set()
        assert may_answer.wait(20)
        return page()

    monkeypatch.setattr(protocol, "download", slow)

    async def work(client: httpx.AsyncClient) -> None:
        asked = asyncio.create_task(
            client.post("/v1/chat/completions", content=chat("http://host/a.png"))
        )
        await asyncio.to_thread(is_asked.wait, 20)
        assert (await client.get("/health")).status_code == 200
        may_answer.set()
        assert (await asked).status_code == 200

    talk(engine, work, allow_http=True)


class Host(BaseHTTPRequestHandler):
    """/away leads to another address of this host, where /secret is."""

    asked: list[tuple[str, str]]  # at which address, for what
    secret: str
    port: int

    def do_GET(self) -> None:
        self.asked.append((self.connection.getsockname()[0], self.path))
        if self.path.startswith("/drop-by-drop"):
            self._drip(is_body=self.path.endswith("body"))
            return
        self.send_response(302 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", self.secret)
        self.end_headers()
        self.wfile.write(b"png")

    def _drip(self, *, is_body: bool) -> None:
        """Headers that have no end, or a body that has none, for 20 s."""
        self.wfile.write(b"HTTP/1.0 200 OK\r\n" + b"\r\n" * is_body)
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"A: b\r\n")
                time.sleep(0.2)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Host]]:
    """A host whose address counts as public; its others do not."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    with ThreadingHTTPServer(("", 0), Host) as http:
        Host.asked = []
        Host.secret = f"http://127.0.0.2:{http.server_address[1]}/secret"
        Host.port = http.server_address[1]
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield Host
        http.shutdown()


def fetch(path: str, *, at: str = "127.0.0.1", max_bytes: int = 100) -> bytes:
    url = f"http://{at}:{Host.port}{path}"
    return protocol.fetch_image(url, allow_http=True, max_bytes=max_bytes)


def test_a_redirect_does_not_lead_into_the_servers_own_network(host: type[Host]) -> None:
    assert fetch("/a.png") == b"png"
    with pytest.raises(protocol.BadRequest, match="not a public address"):
        fetch("/away")
    assert host.asked == [("127.0.0.1", "/a.png"), ("127.0.0.1", "/away")]


def test_a_name_that_means_another_address_a_moment_later_is_asked_at_the_first(
    host: type[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.1", "127.0.0.2"])
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda name, *rest, **more: real(
            next(answers) if name == "moving" else name, *rest, **more
        ),
    )
    assert fetch("/a.png", at="moving") == b"png"
    assert host.asked == [("127.0.0.1", "/a.png")]


def test_an_image_larger_than_asked_for_is_not_taken(host: type[Host]) -> None:
    with pytest.raises(protocol.BadRequest) as caught:
        fetch("/a.png", max_bytes=2)
    assert caught.value.status == 413


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_image_that_comes_drop_by_drop_is_given_up_in_time(
    host: type[Host], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(fetching, "_WHOLE_S", 1.0)
    started = time.monotonic()
    with pytest.raises(protocol.BadRequest, match="more than 1 s"):
        fetch(f"/drop-by-drop/{part}", max_bytes=10_000)
    assert time.monotonic() - started < 8


def test_a_host_that_is_silent_where_tls_begins_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda address: True)
    monkeypatch.setattr(fetching, "_WHOLE_S", 1.0)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/a.png"
        with pytest.raises(protocol.BadRequest, match="more than 1 s"):
            protocol.fetch_image(url, allow_http=True, max_bytes=10)
    assert time.monotonic() - started < 8


def test_a_host_without_tls_is_the_requests_fault(host: type[Host]) -> None:
    url = f"https://127.0.0.1:{host.port}/a.png"
    with pytest.raises(protocol.BadRequest, match="SSL"):
        protocol.fetch_image(url, allow_http=True, max_bytes=10)


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a b/c.png", "http://" + "x" * 70 + ".org/a", "http:///a.png"]
)
def test_a_url_that_is_none_is_the_requests_fault(url: str) -> None:
    with pytest.raises(protocol.BadRequest):
        protocol.fetch_image(url, allow_http=True, max_bytes=10)


def test_a_page_that_cannot_be_drawn_does_not_tell_where_the_server_keeps_its_files(
    tmp_path: Path,
) -> None:
    import numpy as np

    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (row,) = page_previews(str(tmp_path / "cut.png"), max_pages=2)
    assert "cannot be decoded" in row["error"] and str(tmp_path) not in row["error"]


def test_a_server_gives_all_stages_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's decoder steps back for the encoder, which is better for all pages together and worse
    for the one that somebody waits for."""
    seen: list[int] = []

    def run(stages: Sequence[Stage], *_: object, **__: object) -> Iterator[PageResult]:
        seen.extend(stage.niceness for stage in stages)
        return iter(())

    monkeypatch.setattr("ocr2cli.serve.engine.runner_named", lambda name: run)
    polite = Stage("read", partial(Reader, False), niceness=7)
    engine = ServeEngine(RunConfig(inputs=()), Limits(), EnginePlan((polite,), "stub"))
    engine.start()
    engine.close()
    assert seen == [0]
