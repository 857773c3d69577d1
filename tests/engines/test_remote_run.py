"""Runs through a remote server: what a server does wrong costs no page that it does not concern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from remote_stub import chat

from ocr2cli.config import DecodeConfig, DryConfig, RasterConfig
from ocr2cli.errors import EngineError


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


def test_where_a_server_has_moved_to_is_said(read) -> None:
    moved = httpx.Response(307, headers={"Location": "https://me:pw@new/v1/chat/completions"})
    with pytest.raises(EngineError, match="status 307, which leads to https://") as caught:
        read(lambda number: moved)
    assert "new/v1/chat" in str(caught.value) and "pw" not in str(caught.value)


def test_a_changed_files_old_pages_are_not_asked_for_again(read, tmp_path: Path) -> None:
    assert read(lambda number: chat()).by_status == {"ok": 6}
    with Image.open(tmp_path / "in" / "2.png") as page:
        page.save(tmp_path / "in" / "2.png", compress_level=1)
    asked = []
    summary = read(lambda number: asked.append(number) or chat())
    assert (asked, summary.pages_reused, summary.by_status["ok"]) == ([0], 1, 6)  # the probe


def test_only_what_changes_the_text_makes_pages_be_read_again(read) -> None:
    def num_resumed(**changes: Any) -> int:
        return read(lambda number: chat(), **changes).pages_resumed

    assert num_resumed() == 0
    assert num_resumed(decode=DecodeConfig(draft="text-layer"),
                       raster=RasterConfig(text_layer="draft")) == 6  # fmt: skip
    assert num_resumed(recover_loops=False) == 0


@pytest.mark.parametrize("rule", [{}, {"no_repeat_ngram": 0, "dry": DryConfig()}])
@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp", "ocr2", ""])
def test_a_rule_that_a_server_cannot_be_told_is_named(read, caplog, owner, rule) -> None:
    read(lambda number: chat(), owner=owner, decode=DecodeConfig(**rule))
    notes = [record.getMessage() for record in caplog.records]
    is_told = owner in {True: ("llamacpp", "ocr2"), False: ("vllm", "ocr2")}["dry" in rule]
    assert len(notes) == (not is_told)
    assert all(("--dry" if "dry" in rule else "--no-repeat-ngram") in note for note in notes)


@pytest.mark.parametrize(("owner", "flag"), [("vllm", "--dry"), ("llamacpp", "--no-repeat-ngram")])
def test_of_two_rules_the_one_that_a_server_cannot_be_told_is_named(
    read, caplog, owner, flag
) -> None:
    read(lambda number: chat(), owner=owner, decode=DecodeConfig(dry=DryConfig()))
    (record,) = caplog.records
    assert f"cannot be told {flag}" in record.getMessage()


def test_a_password_in_the_servers_address_is_in_no_message(read) -> None:
    def refused(number: int) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(EngineError) as caught:
        read(refused, "http://user:hunter2@host:1")
    assert "hunter2" not in str(caught.value) and "host:1" in str(caught.value)
