"""The example crontab line and systemd unit, run as cron and systemd would: nothing in the
environment but a PATH."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stub_runs import REPO, STUB, environment

CRON = REPO / "examples" / "cron"


def crontab_line() -> str:
    (line,) = [
        line for line in (CRON / "crontab.example").read_text().splitlines()
        if line and not line.startswith("#") and "=" not in line.split()[0]
    ]  # fmt: skip
    return line.split(maxsplit=5)[5]


def unit_line() -> str:
    text = (CRON / "ocr2.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=")


@pytest.mark.parametrize("line", [crontab_line(), unit_line()], ids=["cron", "systemd"])
def test_the_example_runs_quietly_from_an_empty_environment(
    line: str, inputs: Path, tmp_path: Path
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    script = bin_folder / "ocr2"
    paths = f"{REPO}:{STUB.parent}"
    script.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(paths)} exec {sys.executable} {STUB} \"$@\"\n"
    )
    script.chmod(0o755)
    out, metrics = tmp_path / "text", tmp_path / "ocr2.prom"
    for old, new in (("/srv/inbox", inputs), ("/srv/text", out),
                     ("/var/lib/node_exporter/ocr2.prom", metrics)):  # fmt: skip
        line = line.replace(old, str(new))
    argv = ["env", "-i", f"PATH={bin_folder}:/usr/bin:/bin", "sh", "-c", line]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (out / "a.md").exists()


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root for a network namespace"
)
def test_documents_are_read_without_any_network(inputs: Path, tmp_path: Path) -> None:
    """In a namespace without even a loopback device that is up."""
    argv = ["unshare", "-n", sys.executable, str(STUB), "run", str(inputs), "-o",
            str(tmp_path / "out"), "-q"]  # fmt: skip
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sub" / "c.md").exists()
