"""`-`: lists of paths on stdin, whoever wrote them, and what is none."""

from __future__ import annotations

import io
import sys

import pytest

from ocr2cli.errors import UsageError


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
