"""What a name or a page holds breaks no line and steers no terminal, wherever it is shown."""

from __future__ import annotations

import logging
import os

import pytest

from ocr2cli.cli.options import set_up_logging
from ocr2cli.document.files import shown
from ocr2cli.output.jsonl import json_text
from ocr2cli.printing import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("caf\u00e9 \u6f22\u3000\u5b57\u00a0\U0001f600", None),
        ("a\tb\nc\rd\x1b[31m\x7f\x9b", "a\\tb\\nc\\rd\\x1b[31m\\x7f\\x9b"),
        ("\u202egnp\u2066\u200f", "\\u202egnp\\u2066\\u200f"),
        ("\u2028\ufeff", "\\u2028\\ufeff"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        (os.fsdecode(b"\x80\xff"), "\\x80\\xff"),
        ("\x00\ud83d", "\\x00\\ud83d"),
    ],
)
def test_odd_characters_are_spelled_out_alike_everywhere(
    text: str, expected: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four places had four lists of them."""
    expected = expected or text
    assert printable(text) == expected == shown(f"s3://{text}").removeprefix("s3://")
    set_up_logging(verbose=0, quiet=False, log_format="text")
    logging.getLogger("ocr2").warning("%s", text)
    assert capsys.readouterr().err == f"warning: {expected}\n"
    assert (json_text(text) == f'"{text}"') == (expected == text)
