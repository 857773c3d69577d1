"""Inputs that are URLs, with fsspec's file system in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocr2cli.config import RasterConfig
from ocr2cli.document.raster import render_page
from ocr2cli.document.source import find_jobs, find_sources
from ocr2cli.document.urls import is_url, without_password
from ocr2cli.errors import PageFault
from ocr2cli.pages import PageJob

MakePdf = Callable[..., Path]


@pytest.fixture
def bucket(make_pdf: MakePdf) -> Iterator[str]:
    """memory://bucket with a.pdf (2 pages), b/c.pdf and a text file."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/a.pdf", make_pdf("a.pdf", pages=2).read_bytes())
    system.pipe("/bucket/b/c.pdf", make_pdf("c.pdf").read_bytes())
    system.pipe("/bucket/notes.txt", b"no document")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def _jobs(*inputs: str) -> list[PageJob]:
    return list(find_jobs(inputs, is_isolated=False))


def test_a_bucket_is_walked_like_a_folder(bucket: str) -> None:
    jobs = _jobs(bucket)
    assert [str(job.key) for job in jobs] == ["a page 1", "a page 2", "b/c page 1"]
    for job in jobs:
        assert job.error is None and is_url(job.path)
        assert render_page(job, RasterConfig()).rgb.min() < 128


@pytest.mark.parametrize(
    ("inputs", "ids"),
    [
        (["/a.pdf"], ["a"]),
        (["/a.pdf", "/b/c.pdf"], ["a", "b/c"]),
        (["/**/*.pdf"], ["a", "b/c"]),
        (["/b/*"], ["c"]),
        (["/a.pdf", ""], ["a", "b/c"]),
    ],
)
def test_urls_are_named_from_their_common_root(
    bucket: str, inputs: list[str], ids: list[str]
) -> None:
    assert [source.id for source in find_sources([bucket + part for part in inputs])] == ids


def test_files_of_two_servers_and_of_this_machine_are_told_apart(make_pdf: MakePdf) -> None:
    pytest.importorskip("fsspec")
    path = make_pdf("a.pdf")
    jobs = _jobs(str(path), f"local://{path}")
    assert [str(job.key) for job in jobs] == ["a.pdf page 1", "a.pdf~2 page 1"]
    inputs = ["http://h.invalid/a.pdf", "https://h.invalid/a.pdf", "https://me@h.invalid/a.pdf"]
    assert [job.key.document for job in _jobs(*inputs)] == ["a.pdf", "a.pdf~2", "a.pdf~3"]


def test_a_url_that_names_nothing_is_one_error(bucket: str) -> None:
    (job,) = _jobs(f"{bucket}/gone.pdf")
    assert job.error is not None and job.error.code == "unreadable"
    assert "memory://bucket/gone.pdf cannot be read" in job.error.message
    assert job.error.message.endswith(". Check the address.")


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (FileNotFoundError("bucket/a.pdf"), "Check the address."),
        (PermissionError("Access Denied"), "Check the network and the credentials."),
        (OSError("Could not connect to the endpoint"), "Check the network and the credentials."),
    ],
)
def test_a_store_that_goes_away_after_the_listing_leaves_no_failure_that_stays(
    fault: OSError, hint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_: object, **__: object) -> None:
        raise fault

    job = _jobs(f"{bucket}/a.pdf")[0]
    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.raises(PageFault) as caught:
        render_page(job, RasterConfig())
    assert caught.value.code == "away" and caught.value.message.endswith(f"{fault}. {hint}")


def test_a_file_url_is_a_local_path(make_pdf: MakePdf) -> None:
    path = make_pdf("a b.pdf")
    (source,) = find_sources([path.as_uri()])
    assert source.path == str(path) and source.id == "a b"


def test_without_fsspec_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    (job,) = _jobs("s3://user:s3cret-word@bucket/a.pdf")
    assert job.error is not None and "'.[s3]'" in job.error.message
    assert "s3cret-word" not in job.error.message


@pytest.mark.parametrize("path", ["/a://b", "a.pdf", "C:/x.pdf", "://", "1://x"])
def test_paths_are_not_taken_for_urls(path: str) -> None:
    assert not is_url(path)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://key:secret@b/a@b.pdf", "s3://b/a@b.pdf"),
        ("sftp://me:p@ss@w@rd@host:22/a@b.pdf", "sftp://host:22/a@b.pdf"),
        ("http://host?q=a@b", "http://host?q=a@b"),
        ("http://me:x@host#a@b", "http://host#a@b"),
        ("no answer from http://me:p@x@host/ (ask a@b)", "no answer from http://host/ (ask a@b)"),
    ],
)
def test_user_and_password_are_not_shown(url: str, expected: str) -> None:
    """A password may hold an `@`: all up to the last one before the path is no host."""
    assert without_password(url) == expected
