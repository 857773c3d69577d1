"""Page parts come back exactly, or are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_factory import page

from ocr2cli.output.folder import OutFolder
from ocr2cli.output.parts import PartDamaged, from_json, part_path, read_part, to_json, write_part
from ocr2cli.pages import (
    Attempt,
    Box,
    FinishReason,
    PageError,
    PageKey,
    PageResult,
    Status,
)

text = st.text(st.characters(), max_size=20)  # lone surrogates included
numbers = st.integers(0, 999)
floats = st.floats(allow_nan=False)
results = st.builds(
    PageResult,
    key=st.builds(PageKey, text, numbers),
    status=st.sampled_from(Status),
    markdown=text,
    raw=text,
    finish_reason=st.none() | st.sampled_from(FinishReason),
    boxes=st.lists(
        st.builds(Box, text, st.tuples(numbers, numbers, numbers, numbers)), max_size=3
    ).map(tuple),
    grid=st.tuples(numbers, numbers),
    page_size=st.tuples(numbers, numbers),
    visual_tokens=numbers,
    prompt_tokens=numbers,
    new_tokens=numbers,
    confidence=st.none() | floats,
    confidence_p5=st.none() | floats,
    seconds=st.dictionaries(text, floats, max_size=3),
    attempts=st.lists(
        st.builds(Attempt, text, st.none() | st.sampled_from(FinishReason), numbers, text),
        max_size=3,
    ).map(tuple),
    input_sha256=text,
    pixels_sha256=text,
    warnings=st.lists(text, max_size=3).map(tuple),
    error=st.none() | st.builds(PageError, text, text),
    token_ids=st.lists(numbers, max_size=3).map(tuple),
    extra=st.dictionaries(text, st.none() | numbers | text | st.lists(numbers), max_size=3),
)


@given(results)
@settings(max_examples=200, deadline=None)
def test_every_result_comes_back_exactly(result: PageResult) -> None:
    data = to_json(result)
    assert data.isascii() and data.count(b"\n") == 1
    assert from_json(data) == result


FIELDS = sorted(json.loads(to_json(page("a"))))


@pytest.mark.parametrize("field", FIELDS)
def test_a_part_without_a_field_is_refused(field: str) -> None:
    row = json.loads(to_json(page("a")))
    del row[field]
    with pytest.raises(PartDamaged, match=field):
        from_json(json.dumps(row).encode())


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [True, {"?": 1}, "?", [[[]]], -1.5])
def test_a_field_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    row = json.loads(to_json(page("a")))
    if isinstance(value, type(row[field])) or (field.startswith("confidence") and value == -1.5):
        return
    if field == "extra" and isinstance(value, dict):
        return
    row[field] = value
    with pytest.raises(PartDamaged):
        from_json(json.dumps(row).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("status", "fine"),
        ("finish_reason", "tired"),
        ("boxes", [{"label": "a", "box": [1, 2, 3]}]),
        ("boxes", [{"label": "a", "box": [1, 2, 3, "4"]}]),
        ("boxes", [{"label": "a", "box": [1, 2, 3, 4], "x": 0}]),
        ("grid", [1, 2, 3]),
        ("seconds", {"decode": "1"}),
        ("error", {"code": "timeout"}),
        ("attempts", [{"step": "first"}]),
        ("token_ids", ["7"]),
        ("unknown", 1),
    ],
)
def test_a_part_with_a_bad_value_is_refused(field: str, value: object) -> None:
    row = json.loads(to_json(page("a"))) | {field: value}
    with pytest.raises(PartDamaged):
        from_json(json.dumps(row).encode())


@given(st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes) -> None:
    with pytest.raises(PartDamaged):
        from_json(data)


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(PartDamaged):
        from_json(b"[" * 200_000)


def test_an_altered_missing_or_swapped_part_is_refused(tmp_path: Path) -> None:
    with OutFolder(tmp_path) as folder:
        result = page("a/b", 4)
        sha256 = write_part(folder, result)
        path = tmp_path / part_path(result.key)
        assert path.name == "5.json"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        assert read_part(folder, result.key, sha256) == result

        other = page("a/b", 5)
        (tmp_path / part_path(other.key)).write_bytes(path.read_bytes())
        with pytest.raises(PartDamaged, match="another"):
            read_part(folder, other.key, sha256)
        path.write_bytes(path.read_bytes().replace(b"text", b"test"))
        with pytest.raises(PartDamaged, match="altered"):
            read_part(folder, result.key, sha256)
        path.unlink()
        with pytest.raises(PartDamaged, match="missing"):
            read_part(folder, result.key, sha256)
