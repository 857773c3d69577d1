"""Scores of one page, the traps of scoring first."""

from __future__ import annotations

import random
import time

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr2cli.eval import metrics
from ocr2cli.eval.metrics import plain_text, score_text

PAGE = "Two Americans steered their fragile craft safely and smoothly to the landing yesterday."


def test_a_perfect_page_scores_perfectly_in_every_way() -> None:
    scores = score_text(PAGE, PAGE)
    assert (scores.cer, scores.whole_cer, scores.word_recall) == (0.0, 0.0, 1.0)
    assert (scores.chrf, scores.whole_chrf, scores.length_ratio) == (100.0, 100.0, 1.0)


def test_a_loop_after_a_perfect_page_is_forgiven_by_the_aligned_score_and_by_no_other() -> None:
    scores = score_text(PAGE, PAGE + " and then" * 200)
    assert scores.cer == 0.0
    assert scores.whole_cer is not None and scores.whole_cer > 10
    assert scores.whole_chrf is not None and scores.whole_chrf < 50
    assert scores.length_ratio is not None and scores.length_ratio > 10


def test_empty_output_scores_cer_one_and_is_not_skipped() -> None:
    scores = score_text(PAGE, "  \n")
    assert (scores.cer, scores.whole_cer, scores.word_recall) == (1.0, 1.0, 0.0)
    assert (scores.chrf, scores.length_ratio) == (0.0, 0.0)


def test_invented_text_on_an_empty_page_is_wrong_and_silence_is_right() -> None:
    assert score_text("", "").whole_cer == 0.0
    assert score_text("", "anything").whole_cer == score_text("", "anything").cer == 1.0
    assert score_text("", "anything").word_recall == 1.0
    assert (score_text("", "").whole_chrf, score_text("", "anything").whole_chrf) == (100.0, 0.0)
    assert (score_text("", "").length_ratio, score_text("", "abc").length_ratio) == (1.0, 4.0)


def test_a_truth_that_covers_a_part_of_the_page_has_no_whole_page_scores() -> None:
    scores = score_text(PAGE, "Extra! " + PAGE + " More.", covers_page=False)
    assert scores.cer == 0.0
    assert scores.whole_cer is None and scores.whole_chrf is None


def test_swapped_columns_hurt_cer_and_leave_word_recall_whole() -> None:
    left, right = "the water fell by a hand", "fish now gather below the weir"
    scores = score_text(f"{left} {right}", f"{right} {left}")
    assert scores.word_recall == 1.0
    assert scores.whole_cer is not None and scores.whole_cer > 0.5


def test_word_recall_counts_each_word_as_often_as_the_truth_has_it() -> None:
    assert metrics.word_recall("no no no yes", "no yes") == 0.5
    assert metrics.word_recall("no no no yes", "no no yes") == 0.75


@pytest.mark.parametrize(
    ("truth", "output", "share"),
    [
        ("\u2192 \u2605 \u263a", "", 0.0),
        ("\u2192 \u2605 \u263a", "\u2605 x", 1 / 3),
        # a vowel sign belongs to its letter
        ("\u0915\u093f\u0924\u093e\u092c", "\u0915\u094b\u0924\u0940\u092c\u0942", 0.0),
        ("\u0915\u093f\u0924\u093e\u092c", "\u0915\u093f\u0924\u093e\u092c.", 1.0),
        # no spaces between words: each character is one
        ("\u6771\u4eac\u90fd\u306b\u884c\u304d\u307e\u3059",
         "\u6771\u4eac\u90e8\u306b\u884c\u304d\u307e\u3059", 7 / 8),
        ("\u0e01\u0e34\u0e19\u0e02\u0e49\u0e32\u0e27",
         "\u0e01\u0e34\u0e19\u0e02\u0e32\u0e27", 4 / 5),
        ("Don't stop, M\u00fcller!", "don't STOP m\u00fcller", 1.0),
        ("a\u200bb", "ab", 1.0),
        ("a\tb", "b a", 1.0),
        ("x\u2192a", "a x \u2192", 1.0),  # a letter does not go on with a symbol
        ("...", "", 0.0),
        ("...", "...", 1.0),
        ("", "", 1.0),
    ],
)  # fmt: skip
def test_words_are_counted_in_every_script(truth: str, output: str, share: float) -> None:
    assert metrics.word_recall(truth, output) == pytest.approx(share)


def test_a_long_page_that_was_badly_read_is_scored_in_seconds() -> None:
    letters = random.Random(1)

    def text(length: int) -> str:
        return "".join(letters.choice("abcdefghij ") for _ in range(length))

    started = time.process_time()
    for truth, output in ((9_000, 9_000), (4_500, 30_000), (30_000, 4_500)):
        score_text(text(truth), text(output))
    assert time.process_time() - started < 20


def test_a_loop_after_a_long_page_is_forgiven_by_the_aligned_score() -> None:
    page = " ".join(f"{n} sacks of grain" for n in range(600))
    assert metrics.align(page, "Noise. " + page + " x y z" * 3_000) == page
    wrong = page.replace("300", "3oo")
    assert metrics.align(page, wrong) == wrong
    assert metrics.align(page, page[1_000:-1_000]) == page[1_000:-1_000]


def test_all_of_a_long_page_counts_where_nothing_matches_or_aligning_would_take_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert metrics.align("a" * 5_000, "b" * 3_000) == "b" * 3_000
    page = " ".join(f"{n} sacks" for n in range(600))
    noisy = "Noise. " + page
    assert metrics.align(page, noisy) == page
    monkeypatch.setattr(metrics, "MOST_CELLS", len(page) * len(noisy) - 1)
    assert metrics.align(page, noisy) == noisy


def test_composed_and_decomposed_letters_and_all_white_space_are_equal() -> None:
    assert metrics.fold("Ren\u0065\u0301\n\n went\u00a0 home ") == "Ren\u00e9 went home"
    assert score_text("caf\u00e9 noir", "cafe\u0301\n noir").whole_cer == 0.0


def test_the_aligned_score_repeats_the_protocol_of_llama_cpp() -> None:
    output = "Noise before. " + PAGE.replace("fragile", "fragiIe") + " Noise after."
    span = metrics.align(PAGE, output)
    assert span == PAGE.replace("fragile", "fragiIe")
    assert score_text(PAGE, output).cer == pytest.approx(jiwer.cer(PAGE, span))


def test_the_chrf_signature_names_version_and_order() -> None:
    signature = metrics.chrf_signature()
    assert "nc:6" in signature and "nw:0" in signature and "version:" in signature


def test_the_bootstrap_interval_holds_the_mean_and_is_the_same_every_time() -> None:
    values = [0.0, 0.1, 0.0, 0.4, 0.05, 0.0]
    low, high = metrics.bootstrap_interval(values)
    assert low < sum(values) / len(values) < high
    assert metrics.bootstrap_interval(values) == (low, high)
    assert metrics.bootstrap_interval([0.25]) == (0.25, 0.25)
    low, high = metrics.bootstrap_interval([0.0, 1.0] * 50)  # twice 1.96 times 0.05 wide
    assert low == pytest.approx(0.402, abs=0.01) and high == pytest.approx(0.598, abs=0.01)


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("# Title\n\ntext", "Title text"),
        ("**bold** and *italic* and `code`", "bold and italic and code"),
        ("<|ref|>title<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n# News", "News"),
        ("![](images/0001-0.png)\n\nBelow it", "Below it"),
        ("see [the list](http://a.example/b)", "see the list"),
        ("<table><tr><td>Day</td><td>31</td></tr><tr><td>Fri</td></tr></table>", "Day 31 Fri"),
        ("| Day | Sacks |\n|---|---|\n| Mon | 31 |", "Day Sacks Mon 31"),
        ("- one\n- two\n* three", "one two three"),
        ("> quoted", "quoted"),
        ("\\(x^2\\) and \\[y\\]", "x^2 and y"),
        ("```\ncode here\n```", "code here"),
        ("a < b and c > d", "a < b and c > d"),
        ("x &lt; y &amp; z", "x < y & z"),
        ("snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4"),
        ("2*3*4 = 24 and a*b*c", "2*3*4 = 24 and a*b*c"),
        ("an*other* word, (*so*)", "an*other* word, (so)"),
        ("<!-- page: 3 -->\nText", "Text"),
        ("either | or", "either | or"),
        ("either | or |", "either | or |"),
        ("| a \\| b |", "a | b"),
        ("price \\$5 \\*", "price $5 *"),
        ("1. first\n2. second", "1. first 2. second"),
        ("well-known -5 degrees", "well-known -5 degrees"),
    ],
)
def test_markup_is_stripped_and_text_is_kept(markdown: str, plain: str) -> None:
    assert metrics.fold(plain_text(markdown)) == plain


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a b 1 2"),
        ("|a|b|\n| :--- | ---: |\n|1|2|", "a b 1 2"),
        ("a | b\n--- | ---\n1 | 2", "a | b 1 | 2"),
        ("  |  a  |\n\t|\t:--:\t|\t\n  |  1  |", "a 1"),
        ("| a |\r\n|---|\r\n| 1 |", "a 1"),
        ("above\n\n\n\n|----|:--|\n\n\nbelow", "above below"),
        ("above\n\n---\n* * *\n_ _ _ _\nbelow", "above below"),
        ("a - b -- c | d", "a - b -- c | d"),
        ("-- a\n-5 | 3", "-- a -5 | 3"),
    ],
)
def test_rules_of_tables_and_pages_vanish_and_dashes_of_a_text_stay(
    markdown: str, plain: str
) -> None:
    assert metrics.fold(plain_text(markdown)) == plain


@pytest.mark.parametrize("piece", ["\n ", " ", "\t\n", "| ", "|--", "-- ", ":--", "- ", "\n\n|\n"])
def test_long_runs_of_blanks_and_rules_take_well_under_a_second(piece: str) -> None:
    start = time.process_time()
    plain_text(piece * (20_000 // len(piece)))
    assert time.process_time() - start < 0.5


def test_tables_are_scored_where_the_truth_has_them_and_only_there() -> None:
    table = "<table><tr><td>a</td><td>b</td></tr></table>"
    assert metrics.table_score("no table", table) is None
    assert metrics.table_score(table, "no table") == 0.0
    assert metrics.table_score(table, table) == 1.0


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_pair_of_texts_makes_a_score_fail_or_leave_its_range(truth: str, output: str) -> None:
    scores = score_text(truth, plain_text(output))
    assert scores.cer is not None and scores.cer >= 0
    assert scores.chrf is not None and 0 <= scores.chrf <= 100 + 1e-9
    assert scores.word_recall is not None and 0 <= scores.word_recall <= 1
