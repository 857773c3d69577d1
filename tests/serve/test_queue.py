"""The server's queue: who has a place in it, and whose pages are not read any more."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from stub_server import Gate, chat, files_of, page, pdf, talk, wait_until

from ocr2cli.errors import UsageError
from ocr2cli.pages import Ask
from ocr2cli.serve.engine import QueueFull, ServeEngine
from ocr2cli.serve.server import Server, ServerSettings


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
