"""Values that make no sense: one line that names the flag, before anything is read or written."""

from __future__ import annotations

import pytest
from command_line import run_main

from ocr2cli.errors import ExitCode


def test_an_unknown_format_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("run", "a.pdf", "-o", "out", "--format", "docx") == ExitCode.USAGE
    assert "html" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["0", "3-1", "x", "1-2-3", ","])
def test_a_bad_page_range_ends_in_usage(spec: str, tmp_path) -> None:
    assert run_main("run", "a.pdf", "-o", str(tmp_path / "o"), "--pages", spec) == ExitCode.USAGE


@pytest.mark.parametrize("flag", ["--max-body", "--max-pages", "--max-queue"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_a_limit_that_leaves_a_server_nothing_to_do_is_refused(flag, value, capsys) -> None:
    """It started, and refused every request."""
    assert run_main("serve", flag, value) == ExitCode.USAGE
    assert flag in capsys.readouterr().err


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


@pytest.mark.parametrize("argv", [("", "-o", "out"), ("a.pdf", "", "-o", "out"),
                                  ("a.pdf", "-o", "")])  # fmt: skip
def test_an_empty_name_is_no_folder(argv, tmp_path, monkeypatch, capsys) -> None:
    """`"$FOLDER"` of a script where nothing was set was the folder that the script ran in."""
    monkeypatch.chdir(tmp_path)
    assert run_main("run", *argv) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "is empty" in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


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
