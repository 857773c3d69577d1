"""Where a value comes from, and which stands: `ocr2.toml`, the environment, flags.

A value that makes no sense wherever it stands is in `test_refused_values.py`.
"""

from __future__ import annotations

import json
import logging
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from command_line import run_main

from ocr2cli.errors import ExitCode, UsageError


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
