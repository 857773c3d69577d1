"""Options and their environment variables: none is dropped in silence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ocr2cli.cli import main as cli
from ocr2cli.errors import ExitCode


def main(argv: list[str]) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("flags", [["--dpi", "3"], ["--nosuch"], ["--format"]])
@pytest.mark.parametrize("how", ["two words", "one word", "environment", "last word counts"])
def test_a_line_that_cannot_be_parsed_is_complained_of_in_the_form_it_asks_for(
    how: str, flags: list[str], capsys, monkeypatch
) -> None:
    """What reads a log of JSON lines got one that was none."""
    form = {
        "two words": ["--log-format", "json"],
        "one word": ["--log-format=json"],
        "environment": [],
        "last word counts": ["--log-format=text", "--log-format", "json"],
    }[how]
    if how == "environment":
        monkeypatch.setenv("OCR2_LOG_FORMAT", "json")
    assert main(["run", "a.png", "-o", "out", *form, *flags]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told["level"] == "error" and flags[0] in told["message"]


@pytest.mark.parametrize(
    "form",
    [
        [],
        ["--log-format", "text"],
        ["--log-format=json", "--log-format=text"],
        ["--log-format", "json", "--log-format=text"],
    ],
)
def test_a_line_that_asks_for_no_json_gets_none(form: list[str], capsys) -> None:
    assert main(["run", "a.png", "-o", "out", *form, "--nosuch"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("ocr2: ")


@pytest.mark.parametrize("text", ["no TOML", 'nosuch = 1', 'dpi = "many"', 'pages = "0"'])
@pytest.mark.parametrize("how", ["command line", "environment"])
def test_a_fault_of_the_toml_file_is_told_in_the_form_that_the_line_asks_for(
    how: str, text: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    """The file is read before the command has set up how it speaks."""
    (tmp_path / "my.toml").write_text(text, "utf-8")
    argv = ["run", "a.png", "-o", str(tmp_path / "out"), "--config", str(tmp_path / "my.toml")]
    assert main(argv) == ExitCode.USAGE
    plain = capsys.readouterr().err
    assert plain.startswith("ocr2: ")
    if how == "environment":
        monkeypatch.setenv("OCR2_LOG_FORMAT", "json")
    else:
        argv += ["--log-format", "json"]
    assert main(argv) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told["level"] == "error" and f"ocr2: {told['message']}\n" == plain
    assert main([*argv, "--log-format", "text"]) == ExitCode.USAGE
    assert capsys.readouterr().err == plain


@pytest.mark.parametrize("flag", ["-v", "--quiet", "--log-format"])
def test_an_option_before_the_command_is_told_its_place(flag: str, capsys) -> None:
    assert main([flag, "info"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "after the command" in line
    assert main(["info", "--nosuch"]) == ExitCode.USAGE
    assert "after the command" not in capsys.readouterr().err


def test_two_prompts_on_one_line_are_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    """The first was dropped without a word, although other pairs that clash are refused."""
    both = ["--prompt", "ocr", "--prompt-text", "What is it?"]
    assert main(["run", "a.png", "-o", str(tmp_path / "out"), *both]) == ExitCode.USAGE
    assert "two prompts" in capsys.readouterr().err
    form = ["--log-format", "json"]
    assert main(["run", "a.png", "-o", str(tmp_path / "out"), *both, *form]) == ExitCode.USAGE
    assert "two prompts" in json.loads(capsys.readouterr().err)["message"]
    monkeypatch.chdir(tmp_path)
    Path("ocr2.toml").write_text('prompt = "ocr"\nprompt-text = "What is it?"\n', "utf-8")
    assert main(["run", "a.png", "-o", "out"]) == ExitCode.USAGE
    assert "two prompts" in capsys.readouterr().err
    for flags in (both[:2], both[2:]):  # one of them is nearer: it counts
        assert main(["run", "missing.png", "-o", "out", *flags]) == ExitCode.INPUT


def test_a_variable_does_what_its_flag_does(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("OCR2_SIZE", "640x640")
    assert main(["info", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["size"] == [640, 640]
    monkeypatch.delenv("OCR2_SIZE")
    monkeypatch.setenv("OCR2_NULL", "1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"two\nlines.png\0")))
    assert main(["run", "-", "-o", str(tmp_path / "out"), "--dry-run"]) == ExitCode.INPUT
    told = capsys.readouterr()
    assert "lines.png" in told.out + told.err and "NUL" not in told.err


def test_where_a_model_lies_is_told_so_that_no_name_can_be_taken_for_it(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    """`./nano` came back as `nano`, which is the bundled model."""
    monkeypatch.chdir(tmp_path)
    Path("nano").mkdir()
    (tmp_path / "nano" / "config.json").write_text("{}", "utf-8")
    assert main(["models", "path", "./nano"]) == ExitCode.OK
    assert capsys.readouterr().out.strip() == str(tmp_path / "nano")
