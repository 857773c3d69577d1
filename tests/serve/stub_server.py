"""A server with a stub in the model's place, and what clients send it; holds no test."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pymupdf
from PIL import Image

from ocr2cli.config import RunConfig
from ocr2cli.engines.choose import EnginePlan
from ocr2cli.errors import EngineError
from ocr2cli.pages import PageError, PageJob, PageKey, PageResult, Status
from ocr2cli.pipeline.stage import Emit, Inbox, Stage
from ocr2cli.serve.engine import Limits, ServeEngine
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


class Gate(Reader):
    """Reads no page before it is told to; counts them."""

    may_read = threading.Event()
    keys: ClassVar[list[PageKey]] = []

    def read(self, job: PageJob) -> PageResult:
        self.keys.append(job.key)
        assert self.may_read.wait(20) and Path(job.path).exists()
        return PageResult(job.key, Status.OK, markdown="text")


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(400):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it took more than 4 s")


def files_of(engine: ServeEngine) -> list[Path]:
    return list(Path(engine._spool.name).iterdir())


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
