"""A run through the server of `remote_stub.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw
from remote_stub import Answer, Server

from ocr2cli.batch import run_batch
from ocr2cli.config import EngineConfig, RunConfig
from ocr2cli.engines import remote, remote_client, remote_probe
from ocr2cli.output.summary import Summary


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """One run over six pages, one request at a time, without waits between tries."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        page = Image.new("RGB", (120, 80), "white")
        ImageDraw.Draw(page).text((9, 30), f"page {number}", fill="black")
        page.save(tmp_path / "in" / f"{number}.png")
    monkeypatch.setattr(remote_client.time, "sleep", lambda seconds: None)

    def run(
        answer: Answer, server: str = "http://host:1", owner: str = "vllm", **changes: Any
    ) -> Summary:
        transport = httpx.MockTransport(Server(answer, owner))
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
            inputs=(str(tmp_path / "in"),), out=tmp_path / "out", engine=engine, runner="inline",
            **changes,
        ))  # fmt: skip

    return run
