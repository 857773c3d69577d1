"""Small folders in the shape of OmniDocBench and olmOCR-bench, read and scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from eval_toys import draw_page, failed_result, page_result

from ocr2cli.errors import InputError
from ocr2cli.eval.blocks import block_scores, order_distance
from ocr2cli.eval.cases import Case
from ocr2cli.eval.olmocr_bench import is_olmocr_bench, load_olmocr_bench
from ocr2cli.eval.omnidocbench import find_annotations, load_omnidocbench
from ocr2cli.eval.provenance import ModelFacts
from ocr2cli.eval.report import json_report, text_report
from ocr2cli.eval.report_html import html_report
from ocr2cli.eval.run import EvalOptions, run_eval
from ocr2cli.pages import PageResult


def block(kind: str, text: str, order: int | None, anno: int, **more: Any) -> dict[str, Any]:
    poly = [0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0]
    return {
        "category_type": kind, "poly": poly, "ignore": False, "order": order, "anno_id": anno,
        "text": text, **more,
    }  # fmt: skip


TABLE = "<table><tr><td>Mon</td><td>31</td></tr></table>"
PAGE: dict[str, Any] = {
    "layout_dets": [
        block("text_block", "Fish gather below the weir in July.", 3, 3),
        block("title", "River news", 1, 1),
        block("text_block", "The water fell by a hand and the", 2, 2),
        block("text_block", "mill wheel stands still.", 4, 4),
        block("page_number", "14", None, 5),
        block("table", "", 5, 6, html=TABLE),
        block("text_block", "smudge", 6, 7, ignore=True),
        block("figure", "", 7, 8),
    ],
    "page_info": {
        "page_no": 0, "height": 200, "width": 320, "image_path": "xx/river.png",
        "page_attribute": {"language": "english"},
    },
    "extra": {
        "relation": [{"source_anno_id": 2, "target_anno_id": 4, "relation_type": "truncated"}]
    },
}  # fmt: skip
READ = (
    "# River news\n\nThe water fell by a hand and the mill wheel stands still.\n\n"
    f"Fish gather below the weir in July.\n\n{TABLE}\n\n14"
)


@pytest.fixture
def omnidocbench(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    draw_page(tmp_path / "images" / "river.png", "River")
    (tmp_path / "OmniDocBench.json").write_text(json.dumps([PAGE]), encoding="utf-8")
    return tmp_path


def test_omnidocbench_pages_become_cases_in_reading_order(omnidocbench: Path) -> None:
    found = find_annotations(omnidocbench)
    assert found is not None
    (case,) = load_omnidocbench(omnidocbench, found).cases
    assert case.blocks == (
        "River news",
        "The water fell by a hand and the mill wheel stands still.",
        "Fish gather below the weir in July.",
    )
    assert case.ignored_blocks == ("14",)
    assert case.truth_markdown == TABLE
    assert (case.id, case.page, case.not_run) == ("river", 0, "")


def test_omnidocbench_images_of_one_name_are_two_cases_and_one_image_twice_is_refused(
    omnidocbench: Path,
) -> None:
    draw_page(omnidocbench / "images" / "river.jpg", "Other")
    file = omnidocbench / "OmniDocBench.json"

    def ids(*names: str) -> list[str]:
        pages = [PAGE | {"page_info": PAGE["page_info"] | {"image_path": name}} for name in names]
        file.write_text(json.dumps(pages), encoding="utf-8")
        return [case.id for case in load_omnidocbench(omnidocbench, file).cases]

    assert ids("river.png", "river.jpg", "lake.png") == ["river.png", "river.jpg", "lake"]
    with pytest.raises(InputError, match=r"two pages have the image river\.png\. Rename one"):
        ids("river.png", "lake.png", "other/river.png")


def run_with(folder: Path, text: str, model: ModelFacts) -> Any:
    def reader(cases: Sequence[Case]) -> list[PageResult]:
        return [page_result(case, text) for case in cases]

    return run_eval(EvalOptions(suites=(str(folder),)), reader, model=model)


def test_a_right_omnidocbench_page_scores_perfectly(
    omnidocbench: Path, v2_model: ModelFacts
) -> None:
    scores = run_with(omnidocbench, READ, v2_model).cases[0].ours.scores
    assert (scores.block_distance, scores.order, scores.teds) == (0.0, 0.0, 1.0)


def test_swapped_blocks_cost_order_and_not_text(omnidocbench: Path, v2_model: ModelFacts) -> None:
    parts = READ.split("\n\n")
    swapped = "\n\n".join([parts[2], *parts[:2], *parts[3:]])
    scores = run_with(omnidocbench, swapped, v2_model).cases[0].ours.scores
    assert scores.block_distance == 0.0
    assert scores.order == pytest.approx(2 / 3)
    assert scores.whole_cer is not None and scores.whole_cer > 0.3


def test_missing_and_stray_blocks_cost_text() -> None:
    blocks = ("first paragraph here", "second paragraph there")
    assert block_scores(blocks, (), "first paragraph here")[0] == pytest.approx(22 / 42)
    stray = "\n\n".join([*blocks, "QQQQQQQQQQ"])
    assert block_scores(blocks, (), stray)[0] == pytest.approx(10 / 52)
    assert block_scores(blocks, ("QQQQQQQQQQ",), stray)[0] == 0.0
    assert block_scores(blocks, (), "")[0] == 1.0


def test_a_paragraph_cut_in_two_belongs_to_its_block() -> None:
    blocks = ("one two three four five six", "another paragraph entirely")
    cut = "one two three four\n\nfive six\n\nanother paragraph entirely"
    assert block_scores(blocks, (), cut) == (0.0, 0.0)


def test_formulas_and_tables_of_the_output_are_not_text() -> None:
    output = "some text\n\n$$x = 1$$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n" + TABLE
    assert block_scores(("some text",), (), output)[0] == 0.0


def test_order_distance_of_hand_counted_orders() -> None:
    assert order_distance([0, 1, 2]) == 0.0
    assert order_distance([2, 0, 1]) == pytest.approx(2 / 3)
    assert order_distance([1]) is None


def test_omnidocbench_without_its_images_or_damaged_says_so(omnidocbench: Path) -> None:
    (omnidocbench / "images" / "river.png").unlink()
    with pytest.raises(InputError, match=r"none of the 1 page images .* Put them in images/"):
        load_omnidocbench(omnidocbench, omnidocbench / "OmniDocBench.json")


@pytest.mark.parametrize(
    "page",
    [
        '{"layout_dets": 3}',
        '{"page_info": {"image_path": "a.png"}, "layout_dets": [3]}',
        '{"page_info": {"image_path": "a.png"}, "layout_dets": {"a": 3}}',
        '{"page_info": {"image_path": "a.png"}, "layout_dets": [], "extra": [3]}',
        '{"page_info": {"image_path": "a.png"}, "layout_dets": [], "extra": {"relation": [3]}}',
        '{"page_info": {"image_path": "a.png"}, "layout_dets": '
        '[{"category_type": "title", "merge_list": ["a"]}]}',
    ],
)
def test_a_malformed_page_of_omnidocbench_is_named(tmp_path: Path, page: str) -> None:
    (tmp_path / "some.json").write_text(f"[{page}]", encoding="utf-8")
    with pytest.raises(InputError, match=r"page 1: not in OmniDocBench's format"):
        load_omnidocbench(tmp_path, tmp_path / "some.json")


FACTS = [
    {"type": "present", "id": "1", "text": "water fell", "max_diffs": 0},
    {"type": "absent", "id": "2", "text": "14", "last_n": 10},
    {"type": "order", "id": "3", "before": "water", "after": "Fish", "max_diffs": 1},
    {"type": "table", "id": "4", "cell": "Mon", "right": "31", "up": None},
    {"type": "math", "id": "5", "math": "x^2"},
    {"type": "footnote", "id": "6", "marker": "1"},
    {"type": "present", "id": "7", "text": "not this one", "checked": "rejected"},
]


@pytest.fixture
def olmocr(tmp_path: Path) -> Path:
    import pymupdf

    (tmp_path / "pdfs" / "multi").mkdir(parents=True)
    document = pymupdf.open()
    document.new_page(width=300, height=200).insert_text((20, 60), "River", fontsize=30)
    document.save(tmp_path / "pdfs" / "multi" / "a.pdf")
    lines = [json.dumps({"pdf": "multi/a.pdf", "page": 1, **fact}) for fact in FACTS]
    (tmp_path / "multi.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return tmp_path


def test_olmocr_facts_become_one_case_a_page(olmocr: Path) -> None:
    assert is_olmocr_bench(olmocr)
    suite = load_olmocr_bench(olmocr)
    (case,) = suite.cases
    assert (case.id, case.page, case.has_truth) == ("multi/a p1", 0, False)
    assert [fact.id for fact in case.facts] == [
        "multi:1", "multi:2", "multi:3", "multi:4", "multi:5", "baseline:multi/a.pdf",
    ]  # fmt: skip
    assert suite.notes == ("1 facts of type 'footnote' are not scored",)


def test_olmocr_facts_are_a_score_and_no_gate(olmocr: Path, v2_model: ModelFacts) -> None:
    outcome = run_with(olmocr, READ + "\n\n\\(x^{2}\\) and no more text", v2_model)
    outcome.raise_for_gates()
    assert outcome.cases[0].ours.scores.facts == 1.0
    worse = run_with(olmocr, READ, v2_model)
    worse.raise_for_gates()
    groups = json_report(worse)["suites"][0]["fact_groups"]
    assert groups == {"multi": [3, 5], "baseline": [1, 1]}
    report = text_report(worse)
    assert "multi: 3/5 facts hold" in report and "mean over the groups: 0.800" in report
    assert "note: 1 facts of type 'footnote' are not scored" in report


def test_an_olmocr_page_that_was_not_read_fails_its_facts(
    olmocr: Path, v2_model: ModelFacts
) -> None:
    outcome = run_with(olmocr, "", v2_model)
    assert outcome.cases[0].ours.scores.facts == pytest.approx(1 / 6)  # only "absent" holds


def test_an_unreadable_page_of_a_benchmark_is_a_wrong_page(
    olmocr: Path, v2_model: ModelFacts
) -> None:
    (olmocr / "pdfs" / "multi" / "a.pdf").write_bytes(b"this is no PDF")
    options = EvalOptions(suites=(str(olmocr),))
    outcome = run_eval(options, lambda cases: [failed_result(c) for c in cases], model=v2_model)
    assert outcome.cases[0].ours.scores.facts == pytest.approx(1 / 6)
    assert "multi/a p1" in html_report(outcome)


def test_a_damaged_olmocr_line_is_named(olmocr: Path) -> None:
    with (olmocr / "multi.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"pdf": "multi/a.pdf", "page": 1, "type": "present", "id": "9"}\n')
    with pytest.raises(InputError, match=r"multi\.jsonl:9: not in olmOCR-bench's format"):
        load_olmocr_bench(olmocr)
