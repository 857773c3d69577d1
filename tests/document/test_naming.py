"""Names of documents: below the common root, unique, never outside OUT."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr2cli.document.naming import OUTPUT_ENDINGS, common_root, document_ids


@pytest.mark.parametrize(
    ("paths", "root", "ids"),
    [
        (["/in/report.pdf"], "/in", ["report"]),
        (["/in/a/report.pdf", "/in/b/x.png"], "/in", ["a/report", "b/x"]),
        (["/in/report.pdf", "/in/report.png"], "/in", ["report.pdf", "report.png"]),
        (["/in/a.pdf", "/in/a.png", "/in/b.pdf"], "/in", ["a.pdf", "a.png", "b"]),
        (
            ["/in/a.pdf", "/in/a.png", "/in/a.pdf.pdf"],
            "/in",
            ["a.pdf", "a.png", "a.pdf.pdf"],
        ),
        (["/in/-x.pdf"], "/in", ["-x"]),
        (["/in/v1.2.pdf", "/in/.pdf"], "/in", ["v1.2", ".pdf"]),
        (["/in/a b\nc.pdf"], "/in", ["a b\nc"]),
        (["/in/\udcff.pdf"], "/in", ["\udcff"]),
        (["/other/a.pdf"], "/in/deep", ["other/a"]),
        # Some file systems keep one file of two whose names differ in case alone.
        (["/in/A.pdf", "/in/a.png", "/in/B.pdf"], "/in", ["A.pdf", "a.png", "B"]),
        (["/in/A.pdf", "/in/a.pdf"], "/in", ["A.pdf", "a.pdf~2"]),
        (["/in/X/a.pdf", "/in/x/a.pdf", "/in/x/b.pdf"], "/in", ["X/a.pdf", "x/a.pdf~2", "x/b"]),
        # Others keep one of two whose letters look the same and are spelled in two ways.
        (["/in/e\u0301.pdf", "/in/\u00e9.pdf"], "/in", ["e\u0301.pdf", "\u00e9.pdf~2"]),
        (["/in/E\u0301.pdf", "/in/\u00e9.png"], "/in", ["E\u0301.pdf", "\u00e9.png"]),
        (["/in/\u0390.pdf", "/in/\u0399\u0308\u0301.png"], "/in",
         ["\u0390.pdf", "\u0399\u0308\u0301.png"]),
        (["/in/e\u0301.pdf", "/in/\u00e8.pdf"], "/in", ["e\u0301", "\u00e8"]),
        (["/in/\u00e9/a.pdf", "/in/e\u0301/a.pdf", "/in/e\u0301/b.pdf"], "/in",
         ["\u00e9/a.pdf", "e\u0301/a.pdf~2", "e\u0301/b"]),
        (["/in/\u00e9.png", "/in/e\u0301.md/x.png"], "/in", ["\u00e9.png", "e\u0301.md/x"]),
        # A document's file where another one's folder is.
        (["/in/a.png", "/in/a.md/x.png"], "/in", ["a.png", "a.md/x"]),
        (["/in/A.png", "/in/a.ocr.pdf/b/x.png"], "/in", ["A.png", "a.ocr.pdf/b/x"]),
        (["/in/a.png", "/in/a.txt/x.png", "/in/a.mdx/x.png"], "/in", ["a", "a.txt/x", "a.mdx/x"]),
        (
            ["/in/a.png", "/in/a.md/x.png", "/in/a.png.md/x.png", "/in/a.png~2.md/x.png"],
            "/in",
            ["a.png~3", "a.md/x", "a.png.md/x", "a.png~2.md/x"],
        ),
        # Two servers' files, or a server's and one of this machine, by their paths.
        (["/h/a.pdf", "/h/a.pdf", "/h/a.pdf"], "/h", ["a.pdf", "a.pdf~2", "a.pdf~3"]),
        (
            ["/h/a.pdf", "/h/a.pdf", "/h/a.pdf~2.png", "/h/a.pdf~2.tif"],
            "/h",
            ["a.pdf", "a.pdf~2", "a.pdf~2.png", "a.pdf~2.tif"],
        ),
        (["/h/a.pdf", "/h/a.pdf", "/h/a.pdf~2.png"], "/h", ["a.pdf", "a.pdf~3", "a.pdf~2"]),
    ],
)
def test_names_of_documents(paths: list[str], root: str, ids: list[str]) -> None:
    assert document_ids(paths, root) == ids


@pytest.mark.parametrize(
    ("folders", "root"),
    [(["/a/b", "/a/c"], "/a"), (["/a/b"], "/a/b"), (["/a", "/ab"], "/"), ([], "/")],
)
def test_the_common_root(folders: list[str], root: str) -> None:
    assert common_root(folders) == root


PARTS = st.sampled_from(
    ["a", "b", "A", "a.md", "a.pdf.md", "a.pdf", "A.pdf", "a.png", "a.pdf.pdf", "a.pdf~2",
     "..pdf", "...", "-", " .tif", "\u00e9.pdf", "e\u0301.pdf", "E\u0301.pdf~2"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12))
def test_names_are_unique_on_any_disk_and_stay_below_the_output(names: list[str]) -> None:
    paths = [f"/folder/{name}" for name in sorted(names)]
    ids = document_ids(paths, "/folder")
    alike = [normalize("NFD", name).casefold() for name in ids]
    assert len(set(alike)) == len(ids)
    files = {name + ending for name in alike for ending in OUTPUT_ENDINGS}
    for name, folded in zip(ids, alike, strict=True):
        assert not files & {str(folder) for folder in PurePosixPath(folded).parents}
        assert not {"", ".", ".."} & set(name.split("/"))
        assert os.path.normpath(f"/out/{name}").startswith("/out/")
