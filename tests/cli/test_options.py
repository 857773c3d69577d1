"""Options and their environment variables: none is dropped in silence."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import click
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


@pytest.fixture(autouse=True)
def no_variables(monkeypatch) -> None:
    """No OCR2_ variable but those of the test."""
    for name in os.environ:
        if name.startswith("OCR2_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_misspelt_variable_is_named_with_the_nearest_and_the_exit_code_stays(
    form: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    """It was ignored without a word, and the pages were read with the default."""
    monkeypatch.setenv("OCR2_PROMT", "ocr")
    line = "OCR2_PROMT is not a setting; did you mean OCR2_PROMPT?"
    argv = ["info", "--size", "9x9", "--log-format", form]
    assert main(argv) == ExitCode.OK
    (told,) = capsys.readouterr().err.splitlines()
    if form == "json":
        assert (json.loads(told)["level"], json.loads(told)["message"]) == ("warning", line)
    else:
        assert told == f"warning: {line}"
    assert main([*argv, "-q"]) == ExitCode.OK
    assert capsys.readouterr().err == ""


def test_a_variable_like_no_other_is_told_how_they_are_named(capsys, monkeypatch) -> None:
    monkeypatch.setenv("OCR2_HOME\n", "here")
    assert main(["info", "--size", "9x9"]) == ExitCode.OK
    assert capsys.readouterr().err == (
        "warning: OCR2_HOME\\n is not a setting; settings are named after flags, OCR2_DPI after "
        "--dpi\n"
    )


def test_a_line_that_lacks_what_a_misspelt_variable_holds_names_the_variable(
    capsys, monkeypatch
) -> None:
    monkeypatch.setenv("OCR2_OUTPUT", "out")
    assert main(["run", "a.png"]) == ExitCode.USAGE
    warning, error = capsys.readouterr().err.splitlines()
    assert "did you mean OCR2_OUT?" in warning and "--out" in error


def test_variables_of_every_command_of_others_and_of_kubernetes_are_no_misspelling(
    capsys, monkeypatch
) -> None:
    """Kubernetes tells every container of each service: here of `ocr2` and of `ocr2-serve`."""
    for command in (cli.ocr2, *each_command()):
        for option in command.params:
            if option.envvar:
                monkeypatch.setenv(str(option.envvar), "")
    for name in (
        "SERVICE_HOST", "SERVICE_PORT", "SERVE_SERVICE_HOST", "SERVE_SERVICE_PORT_HTTP",
        "SERVE_PORT", "SERVE_PORT_8080_TCP", "SERVE_PORT_8080_TCP_ADDR", "PORT_80_UDP_PROTO",
    ):  # fmt: skip
        monkeypatch.setenv(f"OCR2_{name}", "tcp://10.0.0.1:8080")
    monkeypatch.setenv("_OCR2_COMPLETER", "")
    monkeypatch.setenv("OCR2", "")
    monkeypatch.setenv("MY_OCR2_PROMT", "")
    assert main(["info", "--size", "9x9"]) == ExitCode.OK
    assert capsys.readouterr().err == ""


def test_a_port_that_kubernetes_tells_of_is_not_the_servers(monkeypatch) -> None:
    """A pod beside a service called ocr2 could not start: its OCR2_PORT is no number."""
    context = click.Context(cli.ocr2)
    serve = cli.ocr2.get_command(context, "serve")
    assert serve is not None
    for value, port in (("tcp://10.0.0.1:8080", 8080), ("9000", 9000)):
        monkeypatch.setenv("OCR2_PORT", value)
        assert serve.make_context("serve", []).params["port"] == port


@pytest.mark.parametrize("asks", [["-q"], ["--quiet"], []])
def test_quiet_holds_for_a_line_that_cannot_be_parsed(
    asks: list[str], capsys, monkeypatch
) -> None:
    monkeypatch.setenv("OCR2_PROMT", "ocr")
    if not asks:
        monkeypatch.setenv("OCR2_QUIET", "1")
    assert main(["run", *asks, "--no-such-flag"]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "--no-such-flag" in line


@pytest.mark.parametrize("word", ["DIR", "DATA", "LANG"])
def test_a_short_variable_is_not_taken_for_another_by_chance(
    word: str, capsys, monkeypatch
) -> None:
    monkeypatch.setenv(f"OCR2_{word}", "x")
    assert main(["info", "--size", "9x9"]) == ExitCode.OK
    assert "settings are named after flags" in capsys.readouterr().err


def each_command() -> Iterator[click.Command]:
    context = click.Context(cli.ocr2)
    for name in cli.COMMANDS:
        command = cli.ocr2.get_command(context, name)
        assert command is not None
        yield command
        yield from command.commands.values() if isinstance(command, click.Group) else ()


def test_where_a_model_lies_is_told_so_that_no_name_can_be_taken_for_it(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    """`./nano` came back as `nano`, which is the bundled model."""
    monkeypatch.chdir(tmp_path)
    Path("nano").mkdir()
    (tmp_path / "nano" / "config.json").write_text("{}", "utf-8")
    assert main(["models", "path", "./nano"]) == ExitCode.OK
    assert capsys.readouterr().out.strip() == str(tmp_path / "nano")
