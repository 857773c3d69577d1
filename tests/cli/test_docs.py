"""Shell completion as shells ask for it, and the command line's page against the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ocr2cli.config import RasterConfig

REPO = Path(__file__).parents[2]


def ocr2(*argv: str, **env: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "ocr2cli", *argv], env={**os.environ, **env}, cwd=REPO,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_bash_completes_commands_options_and_choices(tmp_path) -> None:
    (tmp_path / "ocr2").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ocr2cli "$@"\n')
    (tmp_path / "ocr2").chmod(0o755)
    (tmp_path / "completion").write_text(ocr2("completion", "bash"))
    script = f"""
        PATH={tmp_path}:$PATH; source {tmp_path}/completion
        ask() {{
            COMPREPLY=(); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _ocr2_completion ocr2
            echo "${{COMPREPLY[@]}}"
        }}
        ask ocr2 con; ask ocr2 run --page; ask ocr2 serve --runner i
        ask ocr2 run --prompt f; ask ocr2 run --prompt l; ask ocr2 run --format md,j
        ask ocr2 serve --model deep; ask ocr2 bench --model random-; ask ocr2 doctor --model n
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "convert", "--pages --page-timeout", "inline",
        "figure", "locate:", "md,jsonl md,json",
        "deepseek-ocr-2 deepseek-ocr", "random-full random-tiny", "nano",
    ]  # fmt: skip


def test_a_model_that_has_no_name_is_completed_as_a_file() -> None:
    asked = {"_OCR2_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    assert ocr2(COMP_WORDS="ocr2 run --model ./m", **asked) == "file,./m\n"


@pytest.mark.parametrize(
    ("shell", "words", "answer"),
    [
        ("zsh", {"COMP_WORDS": "ocr2 ", "COMP_CWORD": "1"}, "plain\nserve\nServe an"),
        ("fish", {"COMP_WORDS": "ocr2 ", "COMP_CWORD": "ser"}, "plain,serve\tServe an"),
    ],
)
def test_zsh_and_fish_get_the_command_with_its_line(shell: str, words, answer: str) -> None:
    source = ocr2("completion", shell)
    assert "_OCR2_COMPLETE=" + f"{shell}_complete" in source and "COMP_WORDS" in source
    assert answer in ocr2(_OCR2_COMPLETE=f"{shell}_complete", **words)


def test_every_option_of_run_stands_below_one_heading_that_says_what_it_is_about() -> None:
    from click import Context

    from ocr2cli.cli.run import TOPICS, run

    flags = ["--" + flag for flag in " ".join(TOPICS.values()).split()]
    known = {flag for parameter in run.params for flag in parameter.opts}
    assert len(flags) == len(set(flags)) and set(flags) <= known
    below = run.options_by_topic(Context(run))
    names = {option.opts[-1] for option in below["General"]}
    assert names == {"--verbose", "--quiet", "--log-format", "--config", "--version", "--help"}
    text = ocr2("run", "--help")
    places = [text.index(f"\n{topic}:\n") for topic in below]
    assert places == sorted(places) and text.count(" --dpi ") == 1


def test_the_page_of_the_command_line_is_what_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_cli.py", "--check"], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_an_old_page_is_seen(tmp_path) -> None:
    copy = tmp_path / "docs" / "make_cli.py"
    copy.parent.mkdir()
    copy.write_text((REPO / "docs" / "make_cli.py").read_text())
    page = (REPO / "docs" / "cli.md").read_text()
    (tmp_path / "docs" / "cli.md").write_text(page.replace("`--dpi ", "`--dots "))
    done = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPO)})  # fmt: skip
    assert done.returncode == 1 and "+| `--dpi" in done.stdout and "make_cli.py" in done.stdout


def test_the_limits_of_a_pages_pixels_are_those_that_the_page_on_output_names() -> None:
    from PIL import Image

    text = (REPO / "docs" / "output.md").read_text(encoding="utf-8")
    assert f"more than {Image.MAX_IMAGE_PIXELS:,} pixels" in text
    assert f"more than {RasterConfig().max_pixels:,} pixels" in text
