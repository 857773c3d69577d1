"""A person's own files at an output's name are kept, ours are not, also when the run is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from page_factory import figure_page, files, job, page, write, writer

from ocr2cli.output.folder import STATE


def test_a_file_that_ocr2_did_not_write_or_that_was_changed_is_kept_beside_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "d.md").write_text("notes")
    write(tmp_path, page("d", markdown="one"))
    assert (tmp_path / "d.md").read_text() == "one\n"
    assert (tmp_path / "d.md~").read_text() == "notes"
    (tmp_path / "d.md").write_text("corrected by hand")
    (tmp_path / "d.jsonl").write_text("and this")
    caplog.clear()
    write(tmp_path, page("d", markdown="one"))
    assert (tmp_path / "d.md").read_text() == "one\n"
    assert (tmp_path / "d.md~2").read_text() == "corrected by hand"
    assert (tmp_path / "d.jsonl~").read_text() == "and this"
    assert [record.getMessage() for record in caplog.records] == [
        "d.jsonl, d.md: not written by ocr2, or changed since; kept as d.jsonl~, d.md~2"
    ]


def test_what_ocr2_wrote_and_what_it_would_write_anyway_is_not_kept(tmp_path: Path) -> None:
    write(tmp_path, page("d", markdown="one"), figure_page("d", 1))
    write(tmp_path, page("d", markdown="two"), formats=("md",))
    write(tmp_path, page("d", markdown="three"), formats=("md", "jsonl"))
    assert files(tmp_path) == ["d.jsonl", "d.md"]
    shutil.rmtree(tmp_path / STATE)
    write(tmp_path, page("d", markdown="three"), formats=("md", "jsonl"))
    assert files(tmp_path) == ["d.jsonl", "d.md"]


def test_what_another_document_wrote_is_not_taken_for_a_persons(tmp_path: Path) -> None:
    write(tmp_path, page("d"), formats=("mmd",))
    write(tmp_path, page("d_det", markdown="other"), formats=("mmd",))
    assert not [name for name in files(tmp_path) if "~" in name]
    write(tmp_path, page("e"), formats=("mmd",))
    write(tmp_path, page("e"), formats=("md",))  # that run's e_det.mmd is an earlier one's now
    write(tmp_path, page("e_det", markdown="other"), formats=("mmd",))
    assert not [name for name in files(tmp_path) if "~" in name]


@pytest.mark.parametrize("kill_at", range(1, 9))
def test_a_kill_at_any_rename_loses_no_file_and_takes_none_of_our_own_for_a_persons(
    kill_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two renames of a document whose text, figures and sidecar are all new."""
    write(tmp_path, figure_page("d"))
    (tmp_path / "d.md").write_text("by hand")
    real, left = os.rename, [kill_at]

    def rename(*names: Any, **folders: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        real(*names, **folders)

    one = writer(tmp_path)
    one.expect(job("d"))
    one.add(page("d", markdown="killed"))
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "rename", rename)
        one.close()
    kept = [(tmp_path / name).read_text() for name in files(tmp_path) if name.startswith("d.md")]
    assert "by hand" in kept
    write(tmp_path, page("d", markdown="last"))
    assert files(tmp_path) == ["d.jsonl", "d.md", "d.md~"]
    assert (tmp_path / "d.md").read_text() == "last\n"
    assert (tmp_path / "d.md~").read_text() == "by hand"
