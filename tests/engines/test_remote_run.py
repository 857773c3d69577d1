"""Runs through a remote server: what a server does wrong costs no page that it does not concern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from ocr2cli.batch import run_batch
from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.engines import remote, remote_client, remote_probe
from ocr2cli.errors import EngineError
from ocr2cli.output.summary import Summary

Answer = Callable[[int], httpx.Response]


def chat(**changes: Any) -> httpx.Response:
    message = {"message": {"content": "Read."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 268, "completion_tokens": 20}
    return httpx.Response(200, json={"choices": [message], "usage": usage} | changes)


class Server:
    """Answers `/v1/models` itself and page number n (the probe is 0) by `answer(n)`."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.num_asked = answer, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": "vllm"}]})
        self.num_asked += 1
        return self.answer(self.num_asked - 1)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """One run over six pages, one request at a time, without waits between tries."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        page = Image.new("RGB", (120, 80), "white")
        ImageDraw.Draw(page).text((9, 30), f"page {number}", fill="black")
        page.save(tmp_path / "in" / f"{number}.png")
    monkeypatch.setattr(remote_client.time, "sleep", lambda seconds: None)

    def run(answer: Answer, server: str = "http://host:1") -> Summary:
        transport = httpx.MockTransport(Server(answer))
        for module in (remote, remote_probe):
            monkeypatch.setattr(
                module,
                "make_client",
                lambda spec: httpx.Client(base_url=server, transport=transport),
            )
        engine = EngineConfig(
            engine="openai", server=server, server_concurrency=1, prompt="ocr", rasterizers=1
        )
        return run_batch(RunConfig(
            inputs=(str(tmp_path / "in"),), out=tmp_path / "out", engine=engine, runner="inline"
        ))  # fmt: skip

    return run


def test_a_server_that_goes_away_ends_the_run_and_the_next_one_reads_what_is_missing(read) -> None:
    def gone_after_two(number: int) -> httpx.Response:
        if number > 2:
            raise httpx.ConnectError("Connection refused")
        return chat()

    with pytest.raises(EngineError, match=r"Connection refused\. Is the server up"):
        read(gone_after_two)
    summary = read(lambda number: chat())
    assert summary.by_status == {"ok": 6} and summary.pages_resumed == 2


def test_a_key_that_is_refused_in_mid_run_ends_it_by_name(read) -> None:
    with pytest.raises(EngineError, match=r"refuses the key .status 401.*--api-key"):
        read(lambda number: chat() if number < 3 else httpx.Response(401))
    assert read(lambda number: chat()).by_status == {"ok": 6}


def test_a_page_the_server_cannot_read_fails_alone_and_is_asked_for_again(read) -> None:
    first = read(lambda number: httpx.Response(400, text="no") if number == 4 else chat())
    assert first.by_status == {"ok": 5, "failed": 1}
    asked = []
    again = read(lambda number: asked.append(number) or chat())
    assert again.by_status == {"ok": 6}
    assert asked == [0, 1]  # the probe, and that page


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": [{"message": "x"}]},
        {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "a"}]}}]},
        {"usage": [1, 2]},
        {"usage": {"completion_tokens": "many"}},
    ],
)
def test_an_answer_of_another_shape_is_the_error_of_its_page(read, changes) -> None:
    summary = read(lambda number: chat(**changes) if number == 4 else chat())
    assert summary.by_status == {"ok": 5, "failed": 1}


def test_a_password_in_the_servers_address_is_in_no_message(read) -> None:
    def refused(number: int) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(EngineError) as caught:
        read(refused, "http://user:hunter2@host:1")
    assert "hunter2" not in str(caught.value) and "host:1" in str(caught.value)
