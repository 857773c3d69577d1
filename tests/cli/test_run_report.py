"""What `ocr2 run` says: hints before and after the pages, and a script's JSON.

Knows nothing about reading: a summary stands in a run's place.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from command_line import run_main

from ocr2cli.errors import ExitCode


@pytest.mark.parametrize(
    ("model", "engine", "pages_badly_read", "is_told"),
    [("nano", "native", 1, True), ("nano", "native", 0, False), ("nano", "openai", 1, False),
     ("./mine", "native", 1, False)],
)  # fmt: skip
def test_who_reads_small_print_with_nano_is_told_of_the_real_model(
    model, engine, pages_badly_read, is_told, monkeypatch, capsys
) -> None:
    from ocr2cli import batch
    from ocr2cli.cli.run import execute
    from ocr2cli.config import EngineConfig, RunConfig
    from ocr2cli.output.summary import Summary

    summary = Summary(pages=1, pages_badly_read=pages_badly_read)
    monkeypatch.setattr(batch, "run_batch", lambda *_, **__: summary)
    execute(RunConfig(inputs=("a",), engine=EngineConfig(model=model, engine=engine)), stages=[])
    assert ("ocr2 models pull deepseek-ocr-2" in capsys.readouterr().err) == is_told


@pytest.mark.parametrize(
    ("pages", "use", "is_told"),
    [(1, "never", True), (0, "never", False), (1, "auto", False), (1, "trust", False)],
)
def test_whose_pdfs_have_a_text_of_their_own_is_told_of_it(
    pages, use, is_told, monkeypatch, capsys
) -> None:
    from ocr2cli import batch
    from ocr2cli.cli.run import execute
    from ocr2cli.config import RasterConfig, RunConfig
    from ocr2cli.output.summary import Summary

    summary = Summary(pages=1, pages_badly_read=1, pages_badly_read_of_text=pages)
    monkeypatch.setattr(batch, "run_batch", lambda *_, **__: summary)
    execute(RunConfig(inputs=("a",), raster=RasterConfig(text_layer=use)), stages=[])
    assert ("--text-layer auto" in capsys.readouterr().err) == is_told


@pytest.mark.parametrize(
    ("engine", "formats", "words"),
    [
        ({}, ("md", "layout", "mmd"), []),
        ({"prompt": "ocr"}, ("md", "pdf"), []),
        ({"prompt": "ocr"}, ("layout", "mmd"), ["--format layout,mmd: this prompt asks for no"]),
        ({"prompt": "describe"}, ("md",), ["nano was trained on"]),
        ({"prompt": "locate:the total"}, ("layout",), ["nano was trained on"]),
        ({"prompt_text": "<image>\nFree OCR."}, ("md",), []),
        ({"prompt_text": "What is it?"}, ("mmd",), ["nano was trained on", "--format mmd: this"]),
        ({"prompt": "describe", "model": "./mine"}, ("md",), []),
        ({"prompt": "describe", "engine": "openai"}, ("md",), []),
    ],
)  # fmt: skip
def test_what_a_prompt_cannot_give_is_told_once_and_before_the_run(
    engine, formats, words, monkeypatch, caplog
) -> None:
    from ocr2cli import batch
    from ocr2cli.cli import run
    from ocr2cli.config import EngineConfig, RunConfig
    from ocr2cli.output.summary import Summary

    def told_by_now(*_, **__) -> Summary:
        assert len(caplog.messages) == len(words)
        return Summary(pages=1)

    monkeypatch.setattr(batch, "run_batch", told_by_now)
    monkeypatch.setattr(run, "_learn", lambda *_, **__: None)
    run.execute(RunConfig(inputs=("a",), formats=formats, engine=EngineConfig(**engine)))
    assert len(caplog.messages) == len(words)
    assert all(word in told for word, told in zip(words, caplog.messages, strict=True))


def test_a_run_that_never_began_says_its_exit_code_in_json_too(tmp_path, capsys) -> None:
    argv = ("run", "a.pdf", "-o", str(tmp_path / "o"), "--json")
    assert run_main(*argv, "--metrics-file", str(tmp_path / "gone/m")) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["exit_code"] == ExitCode.USAGE
    (tmp_path / "o").write_text("I am a file")
    assert run_main(*argv) == ExitCode.ENGINE
    assert json.loads(capsys.readouterr().out)["exit_code"] == ExitCode.ENGINE


def test_with_json_log_lines_all_of_stderr_is_json(tmp_path, monkeypatch, capsys) -> None:
    from ocr2cli import batch
    from ocr2cli.errors import EngineError
    from ocr2cli.output.summary import Summary
    from ocr2cli.pages import PageKey, PageResult, Status

    def read_one(*_, progress, **__):
        progress.page(PageResult(PageKey("a", 0), Status.OK))
        return Summary(pages=1, pages_badly_read=1)

    argv = ("run", "a.pdf", "-o", str(tmp_path / "o"), "--log-format", "json")
    monkeypatch.setattr(batch, "run_batch", read_one)
    monkeypatch.setattr("ocr2cli.cli.progress._LINE_EVERY_S", 0.0)
    assert run_main(*argv) == ExitCode.OK
    going, summary, hint = map(json.loads, capsys.readouterr().err.splitlines())
    assert going["message"].startswith("1 pages after ")
    assert summary["message"].startswith("1 page of") and summary["level"] == "info"
    assert "ocr2 models pull" in hint["message"] and "time" in hint

    def fail(*_, **__):
        raise EngineError("the \x1b[31mcard\n is gone")

    monkeypatch.setattr(batch, "run_batch", fail)
    assert run_main(*argv) == ExitCode.ENGINE
    (error,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (error["level"], error["message"]) == ("error", "the \x1b[31mcard\n is gone")


@pytest.mark.parametrize(
    ("pages", "flags", "is_told"),
    [(3, (), True), (0, (), False), (3, ("--no-resume",), False)],
)
def test_a_run_that_its_engine_ended_says_that_it_can_go_on_where_it_can(
    pages: int, flags: tuple[str, ...], is_told: bool, tmp_path, monkeypatch, capsys
) -> None:
    """Workers know of no journal, and told servers and programs of it too."""
    from ocr2cli import batch
    from ocr2cli.errors import EngineError

    def end(*_: object, summary: Any, **__: object) -> None:
        summary.pages = pages
        raise EngineError("the disk has gone. Mend it.")

    monkeypatch.setattr(batch, "run_batch", end)
    code = run_main("run", "a.png", "-o", str(tmp_path / "out"), *flags)
    last = capsys.readouterr().err.splitlines()[-1]
    goes_on = " Then the same command goes on where this run ended." if is_told else ""
    assert code == ExitCode.ENGINE and last == f"ocr2: the disk has gone. Mend it.{goes_on}"
