"""The border: commands listed without loading them, errors as one line with their exit code."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from ocr2cli import __version__
from ocr2cli.cli.main import COMMANDS, main
from ocr2cli.errors import ExitCode, UsageError


def run_main(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_listed_line_is_the_commands_own(name: str) -> None:
    module, attribute, line = COMMANDS[name]
    assert getattr(importlib.import_module(module), attribute).short_help == line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_an_environment_variable_or_says_why_not(name: str) -> None:
    module, attribute, _ = COMMANDS[name]
    for parameter in getattr(importlib.import_module(module), attribute).params:
        if parameter.param_type_name == "option" and parameter.envvar:
            assert str(parameter.envvar).startswith("OCR2_")


def test_an_unknown_option_ends_in_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("run", "a.pdf", "-o", "out", "--no-such-flag") == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "--no-such-flag" in error and len(error.splitlines()) == 1


def test_a_missing_output_folder_ends_in_usage() -> None:
    assert run_main("run", "a.pdf") == ExitCode.USAGE


def test_an_unknown_format_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("run", "a.pdf", "-o", "out", "--format", "docx") == ExitCode.USAGE
    assert "html" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["0", "3-1", "x", "1-2-3", ","])
def test_a_bad_page_range_ends_in_usage(spec: str, tmp_path) -> None:
    assert run_main("run", "a.pdf", "-o", str(tmp_path / "o"), "--pages", spec) == ExitCode.USAGE


def test_an_unknown_model_ends_in_model_error(tmp_path, capsys) -> None:
    argv = ("run", "a.pdf", "-o", str(tmp_path / "o"), "--model", "no-such-model")
    assert run_main(*argv) == ExitCode.MODEL
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_runner_whose_package_is_missing_is_one_line(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    page = tmp_path / "a.png"
    page.write_bytes(b"not read")
    argv = ("run", str(page), "-o", str(tmp_path / "o"), "--runner", "ray")
    assert run_main(*argv) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "'.[ray]'" in error and "--runner local" in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "o").exists()


def test_a_flag_beats_the_environment_and_that_beats_the_file(tmp_path, monkeypatch) -> None:
    from ocr2cli.cli import run as run_module

    seen = []

    def keep(cfg, **_):
        seen.append(cfg.raster.dpi)
        return 0

    monkeypatch.setattr(run_module, "execute", keep)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text("dpi = 100\n")
    run_main("run", "a.pdf", "-o", "out")
    monkeypatch.setenv("OCR2_DPI", "150")
    run_main("run", "a.pdf", "-o", "out")
    run_main("run", "a.pdf", "-o", "out", "--dpi", "200")
    assert seen == [100, 150, 200]


@pytest.mark.parametrize(("runner", "spins"), [("inline", "1000"), ("local", "")])
@pytest.mark.parametrize("command", ["run", "serve"])
def test_where_pages_are_read_in_this_process_its_threads_wait_quietly(
    command: str, runner: str, spins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ocr2cli.batch
    import ocr2cli.serve.engine

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that all is as before when the test is over
        monkeypatch.delenv(name)
    seen = []

    def plan(*what: Any, **how: Any) -> Any:
        seen.append(os.environ.get("GOMP_SPINCOUNT", ""))
        raise UsageError("seen")

    monkeypatch.setattr(ocr2cli.batch, "run_batch", plan)
    monkeypatch.setattr(ocr2cli.serve.engine, "ServeEngine", plan)
    argv = ["run", "a.png", "-o", str(tmp_path)] if command == "run" else ["serve"]
    with pytest.raises(SystemExit):
        main([*argv, "--runner", runner])
    assert seen == [spins]


def test_a_misspelt_key_in_the_file_names_the_nearest(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text("max-new-token = 5\n")
    assert run_main("run", "a.pdf", "-o", "out") == ExitCode.USAGE
    assert "max-new-tokens" in capsys.readouterr().err


def test_a_key_of_another_command_is_no_error(tmp_path, monkeypatch) -> None:
    from ocr2cli.cli import run as run_module

    monkeypatch.setattr(run_module, "execute", lambda cfg, **_: 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text("[run]\ndpi = 90\n[bench]\npages = 2\n")
    assert run_main("run", "a.pdf", "-o", "out") == ExitCode.OK


def test_every_option_has_its_long_name_in_the_file(tmp_path, monkeypatch) -> None:
    """Also where the program calls it by another, as `--format` and `--json`."""
    from ocr2cli.cli import run as run_module

    seen = []

    def keep(cfg, *, as_json, **_):
        seen.append((cfg.formats, as_json))
        return 0

    monkeypatch.setattr(run_module, "execute", keep)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text('[run]\nformat = "md,html"\njson = true\n')
    assert run_main("run", "a.pdf", "-o", "out") == ExitCode.OK
    assert seen == [(("md", "html"), True)]


@pytest.mark.parametrize(
    ("lines", "suites", "cases"),
    [
        ('suite = ["bundled", "seed"]', ("bundled", "seed"), ()),
        ('suite = "seed"\ncase = ["a*", "b"]', ("seed",), ("a*", "b")),
    ],
)
def test_an_option_that_may_be_repeated_is_a_list_in_the_file(
    lines, suites, cases, tmp_path, monkeypatch
) -> None:
    from ocr2cli.eval import run as eval_run

    seen = []

    def keep(options):
        seen.append((options.suites, options.only))
        raise UsageError("enough")

    monkeypatch.setattr(eval_run, "run_eval", keep)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text(f"[eval]\n{lines}\n")
    assert run_main("eval") == ExitCode.USAGE
    assert seen == [(suites, cases)]


def test_a_command_of_a_command_has_its_own_table_and_its_parents(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("[models]\njson = true\n", "[models.list]\njson = true\n"):
        (tmp_path / "ocr2.toml").write_text(text)
        assert run_main("models", "list") == ExitCode.OK
        assert json.loads(capsys.readouterr().out)[0]["name"] == "nano"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run = true", "'run' is a command"),
        ("bench = 3", "'bench' is a command"),
        ("models = 3", "'models' is a command"),
        ("[models]\nlist = true", "'list' is a command"),
        ("[models.lst]\njson = true", "[lst] is not a command. Did you mean 'list'?"),
        ("[models.list]\nsuite = 3", "unknown key 'suite'"),
        ("[list]\njson = true", "[list] is not a command"),
    ],
)
def test_a_table_that_no_command_reads_is_refused_by_name(
    text, words, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text(text + "\n")
    assert run_main("models", "list") == ExitCode.USAGE
    error = capsys.readouterr().err
    assert words in error and "ocr2.toml" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["[eval]\nsuit = 1", "[bench]\npage = 2", "[models.lst]\njson = true",
     "[models.list]\nsuite = 3", "[serve]\nconfig = 'x'", "config = 'x'"],
)
def test_a_misspelt_key_in_another_commands_table_is_refused_too(
    text, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(tmp_path, text, capsys)


def refusal(folder: Path, text: str, capsys: Any) -> str:
    """The one line that a run from this folder says of a TOML file with this text in it."""
    (folder / "ocr2.toml").write_text(text + "\n")
    assert run_main("run", "a.pdf", "-o", "out") == ExitCode.USAGE
    error = str(capsys.readouterr().err)
    assert "ocr2.toml" in error and len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize(
    "text",
    ["json = 1", "no-resume = 0", "quiet = 1.5", "verbose = true", "state = 1",
     "password-file = 1", "dpi = 2020-01-01", "dpi = 144.9", "dpi = true", "retries = 1e400",
     "min-confidence = nan", "prompt = true", "pages = 1979-05-27", "format = ['md', 2020-01-01]",
     "dpi = 'x'", "dpi = 1", "draft = 'of'"],
)
def test_a_value_of_the_wrong_kind_in_the_file_is_one_line(
    text, tmp_path, monkeypatch, capsys
) -> None:
    """Each was a traceback, or another value than was written."""
    monkeypatch.chdir(tmp_path)
    assert text.split()[0] in refusal(tmp_path, text, capsys)


def test_values_of_the_right_kind_in_the_file_are_taken(tmp_path, monkeypatch) -> None:
    from ocr2cli.cli import run as run_module

    seen = []
    monkeypatch.setattr(run_module, "execute", lambda cfg, **_: seen.append(cfg) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text(
        "pages = 3\nformat = ['md', 'html']\ndpi = '200'\npage-timeout = 5\nverbose = 1\n"
        "dry = 0.8\nretry-failed = true\nno-resume = false\n"
    )
    assert run_main("run", "a.pdf", "-o", "out") == ExitCode.OK
    (cfg,) = seen
    assert (cfg.pages, cfg.formats, cfg.raster.dpi) == ("3", ("md", "html"), 200)
    assert (cfg.page_timeout, cfg.decode.dry.multiplier) == (5, 0.8)
    assert cfg.retry_failed and cfg.resume


@pytest.mark.parametrize(
    ("lines", "flags", "kept"),
    [
        ('server = "http://h"\nengine = "openai"', "--engine native", {"engine.server": ""}),
        ('server = "http://h"', "--engine openai", {"engine.server": "http://h"}),
        ('address = "h:1"\nrunner = "ray"', "--runner local", {"ray_address": ""}),
        ("save-tokens = true", "--engine openai --server http://h", {"save_tokens": False}),
        ('password = "old"', "--password-file word", {"raster.password": "new"}),
        ('password-file = "word"', "--password typed", {"raster.password": "typed"}),
        ('out = "s3://b"\nstate = "s"', "-o out", {"out_url": ""}),
        ('prompt-text = "mine"', "--prompt ocr", {"engine.prompt_text": ""}),
        ('mmproj = "m.gguf"\nmodel = "t.gguf"', "--model nano", {"engine.mmproj": ""}),
        ('mmproj = "m.gguf"', "--model word", {"engine.mmproj": "m.gguf"}),
        ('dtype = "int8"', "--device cuda", {"engine.dtype": "auto"}),
        ('dtype = "int8"', "--device cpu", {"engine.dtype": "int8"}),
        ('device = "cuda"', "--dtype int8", {"engine.device": "auto"}),
        ('device = "cuda"', "--dtype f32", {"engine.device": "cuda"}),
        ("dry = 0.8", "--no-repeat-ngram 30",
         {"decode.dry": None, "decode.no_repeat_ngram": 30}),
        ("dry = 0.8", "--ngram-window 30",
         {"decode.dry": None, "decode.no_repeat_ngram": 20, "decode.ngram_window": 30}),
        ("dry = 0.8", "--no-repeat-ngram 0",
         {"decode.dry.multiplier": 0.8, "decode.no_repeat_ngram": 0}),
        ("no-repeat-ngram = 30", "--dry 0.8",
         {"decode.dry.multiplier": 0.8, "decode.no_repeat_ngram": 0}),
        ("dry = 0.8\nno-repeat-ngram = 30", "",
         {"decode.dry.multiplier": 0.8, "decode.no_repeat_ngram": 0}),
        ("", "--dry 0.8 --no-repeat-ngram 30",
         {"decode.dry.multiplier": 0.8, "decode.no_repeat_ngram": 0}),
        ('text-layer = "draft"', "--draft ngram",
         {"decode.draft": "ngram", "raster.text_layer": "never"}),
        ('text-layer = "draft"', "--draft off", {"decode.draft": "off"}),
        ('text-layer = "auto"', "--draft ngram",
         {"decode.draft": "ngram", "raster.text_layer": "auto"}),
        ('draft = "ngram"', "--text-layer draft", {"decode.draft": "text-layer"}),
        ('text-layer = "draft"\ndraft = "ngram"', "", {"decode.draft": "text-layer"}),
        ("", "--text-layer draft --draft ngram", {"decode.draft": "text-layer"}),
    ],
)  # fmt: skip
def test_a_value_of_the_file_gives_way_to_a_flag_that_rules_it_out(
    lines, flags, kept, tmp_path, monkeypatch
) -> None:
    """It was refused with "leave --server out", which was not on the command line, or it won. Of
    two from the same place the same one stands as ever."""
    from ocr2cli.cli import run as run_module

    seen = []
    monkeypatch.setattr(run_module, "execute", lambda cfg, **_: seen.append(cfg) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "word").write_text("new\n")
    (tmp_path / "ocr2.toml").write_text(lines + "\n")
    out = () if "-o" in flags else ("-o", "out")
    assert run_main("run", "a.pdf", *out, *flags.split()) == ExitCode.OK
    assert {name: attrgetter(name)(seen[0]) for name in kept} == kept


def test_a_password_of_the_environment_gives_way_to_a_flag_and_the_files_to_it(
    tmp_path, monkeypatch, capsys
) -> None:
    from ocr2cli.cli import run as run_module

    seen = []
    monkeypatch.setattr(run_module, "execute", lambda cfg, **_: seen.append(cfg) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "word").write_text("new\n")
    (tmp_path / "ocr2.toml").write_text('password-file = "word"\n')
    monkeypatch.setenv("OCR2_PASSWORD", "set")
    run_main("run", "a.pdf", "-o", "out")
    run_main("run", "a.pdf", "-o", "out", "--password-file", "word")
    assert [cfg.raster.password for cfg in seen] == ["set", "new"]
    monkeypatch.setenv("OCR2_PASSWORD_FILE", "word")
    assert run_main("run", "a.pdf", "-o", "out") == ExitCode.USAGE
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "serve", "info"])
@pytest.mark.parametrize(
    ("flags", "level"),
    [("-v", logging.INFO), ("-q", logging.ERROR), ("", logging.ERROR), ("-v -q", logging.ERROR)],
)
def test_more_words_on_the_command_line_beat_silence_in_the_file(
    command, flags, level, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text("quiet = true\n")
    words = {"run": "a.pdf -o out --pages x", "serve": "--host 1.2.3.4", "info": "--size x"}
    assert run_main(command, *words[command].split(), *flags.split()) == ExitCode.USAGE
    assert logging.getLogger("ocr2").level == level


@pytest.mark.parametrize("flag", ["--max-body", "--max-pages", "--max-queue"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_a_limit_that_leaves_a_server_nothing_to_do_is_refused(flag, value, capsys) -> None:
    """It started, and refused every request."""
    assert run_main("serve", flag, value) == ExitCode.USAGE
    assert flag in capsys.readouterr().err


def test_a_server_takes_the_command_lines_word_against_the_files(tmp_path, monkeypatch) -> None:
    from ocr2cli.serve import engine

    seen = []

    def keep(cfg, _limits):
        seen.append(cfg.decode)
        raise UsageError("enough")

    monkeypatch.setattr(engine, "ServeEngine", keep)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ocr2.toml").write_text("[serve]\ndry = 0.8\n")
    for flags in ("", "--no-repeat-ngram 30"):
        assert run_main("serve", *flags.split()) == ExitCode.USAGE
    assert [(each.dry is None, each.no_repeat_ngram) for each in seen] == [(False, 0), (True, 30)]


def test_a_password_file_that_is_no_text_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "word").write_bytes("pässword".encode("latin-1"))
    argv = ("run", "a.pdf", "-o", str(tmp_path / "o"), "--password-file", str(tmp_path / "word"))
    assert run_main(*argv) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "--password-file" in error and "UTF-8" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "flags",
    [
        *(f"--{name} -1" for name in (
            "encoders", "decoders", "rasterizers", "batch-size", "kv-tokens", "max-new-tokens",
            "no-repeat-ngram", "ngram-window", "recycle-after", "price-per-hour", "worker-memory",
            "page-timeout",
        )),
        *(f"--{name} {value}" for value in ("nan", "inf", "-inf")
          for name in ("page-timeout", "min-confidence", "price-per-hour", "dry")),
        "--dry 0.8,nan", "--dry 0", "--dry -1", "--dry 0.8,0.5", "--dry 0.8,1.75,-1",
        "--dry 0.8,1.75,2,0", "--worker-memory 8", "--worker-memory 255M",
        "--page-timeout 0", "--cache-size inf", "--cache-size nan", "--dtype foo", "--device xpu",
        "--server http://127.0.0.1:1", "--address auto",
        "--save-tokens --engine openai --server http://127.0.0.1:1",
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_before_the_run(flags, tmp_path, capsys) -> None:
    argv = ("run", "a.pdf", "-o", str(tmp_path / "o"), *flags.split())
    assert run_main(*argv) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert flags.split()[0] in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("size", ["0x800", "800x00", "800x-1", "800", "x"])
def test_a_page_without_a_size_has_no_grid(size, capsys) -> None:
    assert run_main("info", f"--size={size}") == ExitCode.USAGE
    error = capsys.readouterr().err
    assert f"--size {size}: write WIDTHxHEIGHT" in error and len(error.splitlines()) == 1


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


@pytest.mark.parametrize("argv", [("", "-o", "out"), ("a.pdf", "", "-o", "out"),
                                  ("a.pdf", "-o", "")])  # fmt: skip
def test_an_empty_name_is_no_folder(argv, tmp_path, monkeypatch, capsys) -> None:
    """`"$FOLDER"` of a script where nothing was set was the folder that the script ran in."""
    monkeypatch.chdir(tmp_path)
    assert run_main("run", *argv) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "is empty" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_list_that_windows_wrote_names_the_same_files(tmp_path, monkeypatch) -> None:
    from ocr2cli.cli import settings

    odd = tmp_path / "odd\r"
    odd.touch()
    lines = b"\xef\xbb\xbfa.pdf\r\n\r\nhttps://host/b.pdf\r\n" + bytes(odd) + b"\nc d.pdf"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    names = ("a.pdf", "https://host/b.pdf", str(odd), "c d.pdf")
    assert settings._inputs(("x", "-", "y"), False) == ("x", *names, "y")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_list_that_powershell_wrote_names_the_same_files(encoding, monkeypatch) -> None:
    from ocr2cli.cli import settings

    lines = "é.pdf\r\nb c.pdf\r\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    data = io.BytesIO(mark + lines.encode(encoding))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert settings._inputs(("-",), False) == ("é.pdf", "b c.pdf")


@pytest.mark.parametrize(
    ("data", "is_null_separated", "words"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj", False, "a document came on stdin. Save it"),
        (b"\x89PNG\r\n\x1a\n\0\0", True, "a document came on stdin. Save it"),
        (b"\xff\xd8\xff\xe0\0", False, "a document came on stdin. Save it"),
        (b"II*\0\x08\0", False, "save a document to a file"),
        (b"a.pdf\0b.pdf\0", False, "Add -0"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_paths_is_refused_as_what_it_is(
    data, is_null_separated, words, monkeypatch
) -> None:
    """Each line of the PDF was a document that is not there."""
    from ocr2cli.cli import settings

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(UsageError, match=words):
        settings._inputs(("-",), is_null_separated)


@pytest.mark.parametrize(
    ("out", "words"),
    [("-", "outputs are files. Name a folder, `./-`"), ("s3://", "s3:// names no bucket"),
     ("gs:///a", "names no bucket"), ("s3://key:secret@/a", "names no bucket")],
)  # fmt: skip
def test_an_output_that_is_no_place_is_refused(out, words, tmp_path, monkeypatch, capsys) -> None:
    """`-o -` made a folder of that name."""
    monkeypatch.chdir(tmp_path)
    assert run_main("run", "a.pdf", "-o", out) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert words in error and "secret" not in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line", ["bench --threads -1", "doctor --dtype foo", "eval --dtype foo",
             "doctor --goldens nofile", "completion", "serve --max-seconds nan"],
)  # fmt: skip
def test_other_commands_refuse_nonsense_in_one_line_too(line, capsys) -> None:
    assert run_main(*line.split()) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "\\x" not in error


@pytest.mark.parametrize("words", [(), ("run",), ("models", "list"), ("serve",)])
def test_every_command_says_its_version(words, capsys) -> None:
    assert run_main(*words, "--version") == ExitCode.OK
    assert capsys.readouterr().out == f"ocr2, version {__version__}\n"


@pytest.mark.parametrize("words", [(), ("models",)])
def test_no_words_at_all_get_the_help(words, capsys) -> None:
    assert run_main(*words) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("Usage: ocr2") and "Commands:\n" in error


def test_a_stdout_that_nobody_reads_is_no_bug() -> None:
    command = f"{sys.executable} -m ocr2cli info --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_closed_stdout_is_a_quiet_end() -> None:
    command = f"{sys.executable} -m ocr2cli --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("Usage")


@pytest.mark.parametrize("words", ["2>&1 | true", "2>&1 >/dev/null | true", "2>&-"])
def test_streams_that_nobody_reads_leave_the_exit_code_as_it_is(words: str, tmp_path) -> None:
    """It was 0: a wrapper script took a run that had failed for a good one."""
    line = f"{sys.executable} -m ocr2cli run {tmp_path}/gone.pdf -o {tmp_path}/o {words}"
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INPUT, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("line", "code"),
    [("info --size 100x100 --json > /dev/full", ExitCode.ENGINE),
     ("--help > /dev/full", ExitCode.ENGINE),
     ("run gone.pdf -o {out} --json > /dev/full", ExitCode.ENGINE),
     ("run gone.pdf -o {out} 2> /dev/full", ExitCode.INPUT),
     ("run 2> /dev/full", ExitCode.USAGE),
     ("models list --json 2> /dev/full", ExitCode.OK)],
)  # fmt: skip
def test_a_full_disk_behind_a_stream_is_no_bug(line: str, code: int, tmp_path) -> None:
    """What cannot be said on stderr changes nothing; a result that cannot be written is lost."""
    command = f"{sys.executable} -m ocr2cli {line.format(out=tmp_path / 'o')}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
    if code == ExitCode.ENGINE:
        assert "cannot write to stdout" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_progress_is_not_put_on_a_stdout_that_holds_results(monkeypatch, capsys) -> None:
    """Without a stderr Python's `print` takes stdout instead."""
    from ocr2cli.cli import progress
    from ocr2cli.pages import PageKey, PageResult, Status

    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(sys, "stderr", None)
    progress.LineProgress().page(PageResult(PageKey("a", 0), Status.OK))
    assert capsys.readouterr().out == ""


def test_help_starts_fast() -> None:
    """Lenient here, since machines are shared; the figure of 0.3 s is measured by hand."""
    best = min(_seconds_of_help() for _ in range(3))
    assert best < 1.5


def _seconds_of_help() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ocr2cli", "--help"], capture_output=True, check=True)
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("rum", "a.pdf"), "Did you mean 'run'? Help: ocr2 --help"),
        (("run",), "Help: ocr2 run --help"),
        (("models", "fetch"), "Help: ocr2 models --help"),
    ],
)
def test_a_wrong_command_line_says_what_to_type(argv, words, capsys) -> None:
    assert run_main(*argv) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.endswith(words + "\n") and len(error.splitlines()) == 1


def test_a_bad_value_that_nobody_typed_says_where_it_stands(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("OCR2_PAGES", "1-3")
    assert run_main("bench") == ExitCode.USAGE
    assert "in the environment as OCR2_PAGES" in capsys.readouterr().err
    monkeypatch.delenv("OCR2_PAGES")
    (tmp_path / "my.toml").write_text('pages = "1-3"\n')
    assert run_main("bench", "--config", str(tmp_path / "my.toml")) == ExitCode.USAGE
    assert f"in the TOML file {tmp_path / 'my.toml'}." in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("models", "path"), ("info", "--model")])
def test_who_only_looks_downloads_nothing(argv, tmp_path, monkeypatch, capsys) -> None:
    """Both fetched 6.8 GB to print a path or a size."""
    from ocr2cli.weights import hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "pull_model", lambda *_, **__: pytest.fail("downloaded"))
    assert run_main(*argv, "deepseek-ocr-2") == ExitCode.MODEL
    assert "ocr2 models pull deepseek-ocr-2" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_may_say_that_it_wants_plain_lines(name, value, monkeypatch) -> None:
    from ocr2cli.cli.options import is_terminal

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal()
    monkeypatch.setenv(name, value)
    assert not is_terminal()


def test_a_half_typed_command_line_is_completed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ocr2cli"], capture_output=True, text=True,
        env={**os.environ, "_OCR2_COMPLETE": "bash_complete", "COMP_WORDS": "ocr2 foo ",
             "COMP_CWORD": "2"},
    )  # fmt: skip
    assert done.returncode == 0 and "No such command" not in done.stderr


def test_info_plans_the_memory_of_every_worker(capsys) -> None:
    """Encoders hold the vision weights, decoders the others and the cache of their batch."""
    def plan(*flags: str) -> dict[str, Any]:
        assert run_main("info", "--json", "--device", "cpu", *flags) == ExitCode.OK
        facts = json.loads(capsys.readouterr().out)
        assert facts["parameters"] == 12_682_880 and facts["kv_bytes_per_token"] == 7168
        return facts["memory_plan"]

    wide = plan("--dtype", "f32", "--batch-size", "8", "--kv-tokens", "10000", "--decoders", "2")
    encoder, decoder, cache = (wide[f"{name}_bytes"] for name in ("encoder", "decoder", "kv_cache"))
    assert encoder + decoder == 4 * 12_682_880 and cache == 10_000 * 2 * 7168
    assert (wide["batch_size"], wide["dtype"]) == (8, "float32")
    assert wide["total_bytes"] == encoder + 2 * (decoder + cache)
    narrow, small = plan("--dtype", "bf16"), plan("--dtype", "int8")
    assert narrow["encoder_bytes"] * 2 == encoder and narrow["decoder_bytes"] * 2 == decoder
    assert small["decoder_bytes"] < narrow["decoder_bytes"]


def test_info_answers_where_a_run_would_be_refused(capsys) -> None:
    assert run_main("info", "--device", "cuda:77") == ExitCode.OK
    assert "memory_plan" in (out := capsys.readouterr().out) and "cuda:77" in out
