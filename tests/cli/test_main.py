"""The border: commands listed without loading them, errors as one line with their exit code."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import run_main

from ocr2cli import __version__
from ocr2cli.cli.main import COMMANDS, main
from ocr2cli.errors import ExitCode, UsageError


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


@pytest.mark.parametrize("words", [(), ("run",), ("models", "list"), ("serve",)])
def test_every_command_says_its_version(words, capsys) -> None:
    assert run_main(*words, "--version") == ExitCode.OK
    assert capsys.readouterr().out == f"ocr2, version {__version__}\n"


@pytest.mark.parametrize("words", [(), ("models",)])
def test_no_words_at_all_get_the_help(words, capsys) -> None:
    assert run_main(*words) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("Usage: ocr2") and "Commands:\n" in error


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
