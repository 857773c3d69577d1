"""Images that the server fetches: redirects, slow hosts, and its own network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from stub_server import chat, page, talk

from ocr2cli.serve import fetching, protocol
from ocr2cli.serve.engine import ServeEngine


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
