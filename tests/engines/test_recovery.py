"""The ladder: a fixed order of steps, every try kept, halves joined in the page's own units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ocr2cli.config import DecodeConfig, DryConfig
from ocr2cli.engines.raster import chosen_view, quietest_row
from ocr2cli.engines.recovery import NOTHING, STEPS, TURNED, Ladder, decoder_steps
from ocr2cli.errors import PageFault
from ocr2cli.generate.fixed_step import LEAST_RING, FixedStep
from ocr2cli.generate.logits import NgramRule
from ocr2cli.pages import (
    Attempt,
    Box,
    FinishReason,
    PageError,
    PageImage,
    PageJob,
    PageKey,
    PageResult,
    Status,
)

KEY = PageKey("a", 0)
JOB = PageJob(KEY, "/a.pdf", "", 1)
LOOP = PageResult(
    KEY, Status.LOOP, markdown="x x x", finish_reason=FinishReason.LOOP, page_size=(100, 200),
    attempts=(Attempt("first", FinishReason.LOOP, 9),),
)  # fmt: skip


def part(text: str, height: int, *boxes: Box, status: Status = Status.OK) -> PageResult:
    return PageResult(
        KEY, status, markdown=text, raw=text, finish_reason=FinishReason.STOP,
        page_size=(100, height), boxes=boxes, confidence=0.5, new_tokens=3,
    )  # fmt: skip


def failed(code: str) -> PageResult:
    return PageResult(KEY, Status.FAILED, error=PageError(code, "no"))


def climb(ladder: Ladder, *answers: PageResult) -> tuple[list[str], PageResult | None]:
    """Feed answers; the views that were asked for, and the final result if there is one."""
    views, final = [], ladder.take(JOB, LOOP)
    for answer in answers:
        job = ladder.next_job()
        assert job is not None and final is None
        views.append(job.ask.view)
        final = ladder.take(job, answer)
    return views, final


def test_a_good_page_passes_untouched() -> None:
    good = part("fine", 200)
    ladder = Ladder()
    assert ladder.take(JOB, good) is good and ladder.next_job() is None


def test_upright_comes_first_and_its_success_ends_the_climb() -> None:
    turned = replace(part("turned", 100, Box("text", (1, 1, 5, 5))), extra={"own_text_found": 0.9})
    views, final = climb(Ladder(), turned)
    assert views == ["upright"] and final is not None
    assert final.status is Status.RECOVERED and final.markdown == "turned" and final.boxes == ()
    assert (final.warnings, final.extra) == ((TURNED,), {"own_text_found": 0.9})
    assert [attempt.step for attempt in final.attempts] == ["first", "upright"]


def test_halves_are_joined_with_boxes_in_the_whole_page_and_figures_renumbered() -> None:
    top = part("![](figure:1)\n\ntop", 50, Box("image", (0, 0, 999, 999)))
    bottom = part("bottom ![](figure:1)", 150, Box("image", (0, 0, 500, 999)))
    views, final = climb(Ladder(), failed("not_applicable"), top, bottom)
    assert views == ["upright", "top", "bottom"] and final is not None
    assert final.markdown == "![](figure:1)\n\ntop\n\nbottom ![](figure:2)"
    assert [box.box for box in final.boxes] == [(0, 0, 999, 249), (0, 249, 500, 999)]
    assert [attempt.step for attempt in final.attempts] == ["first", "upright", "halves", "halves"]
    assert final.new_tokens == 6 and final.page_size == (100, 200)


def test_halves_are_one_page_with_the_tokens_of_both_and_the_doubt_of_the_worse() -> None:
    top = replace(part("top", 50), confidence_p5=0.1, token_ids=(1, 2), warnings=("dark", "a"),
                  extra={"own_text_found": 0.4})  # fmt: skip
    bottom = replace(
        part("bottom", 50), confidence=0.9, confidence_p5=0.7, token_ids=(3,), warnings=("dark",)
    )
    for halves in ((top, bottom), (bottom, top)):
        _, final = climb(Ladder(), failed("not_applicable"), *halves)
        assert final is not None and (final.confidence, final.confidence_p5) == (0.5, 0.1)
        assert final.token_ids == halves[0].token_ids + halves[1].token_ids
        assert sorted(final.warnings) == ["a", "dark"] and final.extra == {}
        assert [attempt.note for attempt in final.attempts] == ["", "no", "", ""]


def test_halves_whose_size_is_not_known_keep_their_boxes() -> None:
    half = part("x", 0, Box("text", (0, 0, 999, 999)))
    _, final = climb(Ladder(), failed("not_applicable"), half, half)
    assert final is not None and len(final.boxes) == 2


def test_only_loops_climb_and_each_step_has_all_its_retries() -> None:
    for status in (Status.TRUNCATED, Status.FAILED, Status.BLANK):
        other = part("x", 200, status=status)
        assert Ladder().take(JOB, other) is other
    ladder = Ladder()
    ladder.take(replace(JOB, attempt=2), LOOP)
    job = ladder.next_job()
    assert job is not None and job.attempt == 0


CUT = part("cut", 50, status=Status.TRUNCATED)
TOP = part("top", 50)


@pytest.mark.parametrize("answers", [(LOOP, LOOP), (LOOP, TOP, LOOP), (CUT, CUT), (CUT, TOP, CUT)])
def test_when_every_step_fails_the_page_stays_a_loop_with_all_its_tries(answers) -> None:
    ladder = Ladder()
    _, final = climb(ladder, *answers)
    assert final is not None and final.status is Status.LOOP and final.markdown == "x x x"
    assert len(final.attempts) == 1 + len(answers) and not ladder.is_busy


NONE = part("", 50)


@pytest.mark.parametrize(
    "answers", [(NONE, NONE, NONE), (LOOP, NONE, NONE), (NONE, NONE, PageResult(KEY, Status.BLANK))]
)
def test_parts_of_which_nothing_was_written_recover_nothing(answers) -> None:
    """The page lost what its looping try had read."""
    ladder = Ladder()
    _, final = climb(ladder, *answers)
    assert final is not None and final.status is Status.LOOP and final.markdown == "x x x"
    assert len(final.attempts) == 4 and not ladder.is_busy


def test_what_a_turned_page_does_not_keep_is_no_reading() -> None:
    """An image alone: its box and its link are left out, and nothing is left."""
    picture = part("![](figure:1)", 100, Box("image", (1, 1, 5, 5)))
    _, final = climb(Ladder(), picture, LOOP)
    assert final is not None and final.status is Status.LOOP and final.markdown == "x x x"
    assert [attempt.note for attempt in final.attempts] == ["", NOTHING, ""]


def test_halves_of_boxes_alone_are_kept() -> None:
    """As `--prompt locate` is answered."""
    boxes = part("", 50, Box("total", (1, 1, 5, 5)))
    for answers, count in (((boxes, boxes), 2), ((boxes, NONE), 1), ((NONE, boxes), 1)):
        _, final = climb(Ladder(), failed("not_applicable"), *answers)
        assert final is not None and final.status is Status.RECOVERED
        assert len(final.boxes) == count


def test_one_half_may_be_empty() -> None:
    for answers in ((NONE, TOP), (TOP, NONE)):
        _, final = climb(Ladder(), failed("not_applicable"), *answers)
        assert final is not None and final.status is Status.RECOVERED and final.markdown == "top"


def test_a_page_whose_lower_half_is_blank_was_read_to_its_end() -> None:
    """A blank half has no finish reason, and the page took it over."""
    blank = PageResult(KEY, Status.BLANK, page_size=(100, 150))
    _, final = climb(Ladder(), failed("not_applicable"), TOP, blank)
    assert final is not None and final.status is Status.RECOVERED and final.markdown == "top"
    assert final.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("last", [TOP, LOOP])
def test_a_pages_seconds_are_those_of_all_its_tries(last: PageResult) -> None:
    spent = {"raster": 0.5, "decode": 2.0}
    answers = [replace(one, seconds=spent) for one in (CUT, TOP, last)]
    ladder = Ladder()
    ladder.take(JOB, replace(LOOP, seconds={"decode": 3.0}))
    for answer in answers:
        job = ladder.next_job()
        assert job is not None
        final = ladder.take(job, answer)
    assert final is not None and final.seconds == {"raster": 1.5, "decode": 9.0}


@pytest.mark.parametrize("answers", [(TOP,), (LOOP, LOOP)])
def test_a_page_that_has_come_down_may_loop_again_another_time(
    answers: tuple[PageResult, ...],
) -> None:
    ladder = Ladder()
    for _ in range(2):
        views, final = climb(ladder, *answers)
        assert final is not None and len(views) == len(answers)
        assert len(final.attempts) == 1 + len(answers)
    assert ladder.take(JOB, TOP) is TOP


def test_a_job_that_is_to_be_read_again_is_handed_out_after_those_before_it() -> None:
    ladder = Ladder()
    other = replace(JOB, key=PageKey("b", 4))
    ladder.take(JOB, LOOP)
    ladder.again(other)
    first = ladder.next_job()
    assert first is not None and first.key == KEY and ladder.is_busy
    assert ladder.next_job() is other and not ladder.is_busy


def test_pages_climb_independently() -> None:
    ladder = Ladder()
    other = replace(JOB, key=PageKey("b", 4))
    ladder.take(JOB, LOOP)
    ladder.take(other, replace(LOOP, key=other.key))
    first, second = ladder.next_job(), ladder.next_job()
    assert first is not None and second is not None
    assert (first.key, second.key) == (KEY, other.key)
    done = ladder.take(second, replace(part("b", 9), key=other.key))
    assert done is not None and done.key == other.key


def test_a_page_is_cut_between_lines_and_nothing_is_lost() -> None:
    rgb = np.full((100, 40, 3), 255, np.uint8)
    rgb[38:52, 5:30] = 0  # a line of text right in the middle
    row = quietest_row(rgb)
    assert not 37 < row < 52
    page = PageImage(KEY, rgb, 144)
    top, bottom = chosen_view(page, "top"), chosen_view(page, "bottom")
    assert np.array_equal(np.concatenate([top.rgb, bottom.rgb]), rgb)


@pytest.mark.parametrize("height", [1, 2, 3])
def test_the_thinnest_pages_can_be_cut_too(height: int) -> None:
    assert quietest_row(np.zeros((height, 5, 3), np.uint8)) >= 1


def test_an_upright_page_is_not_read_twice() -> None:
    with pytest.raises(PageFault, match="upright already"):
        chosen_view(PageImage(KEY, np.full((300, 300, 3), 255, np.uint8), 144), "upright")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((20, 90), (12, 1_000)),
        ((0, 90), (12, 1_000)),
        ((0, 0), (12, 1_000)),
        ((8, 2_000), (8, 2_000)),
        ((20, 0), (12, 0)),
    ],
)
def test_the_wider_rule_is_never_looser_than_the_runs_own(own, expected) -> None:
    """A window of 0 is the whole page; it was cut to 1000, and an n of 8 was raised to 12."""
    cfg = DecodeConfig(no_repeat_ngram=own[0], ngram_window=own[1], dry=DryConfig())
    step = next(step for step in STEPS if step.name == "wider-ngram")
    wider = step.settings(cfg)
    assert (wider.no_repeat_ngram, wider.ngram_window, wider.dry) == (*expected, None)


@pytest.mark.parametrize(
    ("cfg", "has_tiles", "names"),
    [
        (DecodeConfig(), True, ["first", "wider-ngram", "global-view"]),
        (DecodeConfig(), False, ["first", "wider-ngram"]),
        (DecodeConfig(no_repeat_ngram=12, ngram_window=1_000), True, ["first", "global-view"]),
        (DecodeConfig(no_repeat_ngram=5, ngram_window=0), False, ["first"]),
        (DecodeConfig(no_repeat_ngram=5, ngram_window=90), False, ["first", "wider-ngram"]),
    ],
)  # fmt: skip
def test_no_step_of_the_decoder_repeats_the_first_try(cfg, has_tiles, names) -> None:
    assert [step.name for step in decoder_steps(cfg, has_tiles=has_tiles)] == names


def test_a_try_under_the_wider_rule_takes_part_in_the_step_of_all() -> None:
    for cfg in (DecodeConfig(), DecodeConfig(no_repeat_ngram=0), DecodeConfig(ngram_window=300)):
        (wider,) = (step for step in STEPS if step.name == "wider-ngram")
        rule = NgramRule.of(wider.settings(cfg), ())
        assert rule is not None and 0 < rule.window <= LEAST_RING and FixedStep.supports(rule)
