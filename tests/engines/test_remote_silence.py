"""Remote servers that hang, or answer drop by drop: given up in time, and asked again later."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw
from remote_stub import chat

from ocr2cli.batch import run_batch
from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.engines import remote
from ocr2cli.pipeline.stop import StopRequests


def test_a_page_without_an_answer_is_waited_for_once(read) -> None:
    asked = []

    def hangs(number: int) -> httpx.Response:
        asked.append(number)
        if number == 4:
            raise httpx.ReadTimeout("timed out")
        return chat()

    first = read(hangs)
    assert first.by_status == {"ok": 5, "failed": 1} and asked == list(range(7))
    assert "--page-timeout" in first.bad_pages[0].message
    assert read(lambda number: chat()).by_status == {"ok": 6}


class Hangs(BaseHTTPRequestHandler):
    """Answers the probe, then nobody until it is well; then everybody."""

    is_well = False
    num_asked = 0
    may_end = threading.Event()

    def do_GET(self) -> None:
        self._say({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Hangs.num_asked += 1
        if self.num_asked > 1 and not self.is_well:
            self.may_end.wait(60)
            return
        self._say(chat().json())

    def _say(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def test_pages_of_a_server_that_hangs_are_asked_for_again_by_the_next_run(tmp_path: Path) -> None:
    """The watchdog over the worker was quicker than the request, and its `timeout` is settled."""
    page = Image.new("RGB", (120, 80), "white")
    ImageDraw.Draw(page).text((9, 30), "page", fill="black")
    page.save(tmp_path / "a.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hangs) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        engine = EngineConfig(
            engine="openai", server=f"http://127.0.0.1:{http.server_address[1]}", prompt="ocr",
            rasterizers=1,
        )  # fmt: skip
        cfg = RunConfig(
            inputs=(str(tmp_path / "a.png"),), out=tmp_path / "out", engine=engine, runner="local",
            page_timeout=5.0,
        )  # fmt: skip
        first = run_batch(cfg)
        assert [page.code for page in first.bad_pages] == ["request"] and Hangs.num_asked == 2
        Hangs.is_well = True
        Hangs.may_end.set()
        assert run_batch(cfg).by_status == {"ok": 1}
        http.shutdown()


class Drips(Hangs):
    """Answers until `part` says where an answer is to have no end, "head" or "body"."""

    part = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.part:
            self._say(chat().json())
            return
        end = b"" if self.part == "head" else b"\r\n"
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + end)
            while not self.may_end.wait(0.1):
                self.wfile.write(b"A: b\r\n")


@pytest.fixture
def dripping() -> Iterator[str]:
    Drips.part, Drips.may_end = "", threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Drips) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        Drips.may_end.set()
        http.shutdown()


def drip_run(tmp_path: Path, server: str, **changes: Any) -> RunConfig:
    page = Image.new("RGB", (120, 80), "white")
    ImageDraw.Draw(page).text((9, 30), "page", fill="black")
    page.save(tmp_path / "a.png")
    engine = EngineConfig(
        engine="openai", server=server, prompt="ocr", rasterizers=1, server_concurrency=1
    )
    return RunConfig(inputs=(str(tmp_path / "a.png"),), out=tmp_path / "out", engine=engine,
                     runner="inline", **changes)  # fmt: skip


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_comes_drop_by_drop_is_given_up_in_time(
    dripping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Each read had the whole time: the inline runner waited for ever."""
    begin_dripping_after_the_probe(monkeypatch, part)
    started = time.monotonic()
    summary = run_batch(drip_run(tmp_path, dripping, page_timeout=1.0))
    assert time.monotonic() - started < 10
    assert "no answer in 1 s (--page-timeout)" in summary.bad_pages[0].message


def test_a_stop_is_heeded_while_the_inline_runner_waits_for_a_server(
    dripping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_dripping_after_the_probe(monkeypatch, "body")
    stop = StopRequests()
    threading.Timer(1.0, stop.request).start()
    started = time.monotonic()
    summary = run_batch(drip_run(tmp_path, dripping, drain=0.5), stop=stop)
    assert time.monotonic() - started < 5 and summary.by_status == {}


def begin_dripping_after_the_probe(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    real = remote.probe

    def probe(spec: Any) -> Any:
        spec = real(spec)
        monkeypatch.setattr(Drips, "part", part)
        return spec

    monkeypatch.setattr(remote, "probe", probe)
