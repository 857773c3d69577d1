"""The engine behind the server: its end, what it keeps out of its own process, its log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import httpx
import pymupdf
import pytest
from stub_server import Reader, make_engine, make_plan, page

from ocr2cli.cli.main import main
from ocr2cli.cli.options import set_up_logging
from ocr2cli.cli.serve import log_as_ours
from ocr2cli.config import RasterConfig, RunConfig
from ocr2cli.document import listing
from ocr2cli.document.files import PLAIN_BYTES
from ocr2cli.engines.choose import EnginePlan
from ocr2cli.errors import ExitCode, Ocr2Error
from ocr2cli.pages import Ask, PageResult
from ocr2cli.pipeline.stage import Stage
from ocr2cli.serve import protocol
from ocr2cli.serve.engine import Limits, ServeEngine


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
    assert "ValueError: a slip: File" in line and "test_serve_engine.py" in line
    assert line.startswith("error: ValueError" if is_text else "error: Exception in ASGI")


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
