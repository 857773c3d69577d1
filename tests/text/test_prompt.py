"""Prompts: exact strings, and exact ids with DeepSeek's own vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ocr2cli.errors import UsageError
from ocr2cli.text.prompt import (
    PROMPTS,
    asks_for_text,
    prompt_ids,
    prompt_text,
    split_at_page,
)
from ocr2cli.text.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/prompt_vocabulary.json").read_text())
TOKENIZER = Tokenizer.from_json(json.dumps(GOLDEN["tokenizer"]))
IMAGE = 128_815

# model-spec 5.1, computed there with the full DeepSeek-V3 vocabulary.
SEGMENTS = {
    "\n": [201],
    "\nFree OCR.": [201, 21431, 126041, 16],
    "\n<|grounding|>Convert the document to markdown.": [
        *(201, 128820, 21842, 270, 4940, 304, 2121, 7919, 16),
    ],
    "<|grounding|>OCR this image.": [128820, 119316, 566, 4609, 16],
    "\nParse the figure.": [201, 68779, 270, 5991, 16],
    "\nDescribe this image in detail.": [201, 72188, 566, 4609, 295, 6271, 16],
    "Locate ": [26751, 434, 223],
    " in the image.": [295, 270, 4609, 16],
}


@pytest.mark.parametrize("text", SEGMENTS)
def test_segment_ids_equal_the_specification(text: str) -> None:
    assert TOKENIZER.encode(text) == SEGMENTS[text] == GOLDEN["ids"][text]


def test_the_prompt_strings_are_the_official_ones() -> None:
    assert prompt_text("markdown") == "<image>\n<|grounding|>Convert the document to markdown."
    assert prompt_text("ocr") == "<image>\nFree OCR."
    assert prompt_text("figure") == "<image>\nParse the figure."
    assert prompt_text("describe") == "<image>\nDescribe this image in detail."
    assert prompt_text("locate:the total") == (
        "<image>\nLocate <|ref|>the total<|/ref|> in the image."
    )


def test_a_page_without_tiles_and_free_ocr_takes_262_ids() -> None:
    ids = prompt_ids(TOKENIZER, prompt_text("ocr"), 257, IMAGE)
    assert ids == [0, *[IMAGE] * 257, 201, 21431, 126041, 16]
    assert len(ids) == 262


def test_a_trailing_space_is_cut_as_the_reference_does() -> None:
    exact = prompt_ids(TOKENIZER, prompt_text("markdown"), 5, IMAGE)
    assert prompt_ids(TOKENIZER, f" {prompt_text('markdown')} ", 5, IMAGE) == exact


def test_an_own_prompt_without_a_page_gets_the_page_in_front() -> None:
    assert split_at_page("Free OCR.") == ("", "\nFree OCR.")
    assert split_at_page("Read <image> now") == ("Read ", " now")
    own = prompt_ids(TOKENIZER, "Free OCR.", 3, IMAGE)
    assert own == prompt_ids(TOKENIZER, prompt_text("ocr"), 3, IMAGE)


def test_two_pages_in_one_prompt_are_refused() -> None:
    with pytest.raises(UsageError, match="more than one <image>"):
        prompt_ids(TOKENIZER, "<image><image>", 1, IMAGE)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("markdwon", "'markdown'"),
        ("OCR2", "--prompt-text"),
        ("", "--prompt-text"),
        ("ocr:x", "ocr"),
    ],
)
def test_an_unknown_prompt_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        prompt_text(name)


@pytest.mark.parametrize("what", ["", "  ", "a<|/ref|>b", "<image>", "x" * 501])
def test_locate_takes_plain_words_only(what: str) -> None:
    with pytest.raises(UsageError, match="locate"):
        prompt_text(f"locate:{what}")


def test_locate_keeps_braces_and_colons_as_they_are() -> None:
    assert "<|ref|>a:{b}<|/ref|>" in prompt_text("locate: a:{b} ")


def test_every_prompt_holds_the_page_once() -> None:
    assert set(PROMPTS) == {"markdown", "ocr", "figure", "describe", "locate"}
    assert all(text.count("<image>") == 1 for text in PROMPTS.values())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [(PROMPTS["markdown"], True), (PROMPTS["ocr"], True), ("Free OCR.", True),
     (" Free OCR.\n", True),
     (PROMPTS["figure"], False), ("What is it?", False), ("Free OCR.<image>", False)],
)  # fmt: skip
def test_a_prompt_that_is_known_is_known_without_its_page_too(prompt: str, expected: bool) -> None:
    """The page is put in front of it, so it is the same prompt, and the same answer."""
    assert asks_for_text(prompt) == expected
