"""One request to a remote server: what it says, when it is made again, how long it may wait."""

from __future__ import annotations

import math
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from remote_stub import chat

from ocr2cli.config import DecodeConfig, EngineConfig, RunConfig
from ocr2cli.engines import remote, remote_client
from ocr2cli.engines.remote_client import ServerGone, request_body
from ocr2cli.errors import EngineError


@pytest.mark.parametrize(("text", "seconds"), [
    ("3", 3), ("2.5", 2.5), ("-1", 0), ("nan", 0), ("inf", 0), ("soon", 0), ("", 0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 99 Oct 99999 07:28:00 GMT", 0),
])  # fmt: skip
def test_a_server_may_say_in_any_form_when_to_come_back(text: str, seconds: float) -> None:
    answer = httpx.Response(429, headers={"Retry-After": text})
    assert remote_client._asked(answer) == seconds
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    answer = httpx.Response(429, headers={"Retry-After": moment})
    assert 10 < remote_client._asked(answer) <= 20


OK = 200
NOWHERE = httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("answers", "num_asked", "error"),
    [
        *(([status, status, OK], 3, None) for status in (408, 409, 425, 429, 500, 502, 503, 504)),
        ([400], 1, EngineError), ([404], 1, EngineError),
        ([401], 1, ServerGone), ([403], 1, ServerGone),
        ([NOWHERE] * 6, 6, ServerGone), ([NOWHERE, OK], 2, None),
        # Some try has reached it: the page is at fault, and the run goes on.
        ([500, *[NOWHERE] * 5], 6, EngineError), ([*[NOWHERE] * 5, 500], 6, EngineError),
        ([httpx.ReadError("reset"), *[NOWHERE] * 5], 6, EngineError),
        ([NOWHERE, httpx.ReadTimeout("slow")], 2, EngineError),
    ],
)  # fmt: skip
def test_what_is_asked_again_how_often_and_what_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], num_asked: int, error: Any
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote_client.time, "sleep", waits.append)
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        one = left.pop(0)
        if isinstance(one, Exception):
            raise one
        return chat() if one == OK else httpx.Response(one)

    spec = remote.remote_spec(RunConfig(engine=EngineConfig(server="http://host")), "<image>\nx")
    client = httpx.Client(base_url="http://host", transport=httpx.MockTransport(answer))
    if error is None:
        assert remote_client.post(client, spec, {})["choices"]
    else:
        with pytest.raises(EngineError) as caught:
            remote_client.post(client, spec, {})
        assert type(caught.value) is error
    assert len(answers) - len(left) == num_asked
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 0.0][: len(waits)]


def test_a_server_is_not_waited_for_longer_than_half_a_minute_nor_past_the_pages_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote_client.time, "sleep", waits.append)
    busy = httpx.MockTransport(lambda _: httpx.Response(429, headers={"Retry-After": "90"}))
    spec = remote.remote_spec(RunConfig(engine=EngineConfig(server="http://host")), "<image>\nx")
    client = httpx.Client(base_url="http://host", transport=busy)
    with pytest.raises(EngineError, match="429"):
        remote_client.post(client, replace(spec, timeout_s=1000.0), {}, tries=3)
    assert waits == [30.0, 30.0, 0.0], "after the last try there is nothing to wait for"
    with pytest.raises(EngineError, match="429"):
        remote_client.post(client, replace(spec, timeout_s=20.0), {})
    assert waits == [30.0, 30.0, 0.0]


def test_a_page_is_asked_for_word_by_word_as_the_prompt_has_it() -> None:
    cfg = RunConfig(
        engine=EngineConfig(server="http://host"), decode=DecodeConfig(max_new_tokens=7)
    )
    body = request_body(remote.remote_spec(cfg, "Look: <image>\nRead."), b"png")
    first, image, last = body["messages"][0]["content"]
    assert first["text"].startswith("Look:") and image["type"] == "image_url"
    assert last["text"] == "Read."
    assert (body["temperature"], body["max_tokens"], body["skip_special_tokens"]) == (0, 7, False)


@pytest.mark.parametrize(("window", "sent"), [(90, 90), (0, 8192), (9000, 8192)])
def test_a_window_without_an_end_is_the_whole_context_for_vllm(window: int, sent: int) -> None:
    """Its processor refuses a window of 0."""
    cfg = RunConfig(
        engine=EngineConfig(server="http://host"), decode=DecodeConfig(ngram_window=window)
    )
    spec = replace(remote.remote_spec(cfg, "<image>\nx"), flavour="vllm")
    assert request_body(spec, b"png")["vllm_xargs"]["window_size"] == sent


def test_our_own_server_is_sent_no_rules_that_it_does_not_read() -> None:
    spec = remote.remote_spec(RunConfig(engine=EngineConfig(server="http://host")), "<image>\nx")
    assert "vllm_xargs" not in request_body(replace(spec, flavour="ocr2"), b"png")
    assert "vllm_xargs" in request_body(replace(spec, flavour="vllm"), b"png")


def test_an_endless_page_timeout_is_one_that_a_socket_takes() -> None:
    cfg = RunConfig(engine=EngineConfig(server="http://host"), page_timeout=math.inf)
    socket.socket().settimeout(remote.remote_spec(cfg, "<image>\nx").timeout_s)
