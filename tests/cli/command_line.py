"""A command line run in this process, for the tests of this folder; holds no test."""

from __future__ import annotations

import pytest

from ocr2cli.cli.main import main


def run_main(*argv: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return int(stop.value.code or 0)
