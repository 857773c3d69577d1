"""The rows of a document's sidecar: the contract's fields, each row one line of JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from page_factory import failed, figure_page, page, rows, write

from ocr2cli.pages import Box


def test_the_sidecar_has_the_contracts_fields(tmp_path: Path) -> None:
    write(tmp_path, page("dir/d", 1, boxes=(Box("text", (1, 2, 3, 4)),), token_ids=(5, 6)))
    (row,) = rows(tmp_path / "dir/d.jsonl")
    assert " ".join(row) == (
        "document page status finish_reason markdown raw boxes grid visual_tokens prompt_tokens "
        "new_tokens confidence seconds attempts input_sha256 fingerprint warnings error"
    )
    assert row["document"] == "dir/d" and row["page"] == 2 and row["status"] == "ok"
    assert row["boxes"] == [{"label": "text", "box": [1, 2, 3, 4]}]
    assert row["grid"] == [1, 1] and row["finish_reason"] == "stop" and row["error"] is None
    assert row["confidence"] == 0.9877 and row["seconds"] == {"decode": 2.5, "raster": 0.25}
    assert row["fingerprint"] == "f" * 8 and row["input_sha256"] == "ab" * 32


def test_a_row_has_no_text_of_a_failed_page_and_no_number_that_json_has_not(tmp_path: Path) -> None:
    odd = page("d", 0, confidence=float("nan"), seconds={"decode": float("inf")},
               warnings=("dark\x1b[m",))  # fmt: skip
    write(tmp_path, odd, dataclasses.replace(failed("d", 1), markdown="half a page"))
    read, bad = rows(tmp_path / "d.jsonl")
    assert read["confidence"] is None and read["seconds"] == {"decode": None}
    assert bad["markdown"] == "" and read["warnings"] == ["dark\\x1b[m"]
    assert b"NaN" not in (tmp_path / "d.jsonl").read_bytes()


def test_token_ids_are_written_when_asked_for(tmp_path: Path) -> None:
    write(tmp_path, page("d", token_ids=(5, 6)), save_tokens=True)
    assert rows(tmp_path / "d.jsonl")[0]["token_ids"] == [5, 6]


def test_a_row_is_one_line_whatever_a_reader_calls_a_line(tmp_path: Path) -> None:
    nasty = "a\u2028b\u2029c\x85d\x0be\x0cf\x1b[31mg\ud800h\x00i\u202ej"
    write(tmp_path, page("d", 0, nasty, warnings=(nasty,)), page("d", 1))
    data = (tmp_path / "d.jsonl").read_bytes()
    text = data.decode()  # valid UTF-8
    assert len(text.splitlines()) == 2 and "\x1b" not in text and "\u202e" not in text
    assert rows(tmp_path / "d.jsonl")[0]["raw"] == nasty


def test_the_sidecars_text_is_the_markdowns(tmp_path: Path) -> None:
    write(tmp_path, figure_page("d"))
    (row,) = rows(tmp_path / "d.jsonl")
    assert f"{row['markdown']}\n" == (tmp_path / "d.md").read_text()
