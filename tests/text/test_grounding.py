"""The strict parser of model text, and the markdown made of it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr2cli.output.figures import figure_boxes
from ocr2cli.pages import Box, PageKey, PageResult, Status
from ocr2cli.text.grounding import (
    MAX_BLOCKS,
    MAX_BOXES_PER_BLOCK,
    Block,
    Grounded,
    box_pixels,
    clean,
    parse,
    text_spans,
    to_markdown,
)


def _name(number: int) -> str:
    return f"a.images/0001-{number + 1}.png"


def _markdown(raw: str) -> str:
    return to_markdown(parse(raw).blocks, _name)


PAGE = (
    "<|ref|>title<|/ref|><|det|>[[80, 70, 500, 110]]<|/det|>\n# Report\n\n"
    "<|ref|>text<|/ref|><|det|>[[80, 130, 900, 200]]<|/det|>\nFirst line.\n\n"
    "<|ref|>image<|/ref|><|det|>[[100, 300, 800, 600]]<|/det|>\n"
    "<|ref|>image_caption<|/ref|><|det|>[[100, 610, 800, 640]]<|/det|>\nFigure 1\n"
)


def test_a_page_becomes_blocks_in_reading_order() -> None:
    assert parse(PAGE) == Grounded(
        (
            Block("title", ((80, 70, 500, 110),), "\n# Report\n\n"),
            Block("text", ((80, 130, 900, 200),), "\nFirst line.\n\n"),
            Block("image", ((100, 300, 800, 600),), "\n"),
            Block("image_caption", ((100, 610, 800, 640),), "\nFigure 1\n"),
        )
    )
    assert [box.label for box in parse(PAGE).boxes] == ["title", "text", "image", "image_caption"]


def test_a_page_becomes_markdown_with_its_figure_linked() -> None:
    expected = "# Report\n\nFirst line.\n\n![](a.images/0001-1.png)\n\nFigure 1"
    assert _markdown(PAGE) == expected


def test_text_outside_blocks_is_kept_in_its_place() -> None:
    raw = "before <|ref|>text<|/ref|><|det|>[[1,2,3,4]]<|/det|>inside"
    assert [block.label for block in parse(raw).blocks] == ["", "text"]
    assert _markdown(raw) == "before\n\ninside"


def test_plain_text_is_one_block_without_a_label() -> None:
    assert parse("line\n\nline") == Grounded((Block("", (), "line\n\nline"),))
    assert parse("") == parse(" \n") == Grounded(())


def test_two_equal_figure_blocks_get_two_figures() -> None:
    block = "<|ref|>image<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n"
    assert _markdown(block * 2) == f"![]({_name(0)})\n\n![]({_name(1)})"


def test_links_and_cut_figures_count_the_same_boxes() -> None:
    raw = (
        "<|ref|>image<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|>\n"
        "<|ref|>text<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>between\n"
        "<|ref|>image<|/ref|><|det|>[[11, 12, 13, 14]]<|/det|>\n"
    )
    page = PageResult(PageKey("a", 0), Status.OK, boxes=parse(raw).boxes)
    assert [figure.box[0] for figure in figure_boxes(page)] == [1, 5, 11]
    expected = f"![]({_name(0)})\n\n![]({_name(1)})\n\nbetween\n\n![]({_name(2)})"
    assert _markdown(raw) == expected


def test_a_figure_that_was_not_made_leaves_no_link() -> None:
    assert to_markdown(parse(PAGE).blocks, lambda number: "").count("![") == 0


@pytest.mark.parametrize(
    ("written", "boxes"),
    [
        ("[[1,2,3,4]]", ((1, 2, 3, 4),)),
        (" [ [ 1 , 2 , 3 , 4 ] , [5,6,7,8] ] ", ((1, 2, 3, 4), (5, 6, 7, 8))),
        ("[[0, 0, 1000, 123456]]", ((0, 0, 999, 999),)),
        ("[[5, 2, 5, 4], [1, 1, 2, 2]]", ((1, 1, 2, 2),)),
        ("[[3, 2, 1, 4]]", ()),
        ("[[1,2,3]]", ()),
        ("[[1,2,3,4,5]]", ()),
        ("[[1,2,3,4], []]", ((1, 2, 3, 4),)),
        ("[[1000, 1, 2000, 5]]", ()),
        ("", ()),
        ("[]", ()),
        ("[1,2,3,4]", ()),
        ("[[1,2,3,4]", ()),
        ("[[-1,2,3,4]]", ()),
        ("[[1.5,2,3,4]]", ()),
        ("[[1,2,3,4]] extra", ()),
        ("[[\u0661,\u0662,\u0663,\u0664]]", ()),
        ("__import__('os').system('touch /tmp/x')", ()),
        ("[[1,2,3,9**9**9]]", ()),
        ("[[" + "9" * 5000 + ",2,3,4]]", ()),
    ],
)
def test_box_lists_are_read_strictly(
    written: str, boxes: tuple[tuple[int, int, int, int], ...]
) -> None:
    grounded = parse(f"<|ref|>text<|/ref|><|det|>{written}<|/det|>words")
    assert grounded == Grounded((Block("text", boxes, "words"),))


def test_boxes_over_the_limit_are_dropped() -> None:
    boxes = ", ".join("[1, 2, 3, 4]" for _ in range(MAX_BOXES_PER_BLOCK + 3))
    grounded = parse(f"<|ref|>text<|/ref|><|det|>[{boxes}]<|/det|>")
    assert len(grounded.boxes) == MAX_BOXES_PER_BLOCK


def test_text_after_the_last_allowed_block_is_kept() -> None:
    raw = "<|ref|>t<|/ref|><|det|>[[1,2,3,4]]<|/det|>x" * (MAX_BLOCKS + 5)
    blocks = parse(raw).blocks
    assert len(blocks) == MAX_BLOCKS
    assert clean(blocks[-1].text) == "xtxtxtxtxtx"


@pytest.mark.parametrize(
    ("raw", "markdown"),
    [
        ("done <|ref|>ima", "done"),
        ("done <|ref|>", "done"),
        ("done <|ref|>table<|/ref|>", "done"),
        ("done <|ref|>table<|/ref|><|det|>", "done"),
        ("done <|ref|>table<|/ref|><|det|>[[12, 3", "done"),
        ("done <|ref|>table<|/ref|><|det|>[[1,2,3,4]]<|/det|>", "done"),
        ("<|ref|>lost tag\nbut a line of text", "lost tag\nbut a line of text"),
        ("<|ref|>a<|ref|>text<|/ref|><|det|>[[1,2,3,4]]<|/det|>b", "a\n\nb"),
        ("<|ref|>text<|/ref|><|det|>[[1,2,3,4]]\n2024 was", "2024 was"),
        ("stray <|det|>[[1,2,3,4]]<|/det|>list", "stray list"),
        ("stray <|/ref|>end<|/det|> tags<|grounding|><image>", "stray end tags"),
    ],
)
def test_broken_tags_leave_the_text_and_no_tags(raw: str, markdown: str) -> None:
    assert _markdown(raw) == markdown


def test_a_cut_box_list_keeps_the_label_of_its_block() -> None:
    raw = "<|ref|>table<|/ref|><|det|>[[12, 3, <|ref|>text<|/ref|><|det|>[[1,2,3,4]]<|/det|>b"
    assert [block.label for block in parse(raw).blocks] == ["table", "text"]


def test_commands_are_replaced_with_and_without_blocks() -> None:
    assert _markdown("\\( a \\coloneqq b \\eqqcolon c \\)") == "\\( a := b =: c \\)"


def test_runs_of_newlines_become_one_empty_line() -> None:
    assert clean("\n\na\n\n\n\n\nb\n\nc \n") == "a\n\nb\n\nc"


def test_box_pixels_reach_the_far_edge() -> None:
    assert box_pixels((0, 0, 999, 999), 1224, 1584) == (0, 0, 1224, 1584)
    assert box_pixels((500, 1, 501, 2), 1000, 1000) == (500, 1, 501, 2)


TAGS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[1, 2, 3, 4]]", "[[", "]]", ",", "12")
WORDS = ("image", "text", "word", "\n", " ", ">")
MARKUP = ("![a](b.png)", "<img/src=x>", "<table>", "<td>", "<!--")
FRAGMENTS = st.sampled_from(TAGS + WORDS + MARKUP)


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS | st.text(max_size=8), max_size=25).map("".join))
def test_any_text_parses_into_valid_boxes_and_harmless_markdown(raw: str) -> None:
    grounded = parse(raw)
    for box in grounded.boxes:
        x1, y1, x2, y2 = box.box
        assert 0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999
    assert all(isinstance(box, Box) for box in grounded.boxes)
    # Nothing is invented and nothing is out of order.
    position = 0
    for block in grounded.blocks:
        position = raw.index(block.text, position) + len(block.text)
    markdown = _markdown(raw)
    assert markdown.count("![") == sum(box.label == "image" for box in grounded.boxes)
    assert "<img" not in markdown and "<|ref|>" not in markdown
    assert "<!--" not in markdown


@pytest.mark.parametrize(
    "piece", ["<|ref|>", "<|ref|>a<|/ref|><|det|>", "<|det|>[[", "[[1,", "<a", "<", "![", "\n", '"']
)
def test_long_hostile_texts_take_well_under_a_second(piece: str) -> None:
    raw = "<|ref|>t<|/ref|><|det|>" + piece * (200_000 // len(piece))
    start = time.process_time()
    _markdown(raw)
    _markdown(piece * (200_000 // len(piece)))
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (PAGE, "# Report|First line.|Figure 1"),
        ("plain <b>text</b>", "plain <b>text</b>"),
        ("before<|ref|>text<|/ref|>after", "before|after"),
        ("a<|ref|>t<|/ref|><|det|>[[1, 2, 3,", "a"),  # cut in its boxes
        ("a<|ref|>tit", "a"),  # cut in its label
        ("a<|ref|>never closed\nb", "a<|ref|>never closed\nb"),
        ("", ""),
    ],
)
def test_text_is_told_apart_from_labels_and_boxes(raw: str, text: str) -> None:
    assert "|".join(raw[start:end] for start, end in text_spans(raw)) == text
